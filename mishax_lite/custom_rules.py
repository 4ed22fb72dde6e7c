"""Rebuilding `jax.custom_jvp` and `jax.custom_vjp` calls with their rules kept.

The function and the rule are two programs. A tap in the rule's program stands for the tap of the same name in the
function's, the k-th for the k-th. Not differentiated, the function runs; differentiated, the rule does.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as extend_core
from jax.extend.core import primitives
from jax.interpreters import ad

from mishax_lite import _jax_internals
from mishax_lite.interpret import NOTHING, RULES, Action, Run, interpret
from mishax_lite.survey import Tap, survey


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """The actions in a function with a rule, made independent of the trace that is running now.

    A rule runs when the call is differentiated, which may be long after the traced values that an edit closes over are
    gone. So each edit is traced now; what it closes over (`values`) becomes an argument of the call.
    """

    taps: tuple[Tap, ...]
    actions: tuple[Action, ...]
    programs: dict[int, tuple[extend_core.Jaxpr, slice]]
    values: list[Any]

    def run(self, values: Sequence[Any], taps: tuple[Tap, ...] | None = None) -> tuple[Run, list[int]]:
        """The actions for the function, or for the rule if its `taps` are given, with these values closed over.

        Returns:
            The run, and the position in the function's survey of each tap that it captures, in its order.
        """
        positions = range(len(self.taps)) if taps is None else _partners(self.taps, taps)
        actions, captured = [], []
        for k, position in enumerate(positions):
            if position is None:
                actions.append(NOTHING)
                continue
            action = self.actions[position]
            if position in self.programs:
                action = dataclasses.replace(action, edit=self._edit(position, values))
            if taps is not None and (action.edit or action.capture):
                _check_same(action.name, self.taps[position], taps[k])
            if action.capture:
                captured.append(position)
            actions.append(action)
        missing = {k for k, action in enumerate(self.actions) if action.edit or action.capture} - set(positions)
        if missing:
            names = ", ".join(repr(self.actions[k].name) for k in sorted(missing))
            raise ValueError(
                f"site {names} is in a function with a custom derivative rule, but not in the rule; while "
                "differentiating only the rule runs, so tap the value in the rule (the `fwd` of a custom_vjp) too, or "
                "leave the site out"
            )
        return Run(tuple(actions)), captured

    def _edit(self, position: int, values: Sequence[Any]):
        jaxpr, own = self.programs[position]

        def edit(leaves, params, loops):
            return jax.core.eval_jaxpr(jaxpr, (), *values[own], *loops, *leaves)

        return edit


def _freeze(run: Run, taps: tuple[Tap, ...], start: int, loops: tuple[Any, ...], debug_info: Any) -> _Frozen:
    actions = tuple(run.actions[start : start + len(taps)])
    programs, values = {}, []
    for position, (tap, action) in enumerate(zip(taps, actions, strict=True)):
        if action.edit is None:
            continue

        def fun(*inputs, tap=tap, action=action):
            own, leaves = inputs[: tap.loops], inputs[tap.loops :]
            return action.edit(list(leaves), tap.params, (*loops, *own))

        avals = [jax.core.ShapedArray((), jnp.int32)] * tap.loops + list(tap.avals)
        jaxpr, extra = _jax_internals.trace(fun, avals, _jax_internals.unknown_names(debug_info))
        programs[position] = (jaxpr, slice(len(values), len(values) + len(extra)))
        values.extend(extra)
    return _Frozen(taps, actions, programs, values)


def _partners(function: tuple[Tap, ...], rule: tuple[Tap, ...]) -> list[int | None]:
    """For each tap of the rule, the position of the tap of the function that it stands for, or None.

    Rules are traced late, perhaps outside of the scopes of the function: names are compared without prefixes.
    """
    places, seen = {}, Counter()
    for position, tap in enumerate(function):
        local = tap.name.removeprefix(tap.params["prefix"])
        places[local, seen[local]] = position
        seen[local] += 1
    seen, found = Counter(), []
    for tap in rule:
        local = tap.name.removeprefix(tap.params["prefix"])
        found.append(places.get((local, seen[local])))
        seen[local] += 1
    return found


def _check_same(name: str, function: Tap, rule: Tap) -> None:
    ours, theirs = ([(a.shape, a.dtype) for a in tap.avals] for tap in (function, rule))
    if ours != theirs or function.loops != rule.loops:
        raise ValueError(
            f"site {name!r}: the value has (shape, dtype) {theirs} in {rule.loops} loops in the custom derivative "
            f"rule, but {ours} in {function.loops} loops in the function; tap the same value in both"
        )


def _in_order(frozen: _Frozen, leaves: list[Any], order: list[int]) -> list[Any]:
    """What the rule captured, in the order of the function's taps."""
    groups, values = {}, iter(leaves)
    for position in order:
        groups[position] = [next(values) for _ in frozen.taps[position].avals]
    return [leaf for position in sorted(groups) for leaf in groups[position]]


