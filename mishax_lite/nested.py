"""Rebuilding equations that hold jaxprs: jit, scan, while, cond, remat, shard_map and calls.

Each rule traces the inner jaxpr anew with the actions in it, and binds the same primitive with the same params but for
what must change: inputs for the values that edits close over, and outputs for what is captured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as extend_core
from jax.extend.core import primitives
from jax.sharding import PartitionSpec

from mishax_lite import _jax_internals
from mishax_lite._jax_internals import UNSPECIFIED
from mishax_lite.interpret import RULES, Run, interpret
from mishax_lite.primitive import is_watched
from mishax_lite.survey import branch_order, survey


def trace_inner(
    run: Run,
    jaxpr: extend_core.Jaxpr,
    consts: Sequence[Any],
    start: int,
    loops: tuple[Any, ...],
    avals: Sequence[Any] | None = None,
    arrange: Callable[[list[Any]], tuple[list[Any], tuple[Any, ...]]] | None = None,
) -> tuple[extend_core.Jaxpr, list[Any]]:
    """Traces `jaxpr` with its actions.

    Args:
        run, start, loops: as for `interpret`.
        jaxpr, consts: the inner program.
        avals: the types of the inputs of the new jaxpr; those of the old one by default.
        arrange: of the inputs of the new jaxpr, those of the old one and the indices of further loops.

    Returns:
        The new jaxpr, which returns what is captured after its outputs, and the values of its first inputs: those
        that edits close over.
    """
    avals = [v.aval for v in jaxpr.invars] if avals is None else avals

    def fun(*inputs):
        old, more = arrange(list(inputs)) if arrange else (list(inputs), ())
        outs, captured = interpret(run, jaxpr, consts, old, start, (*loops, *more))
        return [*outs, *captured]

    return _jax_internals.trace(fun, avals, _jax_internals.unknown_names(jaxpr.debug_info))


def _split(outs: list[Any], eqn: extend_core.JaxprEqn) -> tuple[list[Any], list[Any]]:
    return outs[: len(eqn.outvars)], outs[len(eqn.outvars) :]


def closed(jaxpr: extend_core.Jaxpr) -> extend_core.ClosedJaxpr:
    return extend_core.ClosedJaxpr(jaxpr, ())


# What jit compiled is found again by the identity of its jaxpr. Captures depend on nothing but the jaxpr and on which
# taps are captured, so that a second call of `capture(f)` outside jit finds the first call's programs.
_captured_jits: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _jit(run: Run, eqn, args, start, loops):
    inner = eqn.params["jaxpr"]
    count = len(survey(inner.jaxpr))
    if run.edits(start, count):
        jaxpr, extra = trace_inner(run, inner.jaxpr, inner.consts, start, loops)
        new = closed(jaxpr)
    else:
        known = _captured_jits.setdefault(inner, {})
        key = (run.captures(start, count), is_watched())
        if key not in known:
            jaxpr, extra = trace_inner(run, inner.jaxpr, inner.consts, start, loops)
            known[key] = (closed(jaxpr), extra)
        new, extra = known[key]
    more_in, more_out = len(extra), len(new.jaxpr.outvars) - len(eqn.outvars)
    old = eqn.params
    params = dict(
        old,
        jaxpr=new,
        donated_invars=(False,) * more_in + tuple(old["donated_invars"]),
        in_shardings=(UNSPECIFIED,) * more_in + tuple(old["in_shardings"]),
        in_layouts=(None,) * more_in + tuple(old["in_layouts"]),
        out_shardings=tuple(old["out_shardings"]) + (UNSPECIFIED,) * more_out,
        out_layouts=tuple(old["out_layouts"]) + (None,) * more_out,
    )
    return _split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _scan(run: Run, eqn, args, start, loops):
    """Captures come out stacked, like the `ys`; the index is one more of the `xs`, and so follows `reverse`."""
    old = eqn.params
    inner, fixed = old["jaxpr"], old["num_consts"] + old["num_carry"]
    indexed = run.edits(start, len(survey(inner.jaxpr)))
    avals = [v.aval for v in inner.jaxpr.invars]
    if indexed:
        index = jnp.arange(old["length"], dtype=jnp.int32)
        avals = [*avals[:fixed], jax.core.ShapedArray((), jnp.int32), *avals[fixed:]]
        args = [*args[:fixed], index, *args[fixed:]]

    def arrange(inputs):
        return (inputs[:fixed] + inputs[fixed + 1 :], (inputs[fixed],)) if indexed else (inputs, (None,))

    jaxpr, extra = trace_inner(run, inner.jaxpr, inner.consts, start, loops, avals, arrange)
    params = dict(old, jaxpr=closed(jaxpr), num_consts=len(extra) + old["num_consts"])
    if "linear" in old:  # gone since JAX 0.10
        linear = list(old["linear"])
        params["linear"] = (*[False] * len(extra), *linear[:fixed], *[False] * indexed, *linear[fixed:])
    return _split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _while(run: Run, eqn, args, start, loops):
    """The surveyed order is the condition first, then the body; nothing is captured in either."""
    old = eqn.params
    cond, body = old["cond_jaxpr"], old["body_jaxpr"]
    new_cond, extra_cond = trace_inner(run, cond.jaxpr, cond.consts, start, loops)
    new_body, extra_body = trace_inner(run, body.jaxpr, body.consts, start + len(survey(cond.jaxpr)), loops)
    n = old["cond_nconsts"]
    params = dict(
        old,
        cond_jaxpr=closed(new_cond),
        body_jaxpr=closed(new_body),
        cond_nconsts=len(extra_cond) + n,
        body_nconsts=len(extra_body) + old["body_nconsts"],
    )
    return _jax_internals.bind(eqn, [*extra_cond, *args[:n], *extra_body, *args[n:]], params), []


def _cond(run: Run, eqn, args, start, loops):
    """All branches take the same operands, so each gets the values that any branch's edits close over."""
    branches, extras = {}, []
    for k in branch_order(eqn):
        branch = eqn.params["branches"][k]
        jaxpr, extra = trace_inner(run, branch.jaxpr, branch.consts, start, loops)
        start += len(survey(branch.jaxpr))
        branches[k] = (jaxpr, slice(len(extras), len(extras) + len(extra)))
        extras.extend(extra)
    new = []
    for _, (jaxpr, own) in sorted(branches.items()):
        avals = [*map(jax.typeof, extras), *(v.aval for v in jaxpr.invars[own.stop - own.start :])]

        def fun(*inputs, jaxpr=jaxpr, own=own):
            return jax.core.eval_jaxpr(jaxpr, (), *inputs[own], *inputs[len(extras) :])

        again, _ = _jax_internals.trace(fun, avals, _jax_internals.unknown_names(jaxpr.debug_info))
        new.append(closed(again))
    return _jax_internals.bind(eqn, [args[0], *extras, *args[1:]], dict(eqn.params, branches=tuple(new))), []


