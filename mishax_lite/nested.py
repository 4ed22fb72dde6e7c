"""Rebuilds equations that hold jaxprs: jit, scan, remat, shard_map and calls (`turns.py` has while and cond).

Each rule traces the inner jaxpr anew with the actions in it, and binds the same primitive. Its params change only as
far as they must: they gain inputs for the values that edits close over, and outputs for the captured values.
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
from mishax_lite.interpret import RULES, Run, interpret
from mishax_lite.primitive import is_watched
from mishax_lite.reading import MeshAxis
from mishax_lite.survey import survey

# JAX finds a compiled program by the identity of its jaxpr. A rebuilt program depends only on its jaxpr and on which
# taps are captured, so it is kept: a second call of `capture(f)` outside jit finds the first call's programs.
_rebuilt: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def rebuilt_once(
    run: Run,
    programs: Sequence[extend_core.ClosedJaxpr],
    start: int,
    make: Callable[[], tuple[Any, list[Any]]],
) -> tuple[Any, list[Any]]:
    """Returns the result of `make` for the actions in these programs, which is called only once if possible.

    Args:
        run: the actions.
        programs: programs that stand in a row.
        start: the position, in `run`, of their first tap.
        make: returns new programs, and the values of their first inputs: those that they close over.
    """
    count = sum(len(survey(program.jaxpr)) for program in programs)
    if run.edits(start, count):
        return make()
    versions = _rebuilt.setdefault(programs[0], {})
    key = (run.captures(start, count), is_watched(), run.turns, run.copies, *map(id, programs[1:]))
    if key not in versions:
        new, extra = make()
        if any(isinstance(value, jax.core.Tracer) for value in extra):
            return new, extra
        versions[key] = new, extra, programs[1:]  # held, so that nothing else gets their ids
    return versions[key][:2]


def trace_inner(
    run: Run,
    inner: extend_core.ClosedJaxpr,
    start: int,
    loops: tuple[Any, ...],
    avals: Sequence[Any] | None = None,
    arrange: Callable[[list[Any]], tuple[list[Any], tuple[Any, ...]]] | None = None,
) -> tuple[extend_core.ClosedJaxpr, list[Any]]:
    """Traces an inner program with its actions.

    Args:
        run: as for `interpret`.
        inner: the program.
        start: as for `interpret`.
        loops: as for `interpret`.
        avals: the types of the inputs of the new jaxpr; those of the old one by default.
        arrange: a function of the inputs of the new jaxpr that returns the inputs of the old one, and the indices of
            further loops.

    Returns:
        The new jaxpr, which returns the captured values after its outputs, and the values of its first inputs: those
        that edits close over.
    """

    def fun(*inputs):
        old, rest = arrange(list(inputs)) if arrange else (list(inputs), ())
        outs, captured = interpret(run, inner.jaxpr, inner.consts, old, start, (*loops, *rest))
        return [*outs, *captured]

    types = [v.aval for v in inner.jaxpr.invars] if avals is None else avals
    return rebuilt_once(run, [inner], start, lambda: trace_closed(fun, types, inner))


def trace_closed(
    fun: Callable[..., list[Any]], avals: Sequence[Any], old: extend_core.ClosedJaxpr
) -> tuple[extend_core.ClosedJaxpr, list[Any]]:
    """Traces the successor of an old program: returns a closed jaxpr, and the values of its first inputs."""
    jaxpr, extra = _jax_internals.trace(fun, avals, _jax_internals.unknown_names(old.jaxpr.debug_info))
    return closed(jaxpr), extra


def split(outs: list[Any], eqn: extend_core.JaxprEqn) -> tuple[list[Any], list[Any]]:
    """Splits the results of a rebuilt equation into its outputs and the values captured in it."""
    return outs[: len(eqn.outvars)], outs[len(eqn.outvars) :]


def closed(jaxpr: extend_core.Jaxpr) -> extend_core.ClosedJaxpr:
    """Returns a jaxpr without constants as a closed one."""
    return extend_core.ClosedJaxpr(jaxpr, ())


_closed: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def closed_once(jaxpr: extend_core.Jaxpr) -> extend_core.ClosedJaxpr:
    """Returns the same closed jaxpr for the same jaxpr, as long as somebody holds it."""
    reference = _closed.get(jaxpr)
    new = reference() if reference is not None else None
    if new is None:
        new = closed(jaxpr)
        _closed[jaxpr] = weakref.ref(new)
    return new


def _jit(run: Run, eqn, args, start, loops):
    new, extra = trace_inner(run, eqn.params["jaxpr"], start, loops)
    more_out = len(new.out_avals) - len(eqn.outvars)
    params = _jax_internals.jit_params(eqn.params, new, len(extra), more_out)
    return split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _scan(run: Run, eqn, args, start, loops):
    """Rebuilds a scan: captured values come out stacked, like the `ys`; the index is one of the `xs`, also reversed."""
    old = eqn.params
    inner, fixed = old["jaxpr"], sum(_jax_internals.scan_counts(old))
    indexed = run.edits(start, len(survey(inner.jaxpr)))
    avals = [v.aval for v in inner.jaxpr.invars]
    if indexed:
        index = jnp.arange(old["length"], dtype=jnp.int32)
        avals = [*avals[:fixed], jax.core.ShapedArray((), jnp.int32), *avals[fixed:]]
        args = [*args[:fixed], index, *args[fixed:]]

    def arrange(inputs):
        return (inputs[:fixed] + inputs[fixed + 1 :], (inputs[fixed],)) if indexed else (inputs, (None,))

    new, extra = trace_inner(run, inner, start, loops, avals, arrange)
    params = _jax_internals.scan_params(old, new, len(extra), int(indexed))
    return split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _remat(run: Run, eqn, args, start, loops):
    new, extra = trace_inner(run, closed_once(eqn.params["jaxpr"]), start, loops)
    params = _jax_internals.remat_params(eqn.params, new.jaxpr, len(extra))
    return split(_jax_internals.bind(eqn, [*extra, *args], params), eqn)


def _call(run: Run, eqn, args, start, loops, name="call_jaxpr"):
    """Evaluates calls without a meaning of their own in place."""
    inner = eqn.params[name]
    inner = inner if isinstance(inner, extend_core.ClosedJaxpr) else closed(inner)
    return interpret(run, inner.jaxpr, inner.consts, args, start, loops)


def _remat_opt(run: Run, eqn, args, start, loops):
    """Runs the forward rule of a `custom_vjp(..., optimize_remat=True)` in place; a checkpoint around runs it again."""
    return _call(run, eqn, args, start, loops, name="fwd_jaxpr")


def _shard_map(run: Run, eqn, args, start, loops):
    """Rebuilds through the public `jax.shard_map`, which knows what the axes of the mesh mean inside.

    Each captured shard gets a leading axis of size 1 for each manual mesh axis; put together, they have its size.
    """
    old = eqn.params
    mesh, jaxpr = old["mesh"], old["jaxpr"]
    axes = _jax_internals.manual_axes(old)
    manual = [axis for axis in mesh.axis_names if axis in axes]
    around = (*loops, *(MeshAxis(axis, old["check_vma"]) for axis in manual))

    def body(*inputs):
        outs, captured = interpret(run, jaxpr, (), list(inputs), start, around)
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
        primitives.remat_p.name: _remat,
        primitives.call_p.name: _call,
        primitives.closed_call_p.name: _call,
        "shard_map": _shard_map,  # its primitive is not exported
        "remat_opt": _remat_opt,
    }
)
