"""Parts, from which a run is put together: frozen dataclasses that check themselves and own their code.

A part that is compiled into a training step is a pytree. Its fields of type `Number` are the leaves: runs that differ
in these alone share one compiled program, in which such a field has the number of the run that is computed. All other
fields are compiled in. Parts see the `Sizes` of a run and nothing else of it.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from sae.fields import check_fields, options
from sae.registry import Registry

T = TypeVar("T")

Number = Annotated[float, "may differ between the runs of one compiled program"]
Steps = int | Fraction  # a number of steps (or tokens), or a part of the run's
MOST_TOKENS = 2**31 - 2**24  # counters of tokens on the device stop here, so that they do not overflow


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers of a run that its parts know; compiled in.

    Attributes:
        width: Z, the number of latents.
        steps: optimizer steps of the run.
        batch_size: B, tokens of a step.
        dead_tokens: the number of silent tokens after which a latent is dead.
        sites: the number of input sites, joined along A; more than one for a crosscoder.
        transcodes: whether the output site is another one than the input site.
    """

    width: int
    steps: int
    batch_size: int
    dead_tokens: int
    sites: int = 1
    transcodes: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch_size


@dataclasses.dataclass(frozen=True)
class Course:
    """The history of a run so far, for the parts that warn.

    Attributes:
        records: the records of one run, in order, at least one; dicts of plain numbers as in the history.
        sizes: the sizes of the run.
        warm: the step from which every sparsity term has its full strength.
    """

    records: Sequence[Mapping]
    sizes: Sizes
    warm: int = 0

    @property
    def first(self) -> Mapping:
        return self.records[0]

    @property
    def last(self) -> Mapping:
        return self.records[-1]

    @property
    def ended(self) -> bool:
        """Whether the last record is of the run's last step."""
        return self.last["step"] + 1 >= self.sizes.steps

    @property
    def settled(self) -> bool:
        """Whether L0, FVU and dead latents mean something yet: lambda has its full strength, or the run has ended."""
        return self.ended or self.last["step"] >= self.warm


class Part:
    """The base of all parts. A subclass is a frozen dataclass of at most eight fields and registers in its family.

    Attributes:
        registry: the registry of one family of parts.
        aim: the name of the field with the L0 that the part aims at (a run calls it `l0_target`); None for a kind that
            aims at no L0.
    """

    registry: ClassVar[Registry]
    aim: ClassVar[str | None] = None
    if typing.TYPE_CHECKING:  # subclasses are dataclasses
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        jax.tree_util.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls))

    def __post_init__(self):
        _split(type(self))
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Raises ValueError for a field out of its range, and for fields that exclude one another."""

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ValueError for a run that this part cannot be in."""

    @property
    def l0_aim(self) -> float | None:
        """The L0 that this part aims at; None for a part without an aim."""
        return None if self.aim is None else float(getattr(self, self.aim))

    def beforehand(self, sizes: Sizes) -> dict[str, str]:
        """Returns what will go wrong by the fields alone, in words, by the kind of problem; empty when all is well."""
        return {}

    def warnings(self, course: Course) -> dict[str, str]:
        """Returns what is wrong with a run, in words, by the kind of problem; empty when all is well."""
        return {}

    @property
    def kind(self) -> str:
        """The name under which its type is registered."""
        return self.registry.name_of(type(self))

    def json(self) -> dict[str, Any]:
        """Returns the kind and the fields as JSON values; a Fraction is the text "1/4"."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": self.kind} | {name: plain_json(value) for name, value in values.items()}

    @classmethod
    def of_json(cls, facts: Mapping[str, Any]) -> "Part":
        """Returns the part, of this family, that `json` has written.

        Raises:
            ValueError: for a kind or a field that does not exist, and a value of another type.
        """
        facts = dict(facts)
        kind = cls.registry[facts.pop("kind", None)]
        types = {field.name: field.type for field in dataclasses.fields(kind)}
        if unknown := sorted(set(facts) - set(types)):
            raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(types))}")
        return kind(**{name: of_plain_json(value, types[name]) for name, value in facts.items()})

    def _positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{type(self).__name__}: {name} must be positive, got {getattr(self, name)}")

    def _not_negative(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{type(self).__name__}: {name} must not be negative, got {getattr(self, name)}")

    def _one_of(self, name: str, choices: Sequence[str]) -> None:
        if (value := getattr(self, name)) not in choices:
            raise ValueError(f"{type(self).__name__}: {name} is one of {', '.join(choices)}, got {value!r}")


def steps_of(value: Steps, whole: int, least: int = 0) -> int:
    """Returns a number of steps: the value itself, or a Fraction of the whole, rounded down.

    Args:
        value: a number of steps, or a Fraction.
        whole: the number of steps (or tokens) of which a Fraction is a part.
        least: the least result for a Fraction.

    Example:
        >>> steps_of(100, 600), steps_of(Fraction(1, 4), 600), steps_of(Fraction(1, 20), 10, least=1)
        (100, 150, 1)
    """
    return max(least, int(value * whole)) if isinstance(value, Fraction) else value


def numbers_of(parts: T) -> T:
    """Returns parts whose `Number` fields are float32 arrays, as a compiled step takes them."""
    return jax.tree.map(jnp.float32, parts)


def number_names(kind: type[Part]) -> tuple[str, ...]:
    """Returns the names of the fields in which runs of one compiled program may differ."""
    return _split(kind)[0]


def plain_json(value):
    """Returns a field's value as a JSON value: a Fraction is the text "1/4", and the whole run is "1/1"."""
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return list(map(plain_json, value)) if isinstance(value, tuple) else value


def of_plain_json(value, kind=Steps):
    """Returns a field's value, of a JSON value.

    Args:
        value: as `plain_json` returns it.
        kind: the field's type, which decides whether "1/4" is a Fraction or a text.

    Example:
        >>> of_plain_json("1/4", int | Fraction), of_plain_json("1/4", str)
        (Fraction(1, 4), '1/4')
    """
    kinds = options(kind)
    if isinstance(value, list):
        inner = next((typing.get_args(one)[0] for one in kinds if typing.get_origin(one) is tuple), object)
        return tuple(of_plain_json(item, inner) for item in value)
    if Fraction in kinds and isinstance(value, str) and re.fullmatch(r"-?[0-9]+/0*[1-9][0-9]*", value):
        return Fraction(value)
    return value


@functools.cache
def _split(kind: type[Part]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a part's numbers, and the names of its other fields."""
    fields = dataclasses.fields(kind)
    if any(isinstance(f.type, str) for f in fields):
        raise TypeError(
            f"{kind.__name__}: the annotations of a part have to be types, not texts, since they tell a `Number`: "
            "leave out `from __future__ import annotations`"
        )
    if both := [f.name for f in fields if {str, Fraction} <= set(options(f.type))]:
        raise TypeError(
            f"{kind.__name__}: {both[0]} takes texts and fractions, which JSON cannot tell apart: choose one of them"
        )
    return tuple(f.name for f in fields if f.type is Number), tuple(f.name for f in fields if f.type is not Number)


def _flatten(part: Part):
    numbers, others = _split(type(part))
    return tuple(getattr(part, name) for name in numbers), tuple(getattr(part, name) for name in others)


def _unflatten(kind: type[Part], others, numbers) -> Part:
    # Unchecked: the numbers may be tracers, shapes or placeholders.
    part = object.__new__(kind)
    names, other_names = _split(kind)
    for name, value in zip(names + other_names, (*numbers, *others), strict=True):
        object.__setattr__(part, name, value)
    return part