def _remat(run: Run, eqn, args, start, loops):
    jaxpr, extra = trace_inner(run, eqn.params["jaxpr"], (), start, loops)
    prevent_cse = eqn.params["prevent_cse"]
    if isinstance(prevent_cse, tuple):  # since JAX 0.10, one flag per input
        prevent_cse = (True,) * len(extra) + prevent_cse
    params = dict(eqn.params, jaxpr=jaxpr, prevent_cse=prevent_cse)
    return _split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _call(run: Run, eqn, args, start, loops):
    """Calls without a meaning of their own are evaluated in place."""
    inner = eqn.params["call_jaxpr"]
    inner = inner if isinstance(inner, extend_core.ClosedJaxpr) else closed(inner)
    return interpret(run, inner.jaxpr, inner.consts, args, start, loops)


def _shard_map(run: Run, eqn, args, start, loops):
    """Through the public `jax.shard_map`, which knows what the axes of the mesh mean inside.

    Each captured shard gets one leading axis of size 1 per manual mesh axis; put together, they have its size.
    """
    old = eqn.params
    mesh, jaxpr = old["mesh"], old["jaxpr"]
    axes = old["manual_axes"] if "manual_axes" in old else old["newly_manual_axes"]  # renamed in JAX 0.10
    manual = [axis for axis in mesh.axis_names if axis in axes]

    def body(*inputs):
        outs, captured = interpret(run, jaxpr, (), list(inputs), start, loops)
        return outs, [leaf.reshape((1,) * len(manual) + leaf.shape) for leaf in captured]

    outs, captured = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=tuple(old["in_specs"]),
        out_specs=(list(old["out_specs"]), PartitionSpec(*manual)),
        check_vma=old["check_vma"],
        axis_names=frozenset(manual),
    )(*args)
    return outs, captured


RULES.update(
    {
        primitives.jit_p.name: _jit,
        primitives.scan_p.name: _scan,
        primitives.while_p.name: _while,
        primitives.cond_p.name: _cond,
        primitives.remat_p.name: _remat,
        primitives.call_p.name: _call,
        primitives.closed_call_p.name: _call,
        "shard_map": _shard_map,  # its primitive is not exported
    }
)
