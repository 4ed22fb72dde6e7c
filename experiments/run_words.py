"""Runs in words: what `--helpfull` says of their parts, and how a recipe differs from the paper's constants."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import sae
from sae.families import FAMILIES

from . import helping
from .part_flags import FIELDS, meanings, named_kinds, types_of


def about(recipe: str, run: sae.Run) -> str:
    """Returns a line on how a recipe for short runs differs from the paper's constants; empty for other recipes.

    Args:
      recipe: the name of the recipe.
      run: a run of the recipe.
    """
    if recipe != "short_run":
        return ""
    fields, parts = run.fields(), ["the paper's loss, gradients, constraint and folding; but"]
    if chosen := {place: fields[place] or "none" for place in named_kinds()}:
        parts = [", ".join(f"{place} {kinds}" for place, kinds in chosen.items()) + ";"]
    if "log_threshold" in fields:
        theta = "log(theta)" if fields["log_threshold"] else "theta itself"
        parts.append(
            f"{theta} is trained with a learning rate of its own, {fields['threshold_learning_rate']:g}, and bandwidth "
            f"{fields['bandwidth']:g};"
        )
    parts.append(f"inputs are {'' if fields['centre'] else 'not '}centred;")
    adam = run.optimizer
    return (
        f"recipe short_run: {' '.join(parts)} Adam's betas are {adam.beta1:g} and {adam.beta2:g}; "
        f"the decoder learns at {adam.decoder_rate_factor:g} times the encoder's rate; and the warm-ups are scaled to "
        f"{run.steps} steps (learning rate {adam.warmup_steps(run.steps)}, lambda {run.warm_from}; the paper: 1,000 "
        "and 10,000)"
    )


def described(runs: Mapping[str, sae.Run]) -> str:
    """Returns the run's fields and every kind of part in words: the meaning of each field, and its values in recipes.

    Args:
      runs: a run of each recipe, by the recipe's name.
    """
    intro = (
        "parts of a run, and their fields with the values that the recipes give them. A field's name alone is short "
        "for the one here (--beta2 for --optimizer.beta2); where two terms have a field, the kind's name stands before "
        "it (--quadratic.coefficient):"
    )
    lines = textwrap.wrap(intro, helping.WIDTH)
    of_run = [field for field in dataclasses.fields(sae.Run) if field.name in FIELDS and field.name not in FAMILIES]
    lines += ["", *_wrapped("of the run itself:", 2), *_entries(sae.Run, of_run, "", runs)]
    for place, family in FAMILIES.items():
        for name, kind in family.registry.items():
            summary = " ".join(textwrap.dedent(f"    {kind.__doc__ or ''}").split("\n\n")[0].split())
            lines += ["", *_wrapped(f"--{place}={name}: {summary}", 2)]
            parts = {recipe: part for recipe, run in runs.items() for _, part in run.parts() if type(part) is kind}
            lines += _entries(kind, dataclasses.fields(kind), f"{place}.", parts)
    return "\n".join(lines)


def _entries(kind: type, fields: Iterable[dataclasses.Field], prefix: str, records: Mapping[str, Any]) -> list[str]:
    """Returns the flags of fields in lines, with their values in the recipes."""
    lines = []
    for field in fields:
        values = [f"{recipe} {_as_flag(getattr(record, field.name))}" for recipe, record in records.items()]
        if not values:
            lacks = field.default is dataclasses.MISSING
            values = ["in no recipe; " + ("without a default" if lacks else f"by itself {_as_flag(field.default)}")]
        if field.name == getattr(kind, "aim", None):
            values = ["what --l0_targets says"]
        no = "[no]" if bool in types_of(field.type) else ""
        text = f"--{no}{prefix}{field.name}: {meanings(kind).get(field.name, '')} ({', '.join(values)})"
        lines += _wrapped(text, 4)
    return lines


def _as_flag(value: Any) -> str:
    """Returns a value as it stands after a flag's name."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, helping.WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4))
