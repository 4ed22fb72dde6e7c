"""Flags of a run: for the kinds of its parts, and for the fields of each.

    --autoencoder=topk --sparsity=quadratic,frequency --beta2=0.99 --optimizer.beta2=0.99 --quadratic.coefficient=1e-3

Their names are the ones that `sae.Run.replace` takes. The kinds are the registered ones: a kind that a user has
registered before the command line is read has flags like the others.
"""

import contextlib
import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from absl import flags

import sae
from sae.families import FAMILIES, SEVERAL, choose, comes_in, field_of, kinds_with, places_of
from sae.fields import options
from sae.parts import Part
from sae.recipes import PENALTIES

from . import helping

# Fields that other flags set, or that what is trained on decides.
_ELSEWHERE = ("site", "width", "steps", "seed", "data_seed")
# Fields whose flags make a run for each value, and the short names of these flags.
_LISTS = {"l0_target": "l0_targets", "learning_rate": "learning_rate"}
_OFTEN = ("batch_size", "site_out", "autoencoder", "sparsity")
FIELDS: dict[str, flags.FlagHolder] = {}


def meanings(kind: type) -> dict[str, str]:
    """Returns {field: meaning} of a run or a kind of part, from its docstring."""
    lines = textwrap.dedent((kind.__doc__ or "\n").partition("\n")[2]).partition("Attributes:\n")[2].splitlines()
    end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    entries = re.findall(r"(?m)^(\w+): (.*(?:\n +.*)*)", textwrap.dedent("\n".join(lines[:end])))
    return {name: (text := " ".join(words.split()))[:1].upper() + text[1:] for name, words in entries}


class _Parser(flags.ArgumentParser):
    """A value of one of several types: whole numbers, numbers, fractions, texts, and tuples of one of these.

    Attributes:
      kinds: the types; kinds of parts that register later may add some.
    """

    def __init__(self, kinds: Iterable[Any]):
        self.kinds = set(kinds)

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument
        tuples = [typing.get_args(kind)[0] for kind in self.kinds if typing.get_origin(kind) is tuple]
        if tuples:
            items = set().union(*map(types_of, tuples))
            return tuple(_value(word, items, several=True) for word in argument.split(",")) if argument else ()
        return _value(argument, self.kinds)


def _value(word: str, kinds: set[Any], several: bool = False) -> Any:
    numerator, slash, denominator = word.strip().partition("/")
    if Fraction in kinds and slash and numerator.isdecimal() and denominator.isdecimal() and int(denominator):
        return Fraction(int(numerator), int(denominator))
    for kind in (each for each in (int, float) if each in kinds):
        with contextlib.suppress(ValueError):
            return kind(word)
    if str in kinds:
        return word.strip()
    number = ("a number" if float in kinds else "a whole number") if not several else "numbers with commas between them"
    share = ", or a share of the run such as 1/4" if Fraction in kinds else ""
    raise ValueError(f"takes {number}{share}, got {word!r}")


def types_of(annotation: Any) -> set[Any]:
    """Returns the types of the values that a field takes, but for None, which no flag can have."""
    return set(options(annotation)) - {types.NoneType}


def _wanted() -> dict[str, tuple[set[Any], str]]:
    """Returns the types and the help of each flag, by its name."""
    wanted: dict[str, tuple[set[Any], str]] = {}

    def add(kind: type, field: dataclasses.Field, prefixes: Iterable[str]) -> None:
        meaning = meanings(kind).get(field.name, "")
        default = "" if field.default is dataclasses.MISSING else f" (by itself: {field.default})"
        default = f"Default: the recipe's{default}." if field.default is not None else "Default: none."
        for prefix in prefixes:
            types_so_far, text = wanted.get(prefix + field.name, (set(), f"{meaning} {default}"))
            wanted[prefix + field.name] = types_so_far | types_of(field.type), text

    for field in dataclasses.fields(sae.Run):
        if field.name not in FAMILIES and field.name not in _ELSEWHERE:
            add(sae.Run, field, [""])
    for place, family in FAMILIES.items():
        noun = family.registry.noun
        kinds = f"{', '.join(family.registry)}. Default: the recipe's."
        if place in SEVERAL:
            wanted[place] = {tuple[str, ...]}, f"Kinds of {noun}, with commas between them, or nothing: {kinds}"
        else:
            wanted[place] = {str}, f"Kind of {noun}: {kinds}"
        for name, kind in family.registry.items():
            for field in dataclasses.fields(kind):
                short = [] if field.name in _LISTS else [""]
                add(kind, field, [*short, f"{place}.", f"{name}."])
    return wanted


