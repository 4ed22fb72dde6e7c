"""The families of parts that a run has, and which part a change by the name of a field is meant for."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

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
    """Returns the fields of the run that the record of a released autoencoder has, by name, as JSON values; empty where
    it has none.

    Args:
      training: the object in `Info.training`, also of an earlier version, which has a flat `config`.
    """
    if isinstance(facts := training.get("run"), Mapping):
        values = {name: value for name, value in facts.items() if name not in FAMILIES and name != "format"}
        for name in FAMILIES:
            several = facts.get(name) if name in SEVERAL else [facts.get(name)]
            several = [part for part in several or () if isinstance(part, Mapping)]
            values[name] = "+".join(str(part.get("kind")) for part in several)
            for part in several:
                for field, value in part.items():
                    if field != "kind":
                        values[field if field not in values else f"{part['kind']}.{field}"] = value
        return values
    config = training.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


Place = tuple[str, int | None]  # the name of the run's field, and the index where that has several parts


def by_part(parts: dict[str, Any], changes: Mapping[str, Any], own: Sequence[str]) -> dict[Place, dict[str, Any]]:
    """Returns which part gets which changes.

    Args:
      parts: by the names of the run's fields; parts that come in are put in it.
      changes: values by the names of fields of parts.
      own: the names of the run's own fields, for an error that offers near names.

    Raises:
      ValueError: for a field that no part has, or several.
    """
    by_place: dict[Place, dict[str, Any]] = {}
    for field, value in changes.items():
        places = _places(parts, field)
        if not places:
            _bring_in(parts, field, value, own)
            places = _places(parts, field)
        if len(places) > 1:
            names = ", ".join(name for name, _ in places)
            raise ValueError(f"Run: several parts ({names}) have a field {field!r}: replace the part that is meant")
        by_place.setdefault(places[0], {})[field] = value
    return by_place


def _places(parts: dict[str, Any], field: str) -> list[Place]:
    places = []
    for name in FAMILIES:
        for index, part in enumerate(parts[name] if name in SEVERAL else (parts[name],)):
            if field in {f.name for f in dataclasses.fields(part)}:
                places.append((name, index if name in SEVERAL else None))
    return places


def _bring_in(parts: dict[str, Any], field: str, value: Any, own: Sequence[str]) -> None:
    """Puts the one kind of part that has a field in its place.

    Raises:
      ValueError: where no kind has it, or several have.
    """
    kinds = [
        (name, kind)
        for name in ("autoencoder", "objective", "sparsity")
        for kind in FAMILIES[name].registry.values()
        if field in {f.name for f in dataclasses.fields(kind)}
    ]
    if not kinds:
        names = {
            f.name for family in FAMILIES.values() for k in family.registry.values() for f in dataclasses.fields(k)
        }
        names = [*own, *sorted(names)]
        near = difflib.get_close_matches(field, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "run.fields() has those that there are"
        raise ValueError(f"Run has no field {field!r}, and no part has: {hint}")
    if len(kinds) > 1:
        names = ", ".join(kind.__name__ for _, kind in kinds)
        raise ValueError(f"Run: no part has a field {field!r}, and {names} have: give {kinds[0][0]} one of these")
    ((name, kind),) = kinds
    if name == "autoencoder":
        raise ValueError(
            f"Run: {type(parts[name]).__name__} has no field {field!r}, which {kind.__name__} has: to change the "
            f"architecture, give autoencoder={kind.__name__}({field}=...)"
        )
    if name in SEVERAL:
        parts[name] = (*parts[name], kind(**{field: value}))
        return
    kept = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(parts[name])}
    parts[name] = kind(**{n: getattr(parts[name], n) for n in kept}, **{field: value})
