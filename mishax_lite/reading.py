"""Values of earlier sites, for edits that read them.

An edit with an attribute `reads`, names of sites, gets their values in `site.read`. They are values of the same run,
after other edits changed them. A value is visible if its tap stands in the program of the edit or in one around it; no
value is carried out of a loop's body, a branch or another jitted function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """A mesh axis that a `shard_map` has made manual, among the indices of the loops around.

    Attributes:
        name: the name of the axis.
        typed: whether the types of values say if they differ over it (`check_vma`).
    """

    name: str
    typed: bool


class Seen(NamedTuple):
    """The value at a tap that has run.

    Attributes:
        leaves: the leaves of the value.
        params: the params of the tap.
        loops: the indices of the loops around the tap.
    """

    leaves: list[Any]
    params: dict[str, Any]
    loops: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The taps whose values some edit reads, and the visible ones of these values.

    Attributes:
        positions: the positions of the taps.
        values: the visible values by position.
    """

    positions: frozenset[int] = frozenset()
    values: dict[int, Seen] = dataclasses.field(default_factory=dict)

    def inside(self) -> Reading:
        """Returns the reading for a program inside of this one: it sees these values, and its own stay inside."""
        return dataclasses.replace(self, values=dict(self.values)) if self.positions else self

    def note(self, position: int, leaves: list[Any], params: dict[str, Any], loops: tuple[Any, ...]) -> None:
        """Keeps the value at a tap if an edit reads it."""
        if position in self.positions:
            self.values[position] = Seen(leaves, params, loops)


NO_READING = Reading()


def read(
    reader: str,
    position: int,
    reads: Mapping[str, Sequence[int]],
    reading: Reading,
    loops: tuple[Any, ...],
    mapped: bool,
) -> dict[str, Any]:
    """Returns the values that the edit of one site reads, {name: value}.

    Args:
        reader: the name of the edited site.
        position: the position of its tap.
        reads: for each name the positions of its taps.
        reading: the visible values.
        loops: the indices of the loops around the edit.
        mapped: whether the edited value has axes of a vmap that the edit does not see.

    Raises:
        ValueError: for a value that is not visible.
    """
    values = {}
    for name, positions in reads.items():
        earlier = [k for k in positions if k < position]
        visible = [reading.values[k] for k in earlier if k in reading.values]
        if not visible or mapped or _hidden(visible[-1], loops):
            problem = _hidden(visible[-1], loops) if visible else _NOT_CARRIED if earlier else "which comes after it"
            raise ValueError(f"edit: the edit of site {reader!r} reads site {name!r}, {problem or _MAPPED}")
        values[name] = jax.tree.unflatten(visible[-1].params["tree"], visible[-1].leaves)
    return values


_NOT_CARRIED = (
    "whose value cannot be carried to it: one of them is in a loop, a branch, a jitted function or a derivative rule, "
    "and the other is outside; edit a function in which both stand in one program"
)
_MAPPED = "and one of them is in a vmap inside the function; edit the function inside the vmap"
_UNSHARDED = "which is outside of the shard_map around the edit: devices see only their parts of it there"


def _hidden(seen: Seen, loops: tuple[Any, ...]) -> str:
    """Returns why a value cannot be read inside of these loops; "" if it can."""
    if seen.params["levels"]:
        return _MAPPED
    return _UNSHARDED if any(isinstance(index, MeshAxis) for index in loops[len(seen.loops) :]) else ""