def define() -> list[str]:
    """Defines the flags of the registered kinds, and returns the names of all.

    A field with the name of another flag has only flags with a dot in their names.
    """
    about = {"module_name": f"{__package__}.train"}
    if "penalty" not in FIELDS:
        text = "The penalty in the L0: short for --sparsity with the recipe's other terms. Default: the recipe's."
        FIELDS["penalty"] = flags.DEFINE_enum("penalty", None, PENALTIES, text, **about)
    for name, (kinds, text) in _wanted().items():
        if name in FIELDS:
            flags.FLAGS[name].help = text
            if isinstance(parser := flags.FLAGS[name].parser, _Parser):
                parser.kinds |= kinds
        elif name in flags.FLAGS:
            continue
        elif "." in name and field_of(name) in _LISTS:
            FIELDS[name] = flags.DEFINE_list(name, None, f"The same as --{_LISTS[field_of(name)]}.", **about)
        elif bool in kinds:
            FIELDS[name] = flags.DEFINE_bool(name, None, text, **about)
        else:
            FIELDS[name] = flags.DEFINE(_Parser(kinds), name, None, text, **about)
    helping.seldom(*(name for name in FIELDS if name not in _OFTEN))
    return list(FIELDS)


def covered() -> list[str]:
    """Returns the names of the flags of fields."""
    return [name for name in FIELDS if name not in (*FAMILIES, "penalty")]


def flag_values() -> dict[str, Any]:
    """Returns the values of the given flags, by the names that recipes and `sae.Run.replace` take. Flags with a value
    for each run are not among them."""
    values = {name: flag.value for name, flag in FIELDS.items() if not _is_list(name)}
    return {name: value for name, value in values.items() if value is not None}


def _is_list(name: str) -> bool:
    return "." in name and field_of(name) in _LISTS


def values_of(field: str) -> tuple[str, list[str] | None]:
    """Returns the flag that gives a field a value for each run, by its name, and its value: a list of words, or None.

    Args:
      field: `l0_target` or `learning_rate`.

    Raises:
      ValueError: where two such flags are given.
    """
    names = [_LISTS[field], *(name for name in FIELDS if _is_list(name) and field_of(name) == field)]
    names = [name for name in names if flags.FLAGS[name].value is not None]
    if len(names) > 1:
        raise ValueError(f"--{names[0]} and --{names[1]} are the same: give one of them")
    return (names[0], flags.FLAGS[names[0]].value) if names else (_LISTS[field], None)


def named_kinds() -> dict[str, list[type[Part]]]:
    """Returns the kinds of parts that flags name, by the run's fields.

    Raises:
      ValueError: for a kind that does not exist, and for a kind that is named twice.
    """
    kinds = {}
    for place, value in flag_values().items():
        if place in FAMILIES:
            names = list(value) if place in SEVERAL else [value]
            if len(set(names)) < len(names):
                raise ValueError(f"--{place} takes different kinds, got {','.join(names)!r}")
            try:
                kinds[place] = [FAMILIES[place].registry[name] for name in names]
            except ValueError as error:
                raise ValueError(f"--{place}: {error}") from None
    return kinds


def aim_flag() -> str | None:
    """Returns the name of the flag that gives the L0 of an architecture that keeps k latents; None without one."""
    aims = {kind.aim for kind in named_kinds().get("autoencoder", [])}
    return next((name for name in flag_values() if field_of(name) in aims), None)


def wants_target() -> bool:
    """Returns whether the parts that flags name aim at an L0 that no flag for k gives."""
    kinds = named_kinds()
    if any(kind.aim for kind in kinds.get("autoencoder", [])):
        return aim_flag() is None
    return any(kind.aim for kind in kinds["sparsity"]) if "sparsity" in kinds else True


def check(run: sae.Run, others: Mapping[str, str]) -> None:
    """Checks that each flag of a field belongs to one part of the run, and is given under one name.

    Args:
      run: of the recipe, without the changes of flags.
      others: {flag: field}, of flags with a value for each run.

    Raises:
      ValueError: for another flag. It names the flag, and the kinds that have its field.
    """
    named_kinds()
    values, before = flag_values(), {place: getattr(run, place) for place in FAMILIES}
    parts = before | {place: value for place, value in values.items() if place in FAMILIES}
    choose(parts, before, values)
    of_run = {field.name for field in dataclasses.fields(sae.Run)} | {"penalty"}
    seen: dict[Any, str] = {}
    for flag, name in [*others.items(), *((name, name) for name in values if name not in of_run)]:
        places, field = places_of(parts, name), field_of(name)
        if len(places) > 1:
            both = [f"--{part.kind}.{field}" for place in SEVERAL for part in parts[place]]
            both = "one of these parts alone" if _is_list(f".{field}") else _or([f for f in both if f[2:] in FIELDS])
            raise ValueError(f"--{flag} belongs to several parts of the run: give {both}")
        if not places and not comes_in(name, [place for place in values if place in FAMILIES]):
            kinds = _or([f"--{place}={kind.registry.name_of(kind)}" for place, kind in kinds_with(name)])
            raise ValueError(f"--{flag} belongs to a part that the run does not have: it goes with {kinds}")
        if (other := seen.setdefault((*places, field), flag)) != flag:
            raise ValueError(f"--{other} and --{flag} are the same: give one of them")
    if not parts["autoencoder"].l0_gradient:
        for term in parts["sparsity"]:
            if term.reads_l0:
                l1 = "controlled_l1" if "l0_target" in map(field_of, others.values()) else "l1"
                raise ValueError(
                    f"--autoencoder={parts['autoencoder'].kind} has no gradient of the L0, through which the term "
                    f"{term.kind} acts: give --sparsity={l1}, say, or --sparsity= where k latents are kept"
                )


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
