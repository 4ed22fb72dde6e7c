"""Rules of `tap` for tools outside JAX's core that interpret programs: jet, sparsify, the checker of key reuse.

Each tool has a table of rules by primitive. To serve one more tool, add a function that is its rule, and a line in
`register`.
"""

from __future__ import annotations

import sys
from typing import Any

import jax

from mishax_lite import _jax_internals
from mishax_lite.mapping import Level
from mishax_lite.primitive import before_tapping, tap_p


def _jet(primals: list[Any], series: list[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    """Applies Taylor mode: a tap marks the value; its coefficients pass untouched, as tangents do."""
    return tap_p.bind(*primals, **params), list(series)


def _sparsify(environment: Any, *values: Any, tree: Any, levels: tuple[Level, ...], **params: Any) -> list[Any]:
    """Taps sparse arrays: the site's value is the sparse array itself, a pytree of its data and its indices."""
    transform = sys.modules["jax.experimental.sparse.transform"]
    arrays = transform.spvalues_to_arrays(environment, list(values))
    new_levels = tuple(_sparse_level(level, arrays) for level in levels)
    leaves, inner = jax.tree.flatten(jax.tree.unflatten(tree, arrays))
    outs = tap_p.bind(*leaves, tree=inner, levels=new_levels, **params)
    outs = tree.flatten_up_to(jax.tree.unflatten(inner, outs))
    return transform.arrays_to_spvalues(environment, outs)


def _sparse_level(level: Level, arrays: list[Any]) -> Level:
    """Returns a level for the data and the indices of sparse arrays: a batch axis is the same axis of each of them."""
    axes = [axis for axis, array in zip(level.axes, arrays, strict=True) for _ in jax.tree.leaves(array)]
    return level._replace(axes=tuple(axes))


def _register_sparse() -> None:
    """Enters the rules for sparse arrays once somebody has imported sparse: importing it takes half a second."""
    transform = sys.modules.get("jax.experimental.sparse.transform")
    if transform is not None:
        for table in (transform.sparse_rules_bcoo, transform.sparse_rules_bcsr):
            table.setdefault(tap_p, _sparsify)


def register() -> None:
    """Enters the rules of `tap` into the tools' tables."""
    _jax_internals.add_jet_rule(tap_p, _jet)
    _jax_internals.forward_keys(tap_p)
    before_tapping.append(_register_sparse)


register()
