"""`gradients`: the derivatives of a function's output with respect to the values at its sites."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mishax_lite import _jax_internals
from mishax_lite.interpret import NOTHING, Action, LeafEdit, Run, interpret
from mishax_lite.reading import MeshAxis
from mishax_lite.tracing import Traced, captured_arrays, checked_patterns, trace


def gradients(fn: Callable[..., Any], patterns: str | Iterable[str]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Makes `fn` return, beside its output, the gradient of that output with respect to the value at each site.

    The gradient at a site is the gradient with respect to a zero that is added to the value. It covers every use of the
    value, and nothing before the site. All sites come from one forward and one backward pass.

    Args:
        fn: a function of JAX arrays that returns a floating-point scalar, or a pair of it and anything else.
        patterns: as for `capture`. A pattern for many sites leaves out those of integers and booleans.

    Returns:
        A function of the same arguments that returns `(out, {name: gradient})`, in program order. A gradient has the
        shape and dtype of the value that `capture` returns: one for each turn of a scan, one for each lane of a vmap.
        The function traces `fn` on each call, so wrap it in `jax.jit`.

    Raises:
        ValueError: when called, for an output that is no scalar, for a pattern that matches no site, and for a site
            that has no gradient: of integers, in a while loop (which has no backward pass), in a branch that vmap made
            into a select, or in a function with a derivative rule of its own (which says nothing of the values inside).

    Example:
        >>> def f(x):
        ...     return (mishax_lite.tap("doubled", 2 * x) ** 2).sum()
        >>> out, by_site = jax.jit(mishax_lite.gradients(f, "doubled"))(jnp.array([1.0, 3.0]))
        >>> print(out, by_site["doubled"])
        40.0 [ 4. 12.]
    """
    patterns = checked_patterns("gradients", patterns)

    @functools.wraps(fn, updated=())
    def differentiated(*args, **kwargs):
        traced = trace(fn, args, kwargs)
        traced.output.check()
        chosen = _chosen(traced, patterns)
        shapes = jax.eval_shape(lambda inputs: captured_arrays(traced, chosen, inputs)[1], traced.inputs)
        zeros = [
            [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves[: len(tap.avals)]]
            for tap, leaves in zip(itertools.compress(traced.taps, chosen), shapes, strict=True)
        ]

        def run(zeros):
            added = iter(zeros)
            actions = [
                Action(name, edit=_add(next(added))) if yes else NOTHING
                for name, yes in zip(traced.names, chosen, strict=True)
            ]
            for position, first in traced.firsts.items():
                if not traced.taps[position].is_slope:
                    actions[position] = actions[first]
            outs, _ = interpret(Run(actions), traced.jaxpr, (), traced.inputs)
            return _scalar(traced.peek(traced.output(outs))), outs

        by_tap, outs = jax.grad(run, has_aux=True)(zeros)
        taps, names = itertools.compress(traced.taps, chosen), itertools.compress(traced.names, chosen)
        values = [jax.tree.unflatten(tap.params["tree"], leaves) for tap, leaves in zip(taps, by_tap, strict=True)]
        return traced.result(outs), dict(zip(names, values, strict=True))

    return differentiated


def _scalar(out: Any) -> Any:
    """Returns the scalar that is differentiated: the output, or the first of a pair."""
    value = out[0] if isinstance(out, tuple) and len(out) == 2 else out
    if not isinstance(value, jax.Array) or value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        got = (
            f"an array of shape {value.shape} and dtype {value.dtype}"
            if isinstance(value, jax.Array)
            else f"{value!r:.80}"
        )
        raise ValueError(
            f"gradients: the function must return a floating-point scalar, or a pair of one and something else; got {got}"  # noqa: E501
        )
    return value


def _chosen(traced: Traced, patterns: list[str]) -> list[bool]:
    chosen = [False] * len(traced.taps)
    for pattern in patterns:
        positions = traced.reachable(pattern)
        floating = [p for p in positions if all(jnp.issubdtype(a.dtype, jnp.floating) for a in traced.taps[p].avals)]
        if not floating:
            dtypes = ", ".join(str(aval.dtype) for aval in traced.taps[positions[0]].avals)
            raise ValueError(
                f"gradients: site {traced.names[positions[0]]!r} holds {dtypes}, which has no gradient; name a site of "
                "floating-point values"
            )
        for position in floating:
            tap = traced.taps[position]
            if "while" in tap.turns:
                raise ValueError(
                    f"gradients: site {traced.names[position]!r} is in a while loop, which JAX cannot differentiate "
                    "backwards; use a scan, or a fori_loop with a fixed number of turns"
                )
            if tap.ruled:
                raise ValueError(
                    f"gradients: site {traced.names[position]!r} is in a function with a derivative rule of its own "
                    "(jax.custom_jvp or jax.custom_vjp), which says nothing of the values inside; name a site outside"
                )
            traced.check_capture(position, pattern, "last")
            traced.check_edit(position, pattern)
            chosen[position] = True
    return chosen


def _add(zeros: list[Any]) -> LeafEdit:
    """Returns an edit that adds zeros to the leaves of a tap; they have the form that `capture` returns."""

    def edit(leaves: list[Any], params: dict[str, Any], loops: tuple[Any, ...], _) -> list[Any]:
        levels = [[level.axes[k] for level in params["levels"]] for k in range(len(leaves))]
        return [leaf + _part(zero, leaf, axes, loops) for leaf, zero, axes in zip(leaves, zeros, levels, strict=True)]

    return edit


def _part(zero: Any, leaf: Any, levels: list[int | None], loops: tuple[Any, ...]) -> Any:
    """Returns the part of `zero` for this turn of the loops and this shard, with the leaf's mapped axes."""
    for index in loops:
        if not zero.shape[0]:  # a loop without turns, in which nothing is computed
            zero = jnp.zeros(zero.shape[1:], zero.dtype)
        elif not isinstance(index, MeshAxis):
            zero = jax.lax.dynamic_index_in_dim(zero, index, keepdims=False)
        elif index.name in _jax_internals.varying_axes(leaf) or not index.typed:
            zero = jax.lax.dynamic_index_in_dim(zero, jax.lax.axis_index(index.name), keepdims=False)
        else:  # the same on all devices, and so is its gradient
            zero = zero.sum(0)
    axes = [axis for axis in levels if axis is not None]
    for number, axis in reversed(list(enumerate(axes))):
        zero = jnp.moveaxis(zero, number, number + axis)
    return zero
