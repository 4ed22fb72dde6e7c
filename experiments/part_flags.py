"""Flags of the fields of a run and of its parts: each by the name of its field, and by that of its part before it.

    --beta2=0.99 --optimizer.beta2=0.99

The kinds of parts are those that `sae` registers: a new one has its flags without a change here.
"""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from fractions import Fraction

from absl import flags

import sae
from sae.families import FAMILIES
from sae.parts import of_plain_json, plain_json
from sae.recipes import PENALTIES

from . import helping

# Fields that other flags set, or what is trained on.
_ELSEWHERE = ("site", "width", "steps", "l0_target", "learning_rate", "seed", "data_seed")


def _meanings(kind: type) -> dict[str, str]:
    """What the fields of a run, or of a kind of part, mean: from its docstring."""
    attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\nRaises:")[0]
    entries = re.findall(r"(?m)^  (\w+): (.*(?:\n    .*)*)", attributes)
    capital = lambda text: text[0].upper() + text[1:]  # noqa: E731
    return {name: capital(" ".join(text.split())) for name, text in entries}


class _StepsParser(flags.ArgumentParser):
    """A number, or a share such as 1/4."""

    syntactic_help = "a number, or a share of the run such as 1/4"

    def parse(self, argument):
        value = of_plain_json(argument)
        if isinstance(value, str):
            try:
                value = int(value) if value.isdecimal() else float(value)
            except ValueError:
                raise ValueError(f"takes {self.syntactic_help}, got {argument!r}") from None
        return value


def _define(field: dataclasses.Field, meaning: str) -> flags.FlagHolder:
    """A flag for a field, without a value unless the user gives one."""
    default = field.default if field.default is not dataclasses.MISSING else None
    text = f"{meaning} Default: the recipe's (by itself: {default})."
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    if Fraction in kinds:
        return flags.DEFINE(_StepsParser(), field.name, None, text)
    if typing.get_origin(field.type) is typing.Annotated:
        kinds = typing.get_args(field.type)
    for kind, define in ((bool, flags.DEFINE_bool), (int, flags.DEFINE_integer), (float, flags.DEFINE_float)):
        if kind in kinds:
            return define(field.name, None, text)
    return (flags.DEFINE_string if str in kinds else flags.DEFINE_list)(field.name, None, text)


def _fields() -> dict[str, tuple[dataclasses.Field, str]]:
    """The fields that have flags, with their meanings: those of a run that are no parts, and those of every kind of
    part."""
    kinds = [sae.Run, *(kind for family in FAMILIES.values() for kind in family.registry.values())]
    found = {}
    for kind in kinds:
        meanings = _meanings(kind)
        for field in dataclasses.fields(kind):
            if field.name not in _ELSEWHERE and field.name not in FAMILIES:
                found.setdefault(field.name, (field, meanings[field.name]))
    return found


def _part_names() -> dict[str, str]:
    """The flags named by part, with the flag that each stands for: `optimizer.beta2`, for every field of a part."""
    return {
        f"{place}.{field.name}": _LISTS.get(field.name, field.name)
        for place, family in FAMILIES.items()
        for kind in family.registry.values()
        for field in dataclasses.fields(kind)
    }


_LISTS = {"l0_target": "l0_targets", "learning_rate": "learning_rate"}  # a run for each value
FIELDS = {name: _define(*about) for name, about in _fields().items()}
FIELDS["penalty"] = flags.DEFINE_enum("penalty", None, PENALTIES, "In the L0. Default: the recipe's.")
PART_NAMES = _part_names()
helping.seldom(*PART_NAMES, *(name for name in FIELDS if name not in ("batch_size", "penalty", "site_out")))


def define_part_names() -> None:
    """Defines the flags named by part, once the launch has defined those that take several values."""
    for name, flag in PART_NAMES.items():
        flags.DEFINE_alias(name, flag)


def covered() -> list[str]:
    """Returns the names of the flags that `described` tells of: those of parts, in both forms."""
    short = [flag for flag in PART_NAMES.values() if flag not in _LISTS.values()]
    return [*PART_NAMES, *short]


def described(runs: Mapping[str, sae.Run]) -> str:
    """Returns every kind of part in words, with what its fields mean and what they are in the recipes.

    Args:
      runs: one of each recipe, by its name.
    """
    lines = [
        "parts of a run, and their fields with the values that the recipes give them; a field's name alone, such as",
        "--beta2, is short for --optimizer.beta2:",
    ]
    for place, family in FAMILIES.items():
        for name, kind in family.registry.items():
            summary = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
            lines += ["", *_wrapped(f"{place} {name}: {summary}", 2)]
            parts = {recipe: part for recipe, run in runs.items() for _, part in run.parts() if type(part) is kind}
            meanings = _meanings(kind)
            for field in dataclasses.fields(kind):
                values = [f"{recipe} {plain_json(getattr(part, field.name))}" for recipe, part in parts.items()]
                values = values or [f"in no recipe; by itself {plain_json(field.default)}"]
                if field.name == "l0_target":
                    values = ["as --l0_targets says"]
                lines += _wrapped(f"--{place}.{field.name}: {meanings[field.name]} ({', '.join(values)})", 4)
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4))
