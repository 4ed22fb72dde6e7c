"""Slopes: where a derivative rule differentiates a part of its function, an edit changes the derivative, too.

Elsewhere a tap marks a value and lets tangents pass untouched, since a program that was differentiated before it was
edited has the derivatives of the old program. But a derivative rule belongs to its function: when the function is
edited, the rule must be that of the edited function. So a tap that is differentiated inside a rule leaves a `slope` in
the tangents, a linear identity, and the edit replaces it by the edit's own derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir

from mishax_lite import identity
from mishax_lite.mapping import level, under_levels

slope_p = extend_core.Primitive(identity.SLOPE)
slope_p.multiple_results = True

# Operands: the leaves of the tap's value, then the tangents of those that have one (`moving`). `transposed`: cotangents
# go back. `twice`: the slope was differentiated again. `name`, `path`, `branches`, `tree`, `levels`: those of the tap;
# a level has an axis for each operand.


def slope(values: Sequence[Any], tangents: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Returns the tangents of a tap's value, marked for the edit of that tap; symbolic zeros if all of them are."""
    if all(type(t) is ad.Zero for t in tangents):
        return list(tangents)
    moving = tuple(jnp.issubdtype(jnp.result_type(value), jnp.inexact) for value in values)
    given = [ad.instantiate_zeros(t) for t, yes in zip(tangents, moving, strict=True) if yes]
    kept = {name: params[name] for name in ("name", "path", "branches", "tree")}
    marked = iter(slope_p.bind(*values, *given, **kept, levels=(), moving=moving, transposed=False, twice=False))
    return [next(marked) if yes else t for t, yes in zip(tangents, moving, strict=True)]


def derivative(edit: Callable[[list[Any]], list[Any]], operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Applies the derivative of an edit to the tangents, or cotangents, at a slope.

    Args:
        edit: the edit, a function of the leaves without mapped axes.
        operands: the slope's operands.
        params: the slope's params.
    """
    moving = params["moving"]
    if params["twice"]:
        raise ValueError(
            f"edit: site {params['name']!r} is differentiated twice where a custom derivative rule differentiates its "
            "function, which an edit cannot follow; edit a site outside of that function"
        )

    def unmapped(*operands):
        values, moved = operands[: len(moving)], operands[len(moving) :]
        still = [value for value, yes in zip(values, moving, strict=True) if not yes]

        def of_moving(*floats):
            floats, others = iter(floats), iter(still)
            edited = edit([next(floats) if yes else next(others) for yes in moving])
            return [leaf for leaf, yes in zip(edited, moving, strict=True) if yes]

        floats = tuple(value for value, yes in zip(values, moving, strict=True) if yes)
        if params["transposed"]:
            return list(jax.vjp(of_moving, *floats)[1](list(moved)))
        return jax.jvp(of_moving, floats, tuple(moved))[1]

    return under_levels(unmapped, params["levels"], outputs=slice(len(moving), None))(*operands)


@slope_p.def_impl
def _run(*operands, moving, **params):
    return list(operands[len(moving) :])


@slope_p.def_abstract_eval
def _types(*avals, moving, **params):
    return list(avals[len(moving) :])


mlir.register_lowering(slope_p, lambda ctx, *operands, moving, **params: operands[len(moving) :])


def _jvp(primals, tangents, **params):
    if not all(type(t) is ad.Zero for t in tangents[: len(params["moving"])]):
        params = {**params, "twice": True}
    moved = [ad.instantiate_zeros(t) for t in tangents[len(params["moving"]) :]]
    values = primals[: len(params["moving"])]
    return slope_p.bind(*primals, **params), slope_p.bind(*values, *moved, **params)


def _transpose(cotangents, *operands, moving, transposed, **params):
    values, moved = operands[: len(moving)], operands[len(moving) :]
    given = [
        ad.instantiate_zeros(ct) if ad.is_undefined_primal(t) or type(ct) is ad.Zero else ct
        for ct, t in zip(cotangents, moved, strict=True)
    ]
    back = slope_p.bind(*values, *given, **params, moving=moving, transposed=not transposed)
    return [*[None] * len(moving), *back]


def _batch(axis_data, operands, axes, *, moving, levels, **params):
    """Batches a slope. An edit may mix the leaves, so where one value is mapped, all tangents are."""
    count = len(moving)
    if any(axis is not None for axis in axes[:count]):
        moved = [
            jnp.broadcast_to(x, (axis_data.size, *x.shape)) if axis is None else x
            for x, axis in zip(operands[count:], axes[count:], strict=True)
        ]
        operands = [*operands[:count], *moved]
        axes = [*axes[:count], *(0 if axis is None else axis for axis in axes[count:])]
    new = level(axis_data, axes)
    outs = slope_p.bind(*operands, moving=moving, levels=levels if new is None else (new, *levels), **params)
    return outs, list(axes[count:])


ad.primitive_jvps[slope_p] = _jvp
ad.primitive_transposes[slope_p] = _transpose
batching.fancy_primitive_batchers[slope_p] = _batch
