"""The families of parts of a run, kinds that are chosen by name, and the part that a change by a field's name is
for."""

import dataclasses
import difflib
import numbers
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from sae import showing
from sae.architectures import Architecture
from sae.finish import Finish
from sae.initialisation import Initialisation
from sae.inputs import Inputs
from sae.objectives import Objective
from sae.optimizer import Adam
from sae.parts import Part
from sae.sparsity import SparsityTerm

# By the name of the run's field.
FAMILIES: dict[str, type[Part]] = {
    "autoencoder": Architecture,
    "objective": Objective,
    "inputs": Inputs,
    "initialisation": Initialisation,
    "optimizer": Adam,
    "sparsity": SparsityTerm,
    "finish": Finish,
}
SEVERAL = ("sparsity", "finish")  # fields with a tuple of parts


def recorded_fields(training: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the run in the record of a released autoencoder, by name, as JSON values; empty where the
    record has no run.

    Args:
        training: the object in `Info.training`. One of an earlier version has a flat `config`.
    """
    if isinstance(facts := training.get("run"), Mapping):
        values = {name: value for name, value in facts.items() if name not in FAMILIES and name != "format"}
        for name in FAMILIES:
            several = facts.get(name) if name in SEVERAL else [facts.get(name)]
            several = [part for part in several if isinstance(part, Mapping)] if isinstance(several, list) else []
            values[name] = "+".join(str(part.get("kind")) for part in several)
            for part in several:
                for field, value in part.items():
                    if field != "kind":
                        values[field if field not in values else f"{part['kind']}.{field}"] = value
        return values
    config = training.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def recorded_aim(training: Mapping[str, Any]) -> float | None:
    """Returns the L0 that the run in a record aimed at, or its k; None where the record has neither.

    Args:
        training: as for `recorded_fields`.
    """
    fields = recorded_fields(training)
    return next((fields[name] for name in ("l0_target", "k") if fields.get(name) is not None), None)


Place = tuple[str, int | None]  # the name of the run's field, and the index where that has several parts


def choose(parts: dict[str, Any], before: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """Replaces names of kinds by parts.

    Where the run has a part of that kind, it stays unchanged. Otherwise the new part has the kind's defaults, and the
    values of the fields that it has in common with the part before it. In a field with several parts only fields that
    are parts of the run (Fractions) are kept, since a coefficient, say, belongs to its own term. An architecture that
    keeps k latents needs no terms, and has none unless they are given. A new part that aims at an L0 aims at the run's,
    unless another is given.

    Args:
        parts: parts, or names of kinds, by the names of the run's fields. Names are replaced in place.
        before: the parts of the run.
        changes: values by the names of fields of parts, for kinds that have no defaults.

    Returns:
        The names of the run's fields whose kinds were given by name.

    Raises:
        ValueError: for a kind that does not exist; it offers near names. For an architecture that needs a sparsity
            term, by name, in a run that has none.
    """
    chosen = set()
    former = [part for place in FAMILIES for part in (before[place] if place in SEVERAL else (before[place],))]
    aims = [part.l0_aim for part in former if part.l0_aim is not None]
    given = {field_of(name) for name in changes}

    def make(place: str, name: str) -> Part:
        one = (before[place],) if place not in SEVERAL else before[place]
        part = _of_kind(place, name, one, changes)
        if not aims or not part.aim or given & {"l0_target", part.aim} or any(part is other for other in former):
            return part
        fields = {field.name: field for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **{part.aim: _whole(aims[0], fields[part.aim])})

    for place in FAMILIES:
        value = parts[place]
        if place in SEVERAL:
            value = check_several(place, value)
            if any(isinstance(part, str) for part in value):
                chosen.add(place)
                parts[place] = tuple(make(place, part) if isinstance(part, str) else part for part in value)
        elif isinstance(value, str):
            chosen.add(place)
            parts[place] = make(place, value)
    keeps, kept = parts["autoencoder"], before["autoencoder"]
    if "autoencoder" in chosen and parts["sparsity"] is before["sparsity"]:
        if keeps.aim and not kept.aim:
            parts["sparsity"] = ()
        elif kept.aim and not keeps.aim and not parts["sparsity"]:
            raise ValueError(
                f"Run: {type(keeps).__name__} needs a sparsity term, and this run of {type(kept).__name__} has none: "
                'give one too, such as sparsity=("controlled", "revival")'
            )
    return chosen


def check_several(place: str, value: Any) -> tuple:
    """Returns the value of a field with several parts as a tuple.

    Raises:
        ValueError: for a value that is no tuple or list.
    """
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"Run: {place} is a tuple of parts, got {showing.kind(value)}: put it in a tuple")
    return tuple(value)


def _of_kind(place: str, name: str, before: Sequence[Part], changes: Mapping[str, Any]) -> Part:
    kind = FAMILIES[place].registry[name]
    for part in before:
        if type(part) is kind:
            return part
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for part in before:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name in fields and (place not in SEVERAL or isinstance(value, Fraction)):
                values.setdefault(field.name, _whole(value, fields[field.name]))
    given = {field_of(key): value for key, value in changes.items() if key.rpartition(".")[0] in ("", place, name)}
    values |= {field: value for field, value in given.items() if field in fields}
    for field in fields.values():
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"Run: {kind.__name__} has no default for {field.name}: give {place}.{field.name}")
    return kind(**values)


def _whole(value: Any, field: dataclasses.Field) -> Any:
    """Returns a whole number as an int where the field takes ints alone; other values stay unchanged."""
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer()
    # pyrefly: ignore[bad-argument-type]  a whole number
    return int(value) if whole and field.type is int else value


def by_part(
    parts: dict[str, Any], changes: Mapping[str, Any], run_fields: Sequence[str], chosen: Collection[str] = ()
) -> dict[Place, dict[str, Any]]:
    """Returns the changes for each part.

    Args:
        parts: the parts by the names of the run's fields; new parts are added to it.
        changes: values by the names of fields of parts: `beta2`, `optimizer.beta2` for the part in that field of the
            run, or `adam.beta2` for the part of that kind. `l0_target` is the field with the L0 that a part aims at.
        run_fields: the names of the run's own fields, for an error that offers near names.
        chosen: the names of the run's fields whose kinds the user has chosen: no other kind is added there.

    Raises:
        ValueError: for a field that no part has, or several have, and for a field that is given under two names.
    """
    by_place: dict[Place, dict[str, Any]] = {}
    names: dict[tuple[Place, str], str] = {}
    for name, value in changes.items():
        places = places_of(parts, name)
        if not places:
            _bring_in(parts, name, value, run_fields, chosen)
            places = places_of(parts, name)
        if len(places) > 1:
            several = ", ".join(place for place, _ in places)
            kinds = " or ".join(f"{kind}.{field_of(name)}" for kind in dict.fromkeys(_kinds_at(parts, places)))
            raise ValueError(
                f"Run: several parts ({several}) have a field {name!r}: replace the part itself, or give {kinds}"
            )
        (place,) = places
        part = _at(parts, place)
        fields = {field.name: field for field in dataclasses.fields(part)}
        field = field_of(name) if field_of(name) in fields else str(part.aim)
        if (before := names.setdefault((place, field), name)) != name:
            raise ValueError(
                f"Run: {before!r} and {name!r} are the same field of {type(part).__name__}: give one of them"
            )
        by_place.setdefault(place, {})[field] = _whole(value, fields[field]) if field == part.aim else value
    return by_place


def field_of(name: str) -> str:
    """Returns the field of a change: `beta2` of `optimizer.beta2`."""
    return name.rpartition(".")[2]


def kinds_with(name: str) -> list[tuple[str, type[Part]]]:
    """Returns the kinds of parts that have a field, each with the name of the run's field that takes it.

    Args:
        name: the name of a change, as in `by_part`.

    Example:
        >>> [(place, kind.__name__) for place, kind in kinds_with("frequency_limit")]
        [('sparsity', 'Frequency')]
    """
    within, _, field = name.rpartition(".")
    return [
        (place, kind)
        for place, family in FAMILIES.items()
        for kind_name, kind in family.registry.items()
        if within in ("", place, kind_name) and field in {f.name for f in dataclasses.fields(kind)}
    ]


def places_of(parts: Mapping[str, Any], name: str) -> list[Place]:
    """Returns the places of the parts that have the field of a change.

    Args:
        parts: the parts by the names of the run's fields.
        name: the name of a change, as in `by_part`.
    """
    within, _, field = name.rpartition(".")
    places: list[Place] = []
    for place in FAMILIES:
        for index, part in enumerate(parts[place] if place in SEVERAL else (parts[place],)):
            if not isinstance(part, Part):  # the run refuses it
                continue
            names = {f.name for f in dataclasses.fields(part)} | ({"l0_target"} if part.aim else set())
            if field in names and (within in ("", place) or within == part.kind):
                places.append((place, index if place in SEVERAL else None))
    return places


def _at(parts: Mapping[str, Any], place: Place) -> Part:
    name, index = place
    return parts[name] if index is None else parts[name][index]


def _kinds_at(parts: Mapping[str, Any], places: Sequence[Place]) -> list[str]:
    return [_at(parts, place).kind for place in places]


def comes_in(name: str, chosen: Collection[str] = ()) -> bool:
    """Returns whether a change for which the run has no part adds one: if a single kind has the field, and the kind is
    an objective or a sparsity term.

    Args:
        name: the name of a change, as in `by_part`. A kind's name before the field adds no part.
        chosen: as in `by_part`.
    """
    kinds = kinds_with(name)
    within = name.rpartition(".")[0]
    place = kinds[0][0] if len(kinds) == 1 else None
    return place in ("objective", "sparsity") and place not in chosen and within in ("", place)


def _bring_in(parts: dict[str, Any], name: str, value: Any, run_fields: Sequence[str], chosen: Collection[str]) -> None:
    """Adds a part of the only kind that has a field.

    Raises:
        ValueError: where no kind has the field, or several have it, and where another kind was chosen.
    """
    kinds = kinds_with(name)
    if not kinds:
        names = {
            f.name for family in FAMILIES.values() for k in family.registry.values() for f in dataclasses.fields(k)
        }
        near = difflib.get_close_matches(field_of(name), [*run_fields, *sorted(names)], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "run.fields() lists all fields"
        raise ValueError(f"Run has no field {name!r}, and no part has it: {hint}")
    place, kind = kinds[0]
    if len(kinds) > 1:
        names = ", ".join(kind.__name__ for _, kind in kinds)
        raise ValueError(f"Run: no part has a field {name!r}, but the kinds {names} have it: give {place} one of these")
    field = field_of(name)
    if not comes_in(name, chosen):
        before = parts[place] if place in SEVERAL else (parts[place],)
        names = ", ".join(type(part).__name__ for part in before) or f"a run with {place}=()"
        change = "the architecture" if place == "autoencoder" else "it"
        given = f"({kind.__name__}({field}=...),)" if place in SEVERAL else f"{kind.__name__}({field}=...)"
        raise ValueError(
            f"Run: {names} has no field {field!r}, which {kind.__name__} has: to change {change}, give {place}={given}"
        )
    if place in SEVERAL:
        parts[place] = (*parts[place], kind(**{field: value}))
        return
    kept = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(parts[place])}
    parts[place] = kind(**{n: getattr(parts[place], n) for n in kept}, **{field: value})
