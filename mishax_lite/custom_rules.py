"""Rebuilds calls of `jax.custom_jvp` and `jax.custom_vjp`, and keeps their rules.

Without differentiation the function runs; under differentiation its rule runs. A backward rule may run the function
again: the function's edits apply there, too. The rule says nothing of captured values, so these have the function's own
derivatives, as if it were written without the rule and returned them. Rules of the functions that it calls count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as extend_core
from jax.extend.core import primitives
from jax.interpreters import ad

from mishax_lite import _jax_internals, identity
from mishax_lite.frozen import Frozen, freeze, in_order
from mishax_lite.interpret import RULES, Run, interpret, placed
from mishax_lite.primitive import in_this_scope, watching
from mishax_lite.reading import MeshAxis


def _custom_jvp(run: Run, eqn, args, start, loops):
    old = eqn.params
    num_consts = old["num_consts"]
    frozen, function = _frozen_function(run, old["call_jaxpr"], start, loops)

    def rule(primals, tangents):
        (values, inputs), (value_tangents, input_tangents) = primals, tangents
        if not all(isinstance(t, SymbolicZero) for t in value_tangents):
            _refuse(frozen, "a value that an edit closes over")
        given = input_tangents[num_consts:]
        if not old["symbolic_zeros"]:
            given = _instantiated(given)
        zeros = [isinstance(t, SymbolicZero) for t in given]
        with watching():
            jaxpr, consts, out_zeros = _jax_internals.jvp_rule(old, zeros)
        actions, order = frozen.rule_run(values, jaxpr, num_consts)
        given = [t for t, zero in zip(given, zeros, strict=True) if not zero]
        results, captured = interpret(actions, jaxpr, consts, [*inputs[num_consts:], *given])
        outs, moved = results[: len(out_zeros)], iter(results[len(out_zeros) :])
        out_tangents = [_zeros(out) if zero else next(moved) for out, zero in zip(outs, out_zeros, strict=True)]
        captured_tangents = []
        if captured:
            capturing = lambda *inputs: function(values, list(inputs))[1]  # noqa: E731
            captured_tangents = jax.jvp(capturing, inputs, _instantiated(input_tangents))[1]
        return (outs, in_order(frozen, captured, order)), (out_tangents, captured_tangents)

    call = jax.custom_jvp(function)
    call.defjvp(rule, symbolic_zeros=True)
    return call(frozen.values, list(args))


def _custom_vjp(run: Run, eqn, args, start, loops):
    old = eqn.params
    num_consts, num_args = old["num_consts"], len(args)
    frozen, function = _frozen_function(run, old["call_jaxpr"], start, loops)

    def forward(values, inputs):
        if any(value.perturbed for value in values):
            _refuse(frozen, "a value that an edit closes over")
        if any(value.perturbed for value in inputs[:num_consts]):
            _refuse(frozen, "a value that the function closes over")
        perturbed = [value.perturbed for value in inputs[num_consts:]]
        values, inputs = ([x.value for x in group] for group in (values, inputs))
        with watching():
            jaxpr, consts = _jax_internals.forward_rule(old, perturbed)
        actions, order = frozen.rule_run(values, jaxpr, num_consts)
        results, captured = interpret(actions, jaxpr, consts, inputs[num_consts:])
        # Residuals that are inputs are not returned by the rule; `forwarded` says which input each is.
        _, residual_tree, forwarded = old["out_trees"]()
        returned = residual_tree.num_leaves - sum(f is not None for f in forwarded)
        outs, kept = results[returned:], iter(results[:returned])
        residuals = [next(kept) if f is None else inputs[f] for f in forwarded]
        return (outs, in_order(frozen, captured, order)), (residuals, values, inputs if captured else [])

    def backward(kept, cotangents):
        residuals, values, inputs = kept
        given, captured = cotangents
        moved, logs = [None] * num_args, None
        # Where only captured values move, JAX would not have called the rule of the function without captures. Called
        # with zeros, it may ask for a gradient that nobody needs: that of a while loop after the captured value.
        if not all(isinstance(ct, SymbolicZero) for ct in given):
            if not old["symbolic_zeros"]:
                given = _instantiated(given)
            actions = (lambda rule: frozen.backward_run(values, rule)) if frozen.programs else None
            moved, logs = _edited_backward_rule(old, residuals, given, actions)
            moved = [*[None] * num_consts, *moved]
        if not all(isinstance(ct, SymbolicZero) for ct in captured):
            capturing = lambda *inputs: function(values, list(inputs))[1]  # noqa: E731
            through = jax.vjp(capturing, *inputs)[1](_instantiated(captured))
            moved = [_sum(a, b) for a, b in zip(moved, through, strict=True)]
        moved = ([None] * len(frozen.values), moved)
        return (moved, logs) if _jax_internals.RULES_LOG else moved

    if _jax_internals.runs_in_shards():  # differentiated already, if at all; JAX has no symbolic zeros here
        return function(frozen.values, list(args))
    call = jax.custom_vjp(function)
    define = call.defvjp_with_logs if _jax_internals.RULES_LOG else call.defvjp
    define(forward, backward, symbolic_zeros=True)
    return call(frozen.values, list(args))


def _backward_later(run: Run, eqn, args, start, loops):
    """Rebuilds the backward rule of a custom_vjp that a custom_jvp's rule differentiates forwards, as with `jax.jvp`.

    JAX leaves the rule in the program as a Python function, and calls it when somebody transposes the program. The part
    of the function that it then runs again is edited. The present traces are gone by that time, so the values that the
    edits close over, and the indices of the loops around, become residuals.
    """
    old, count = eqn.params, eqn.params["num_res"]
    frozen, values = run.actions[start].backward
    indices = [index for index in loops if not isinstance(index, MeshAxis)]
    extra = [*values, *indices]

    def backward(*inputs):
        residuals, closed_over = inputs[:count], inputs[count : count + len(values)]
        numbers, cotangents = iter(inputs[count + len(values) : count + len(extra)]), inputs[count + len(extra) :]
        if not old["symbolic_zeros"]:
            cotangents = _instantiated(cotangents)
        around = tuple(index if isinstance(index, MeshAxis) else next(numbers) for index in loops)
        actions = lambda rule: frozen.backward_run(closed_over, rule, len(indices))  # noqa: E731
        moved, logs = _edited_backward_rule(old, residuals, cotangents, actions, around)
        types = iter(v.aval for v in eqn.invars[count:])
        types = [None if zero else next(types) for zero in old["in_zeros"]]
        moved = [ad.Zero(aval) if ct is None and aval else ct for ct, aval in zip(moved, types, strict=True)]
        return (moved, logs) if _jax_internals.RULES_LOG else moved

    params = _jax_internals.backward_params(old, in_this_scope(backward), len(extra))
    return _jax_internals.bind(eqn, [*args[:count], *extra, *args[count:]], params), []


def _frozen_function(run: Run, inner: Any, start: int, loops: tuple[Any, ...]) -> tuple[Frozen, Callable]:
    """Returns the actions in a function with a rule, and the function with them: of (closed-over values, inputs)."""
    frozen = freeze(run, inner.jaxpr, start, loops)
    return frozen, lambda values, inputs: interpret(frozen.run(values), inner.jaxpr, inner.consts, inputs)


def _edited_backward_rule(
    old: dict[str, Any],
    residuals: Sequence[Any],
    cotangents: Sequence[Any],
    actions: Callable[[extend_core.Jaxpr], Run] | None,
    loops: tuple[Any, ...] = (),
) -> tuple[list[Any], Any]:
    """Runs a backward rule, with the edits in the part of the function that it runs again.

    Args:
        old: the params with the rule.
        residuals: the rule's first arguments.
        cotangents: the rule's other arguments.
        actions: a function of the rule's program that returns the actions at its taps; None for no actions.
        loops: the indices of the loops around, within the edited function.

    Returns:
        The cotangents of the operands, None where they are zero, and the rule's logs.
    """
    count, given = len(residuals), [*residuals, *cotangents]
    # Symbolic zeros, and concrete numbers (a shape, a choice), stay unchanged.
    is_fixed = [not isinstance(x, jax.core.Tracer) for x in given]
    returned: list[Any] = []

    def rule(*arrays):
        arrays = iter(arrays)
        filled = [x if fixed else next(arrays) for x, fixed in zip(given, is_fixed, strict=True)]
        moved, logs = _jax_internals.backward_rule(old, filled[:count], filled[count:])
        leaves, tree = jax.tree.flatten(
            ([None if isinstance(ct, (ad.Zero, SymbolicZero)) else ct for ct in moved], logs)
        )
        returned[:] = [tree]
        return leaves

    arrays = [x for x, fixed in zip(given, is_fixed, strict=True) if not fixed]
    if actions is not None:
        with watching():
            types = [jax.typeof(x) for x in arrays]
            jaxpr, closed_over = _jax_internals.trace(rule, types, _jax_internals.no_debug_info(rule))
        leaves, _ = interpret(actions(jaxpr), jaxpr, (), [*closed_over, *arrays], loops=loops)
    else:
        leaves = rule(*arrays)
    return jax.tree.unflatten(returned[0], leaves)


def _refuse(frozen: Frozen, what: str) -> None:
    names = ", ".join(repr(frozen.actions[k].name) for k in sorted(frozen.programs)) or "none"
    raise ValueError(
        f"the derivative with respect to {what} is needed, but a custom derivative rule knows nothing of that value "
        f"(edited sites in this function: {names}); apply jax.lax.stop_gradient to the value first, or edit a site "
        "outside of the function"
    )


def _instantiated(tangents: Sequence[Any]) -> list[Any]:
    return [_zeros(t) if isinstance(t, SymbolicZero) else t for t in tangents]


def _zeros(value: Any) -> Any:
    """Returns zeros of the tangent type of a value, or in the place of a symbolic zero."""
    aval: Any = value.aval if isinstance(value, SymbolicZero) else jax.typeof(value).to_tangent_aval()
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, aval.dtype)
    return placed(jnp.zeros(aval.shape, aval.dtype), aval)


def _sum(a: Any, b: Any) -> Any:
    """Returns the sum of two cotangents of one value; None is zero, and so is the cotangent of an integer."""
    if a is None or b.dtype == jax.dtypes.float0:
        return b if a is None else a
    return a + b


RULES.update(
    {
        primitives.custom_jvp_call_p.name: _custom_jvp,
        primitives.custom_vjp_call_p.name: _custom_vjp,
        identity.BACKWARD: _backward_later,
    }
)
