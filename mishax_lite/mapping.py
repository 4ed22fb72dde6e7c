"""Mapped axes: describes the `vmap`s around a tap, and runs a function under them again.

This file knows nothing of hooks: `primitive.py` notes the levels of a tap, `interpret.py` runs edits under them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mishax_lite import _jax_internals


class Level(NamedTuple):
    """One `vmap` around a tap.

    Attributes:
        axes: for each leaf of the tap the mapped axis, or None (counted in the value without the axes of the levels
            further out).
        size: the number of elements that it maps over.
        name: its `axis_name`, or None.
        spmd_axis_name: its `spmd_axis_name`, or None.
    """

    axes: tuple[int | None, ...]
    size: int
    name: Hashable = None
    spmd_axis_name: Any = None


def level(axis_data: Any, axes: Sequence[int | None]) -> Level | None:
    """Returns a batching rule's arguments as a level; None without a mapped leaf and a name, which a tap ignores."""
    name = _jax_internals.axis_name(axis_data)
    if name is None and all(axis is None for axis in axes):
        return None
    return Level(tuple(axes), axis_data.size, name, axis_data.spmd_name)


def under_levels(
    fun: Callable[..., list[Any]], levels: Sequence[Level], outputs: slice = slice(None)
) -> Callable[..., list[Any]]:
    """Returns a function of leaves, mapped as the tap with these levels is mapped.

    The names of the axes mean the same inside: `jax.lax.pmean(value, "batch")` is over the elements of that `vmap`.

    Args:
        fun: a function of the leaves without mapped axes.
        levels: the levels, outermost first.
        outputs: which of the leaves the function returns, with their mapped axes; all of them by default.
    """
    for one in reversed(levels):
        fun = jax.vmap(
            fun,
            in_axes=one.axes,
            out_axes=list(one.axes[outputs]),
            axis_name=one.name,
            axis_size=one.size,
            spmd_axis_name=one.spmd_axis_name,
        )
    return fun


def mapped_axes_first(leaves: Sequence[Any], levels: Sequence[Level]) -> list[Any]:
    """Moves the mapped axes of each leaf to its front, outermost first."""
    moved = []
    for k, leaf in enumerate(leaves):
        count = 0
        for one in levels:
            axis = one.axes[k]
            if axis is not None:
                leaf = jnp.moveaxis(leaf, axis + count, count) if axis else leaf
                count += 1
        moved.append(leaf)
    return moved


def advice(error: Exception, levels: Sequence[Level]) -> str:
    """Returns advice for an error of `under_levels` if an edit returned a mapped value for an unmapped one; else ""."""
    names = [one.name for one in levels if None in one.axes]
    if not names or not isinstance(error, ValueError) or "out_axes" not in str(error):
        return ""
    return (
        f" The value at this site is the same for all elements of a vmap (axis_name={names[0]!r}), so the edit must "
        "return one value for all of them: reduce its result, as with jax.lax.pmean, or edit a site that differs."
    )