def _refuse(frozen: _Frozen, what: str) -> None:
    names = ", ".join(repr(frozen.actions[k].name) for k in sorted(frozen.programs)) or "none"
    raise ValueError(
        f"{what} is differentiated with respect to, but a custom derivative rule knows nothing of it (edited sites in "
        f"this function: {names}); apply jax.lax.stop_gradient to it before it is closed over, or edit a site outside "
        "of the function"
    )


def _zeros(like: Any) -> Any:
    """A zero tangent or cotangent for a primal value or a SymbolicZero."""
    if isinstance(like, SymbolicZero):
        shape, dtype = like.aval.shape, like.aval.dtype
    else:
        shape, dtype = jnp.shape(like), jax.typeof(like).to_tangent_aval().dtype
    return np.zeros(shape, dtype) if dtype == jax.dtypes.float0 else jnp.zeros(shape, dtype)


def _custom_jvp(run: Run, eqn, args, start, loops):
    old = eqn.params
    inner, num_consts = old["call_jaxpr"], old["num_consts"]
    frozen = _freeze(run, survey(inner.jaxpr), start, loops, inner.jaxpr.debug_info)

    @jax.custom_jvp
    def call(values, inputs):
        actions, _ = frozen.run(values)
        return interpret(actions, inner.jaxpr, inner.consts, inputs)

    def rule(primals, tangents):
        (values, inputs), (value_tangents, input_tangents) = primals, tangents
        if not all(isinstance(t, SymbolicZero) for t in value_tangents):
            _refuse(frozen, "a value that an edit closes over")
        inputs, given = inputs[num_consts:], input_tangents[num_consts:]
        if not old["symbolic_zeros"]:
            given = [_zeros(t) if isinstance(t, SymbolicZero) else t for t in given]
        zeros = [isinstance(t, SymbolicZero) for t in given]
        jaxpr, consts, out_zeros = old["jvp_jaxpr_fun"].call_wrapped(*zeros)
        actions, order = frozen.run(values, survey(jaxpr))
        given = [t for t, zero in zip(given, zeros, strict=True) if not zero]
        results, captured = interpret(actions, jaxpr, consts, [*inputs, *given])
        outs, moved = results[: len(out_zeros)], iter(results[len(out_zeros) :])
        captured = _in_order(frozen, captured, order)
        out_tangents = [_zeros(out) if zero else next(moved) for out, zero in zip(outs, out_zeros, strict=True)]
        return (outs, captured), (out_tangents, [_zeros(leaf) for leaf in captured])

    call.defjvp(rule, symbolic_zeros=True)
    return call(frozen.values, list(args))


def _custom_vjp(run: Run, eqn, args, start, loops):
    old = eqn.params
    inner, num_consts = old["call_jaxpr"], old["num_consts"]
    frozen = _freeze(run, survey(inner.jaxpr), start, loops, inner.jaxpr.debug_info)

    @jax.custom_vjp
    def call(values, inputs):
        actions, _ = frozen.run(values)
        return interpret(actions, inner.jaxpr, inner.consts, inputs)

    def forward(values, inputs):
        if any(value.perturbed for value in values):
            _refuse(frozen, "a value that an edit closes over")
        if any(value.perturbed for value in inputs[:num_consts]):
            _refuse(frozen, "a value that the function closes over")
        perturbed = [value.perturbed for value in inputs[num_consts:]]
        values, inputs = ([x.value for x in group] for group in (values, inputs))
        jaxpr, consts = old["fwd_jaxpr_thunk"].call_wrapped(*perturbed)
        actions, order = frozen.run(values, survey(jaxpr))
        results, captured = interpret(actions, jaxpr, consts, inputs[num_consts:])
        # Residuals that are inputs are not returned by the rule; `forwarded` says which input each is.
        _, residual_tree, forwarded = old["out_trees"]()
        own = residual_tree.num_leaves - sum(f is not None for f in forwarded)
        returned = iter(results[:own])
        residuals = [next(returned) if f is None else inputs[f] for f in forwarded]
        return (results[own:], _in_order(frozen, captured, order)), residuals

    def backward(residuals, cotangents):
        # What is captured has no rule: its cotangent goes nowhere, as if stop_gradient stood on it.
        given, _ = cotangents
        if not old["symbolic_zeros"]:
            given = [_zeros(ct) if isinstance(ct, SymbolicZero) else ct for ct in given]
        found = old["bwd"].call_wrapped(*residuals, *given)
        found = [None if isinstance(ct, (ad.Zero, SymbolicZero)) else ct for ct in found]
        return [None] * len(frozen.values), [None] * num_consts + found

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call(frozen.values, list(args))


RULES.update({primitives.custom_jvp_call_p.name: _custom_jvp, primitives.custom_vjp_call_p.name: _custom_vjp})
