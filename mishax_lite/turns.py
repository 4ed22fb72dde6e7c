"""Rebuilds while and cond: constructs whose insides run as often as the data say.

A value captured in a loop goes out with the number of turns: it is the last turn's value, or those of the first turns.
A value captured in a branch goes out with the fact whether the branch was taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from mishax_lite import _jax_internals
from mishax_lite.interpret import RULES, Run, interpret, placed, varying
from mishax_lite.nested import rebuilt_once, split, trace_closed, trace_inner
from mishax_lite.survey import Tap, branch_order, survey


class LoopValue(NamedTuple):
    """The value that `capture` returns for a site in a while loop.

    Attributes:
        value: with `loops="last"` the value of the last turn; with `loops=n` those of the first n turns, stacked on a
            leading axis. Zeros stand for turns that did not happen.
        count: int32 scalar, the number of turns; a site in the condition runs once more than the body.

    Example:
        >>> def f(x):
        ...     return jax.lax.while_loop(lambda x: x > 1, lambda x: mishax_lite.tap("half", x / 2), x)
        >>> out, values = mishax_lite.capture(f, "half", loops="last")(8.0)
        >>> float(values["half"].value), int(values["half"].count)
        (1.0, 3)
    """

    value: Any
    count: Any


class BranchValue(NamedTuple):
    """The value that `capture` returns for a site in a branch of a cond or switch.

    Attributes:
        value: the value; zeros if the branch was not taken.
        taken: bool scalar, whether the branch was taken.

    Example:
        >>> def f(x):
        ...     kept, flipped = (lambda x: mishax_lite.tap("kept", x)), (lambda x: mishax_lite.tap("flipped", -x))
        ...     return jax.lax.cond(x > 0, kept, flipped, x)
        >>> out, values = mishax_lite.capture(f, "*", loops="last")(-2.0)
        >>> bool(values["kept"].taken), float(values["flipped"].value)
        (False, 2.0)
    """

    value: Any
    taken: Any


def with_turns(value: Any, extras: Sequence[Any], turns: Sequence[str]) -> Any:
    """Returns a captured value with its numbers of turns: `extras` has one array for each of `turns`, inside out."""
    for extra, kind in zip(extras, reversed(turns), strict=True):
        value = LoopValue(value, extra) if kind == "while" else BranchValue(value, extra)
    return value


def _groups(taps: Sequence[Tap], captures: Sequence[bool], leaves: Sequence[Any]) -> list[list[Any]]:
    """Returns the leaves of the captured values, one list for each captured tap."""
    values = iter(leaves)
    return [[next(values) for _ in range(tap.size)] for tap, yes in zip(taps, captures, strict=True) if yes]


def _zeros(aval: Any, turns: int = 0) -> Any:
    """Returns zeros of a type, with a leading axis of `turns` if that is not 0."""
    shape = (turns, *aval.shape) if turns else aval.shape
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).shape[aval.ndim :]
        return jax.random.wrap_key_data(
            jnp.zeros((*shape, *words), jnp.uint32), impl=_jax_internals.key_implementation(aval.dtype)
        )
    zeros = jnp.zeros(shape, aval.dtype)
    return varying(zeros, aval) if turns else placed(zeros, aval)


def _while(run: Run, eqn, args, start, loops):
    """Rebuilds a while loop. The survey has the condition first, then the body. The carry keeps captured values."""
    old = eqn.params
    cond, body, n = old["cond_jaxpr"], old["body_jaxpr"], old["cond_nconsts"]
    middle = start + len(survey(cond.jaxpr))
    if any(run.captures(start, middle - start + len(survey(body.jaxpr)))):
        return _capturing_while(run, eqn, args, start, middle, loops)
    new_cond, extra_cond = trace_inner(run, cond, start, loops)
    new_body, extra_body = trace_inner(run, body, middle, loops)
    params = dict(
        old,
        cond_jaxpr=new_cond,
        body_jaxpr=new_body,
        cond_nconsts=len(extra_cond) + n,
        body_nconsts=len(extra_body) + old["body_nconsts"],
    )
    return _jax_internals.bind(eqn, [*extra_cond, *args[:n], *extra_body, *args[n:]], params), []


def _capturing_while(run: Run, eqn, args, start, middle, loops):
    """Rebuilds a while loop with captures.

    The carry begins with the number of turns and with the values captured in the condition and in the body so far. The
    condition runs a second time to carry its values out: before the loop, and at the end of each turn.
    """
    old = eqn.params
    cond, body = old["cond_jaxpr"], old["body_jaxpr"]
    n, m = old["cond_nconsts"], old["body_nconsts"]
    cond_taps, body_taps = survey(cond.jaxpr), survey(body.jaxpr)
    cond_captures, body_captures = run.captures(start, len(cond_taps)), run.captures(middle, len(body_taps))
    again = dataclasses.replace(run, copies=True)
    edits_only = dataclasses.replace(run, actions=[action.without_capture() for action in run.actions])

    def values_of_condition(consts, carry):
        if not any(cond_captures):
            return []
        return interpret(again, cond.jaxpr, cond.consts, [*consts, *carry], start, loops)[1]

    def turn_of_body(consts, carry):
        outs, captured = interpret(run, body.jaxpr, body.consts, [*consts, *carry], middle, loops)
        return [*outs, *captured]

    def kept(values, leaves, turn):
        """Returns the captured values of the turns so far and of this one, as far as they are kept."""
        if not run.turns:
            return list(leaves)
        return [value.at[turn].set(leaf, mode="drop") for value, leaf in zip(values, leaves, strict=True)]

    first = values_of_condition(args[:n], args[n + m :])
    types = trace_closed(lambda *inputs: turn_of_body(inputs[:m], inputs[m:]), body.in_avals, body)[0].out_avals
    in_cond = kept([_zeros(jax.typeof(leaf), run.turns) for leaf in first], first, 0)
    in_body = [_zeros(aval, run.turns) for aval in types[len(args) - n - m :]]
    args = [*args[: n + m], jnp.int32(0), *in_cond, *in_body, *args[n + m :]]
    ends = [n, n + m, n + m + 1, n + m + 1 + len(in_cond), n + m + 1 + len(in_cond) + len(in_body)]

    def parts(inputs):
        """Splits inputs into both programs' constants, the number of turns, both programs' captures, and the carry."""
        bounds = [0, *ends, len(inputs)]
        return [list(inputs[a:b]) for a, b in itertools.pairwise(bounds)]

    def goes_on(*inputs):
        cond_consts, _, _, _, _, carry = parts(inputs)
        return interpret(edits_only, cond.jaxpr, cond.consts, [*cond_consts, *carry], start, loops)[0]

    def turn(*inputs):
        cond_consts, body_consts, (count,), in_cond, in_body, carry = parts(inputs)
        outs = turn_of_body(body_consts, carry)
        carry, captured = outs[: len(carry)], outs[len(carry) :]
        in_cond = kept(in_cond, values_of_condition(cond_consts, carry), count + 1)
        return [count + 1, *in_cond, *kept(in_body, captured, count), *carry]

    def make():
        avals = [jax.typeof(value) for value in args]
        (new_cond, extra_cond), (new_body, extra_body) = (trace_closed(fun, avals, body) for fun in (goes_on, turn))
        return (new_cond, new_body, len(extra_cond)), [*extra_cond, *extra_body]

    (new_cond, new_body, rest), extra = rebuilt_once(run, [cond, body], start, make)
    consts = args[: n + m]
    params = dict(
        old,
        cond_jaxpr=new_cond,
        body_jaxpr=new_body,
        cond_nconsts=rest + len(consts),
        body_nconsts=len(extra) - rest + len(consts),
    )
    outs = _jax_internals.bind(eqn, [*extra[:rest], *consts, *extra[rest:], *consts, *args[n + m :]], params)
    _, _, (count,), in_cond, in_body, carry = parts([*consts, *outs])
    captured = []
    for group in _groups(cond_taps, cond_captures, in_cond):
        captured += [*group, count + 1]
    for group in _groups(body_taps, body_captures, in_body):
        captured += [*group, count]
    return carry, captured


def _cond(run: Run, eqn, args, start, loops):
    """Rebuilds a cond. All branches take the same operands and return the same values.

    So each branch gets the values that the edits of any branch close over, and returns zeros for the values captured in
    the others.
    """
    order, old = branch_order(eqn), eqn.params["branches"]

    def make():
        position, extras, programs = start, [], {}
        for k in order:
            new, extra = trace_inner(run, old[k], position, loops)
            taps = survey(old[k].jaxpr)
            groups = _groups(taps, run.captures(position, len(taps)), new.out_avals[len(eqn.outvars) :])
            programs[k] = new, slice(len(extras), len(extras) + len(extra)), groups
            extras, position = extras + extra, position + len(taps)
        return tuple(branch(k, programs, extras) for k in range(len(old))), extras

    def branch(k, programs, extras):
        new, closed_over, _ = programs[k]
        if not extras and not any(groups for _, _, groups in programs.values()):
            return new

        def fun(*inputs):
            outs = jax.core.eval_jaxpr(new.jaxpr, new.consts, *inputs[closed_over], *inputs[len(extras) :])
            outs, captured = outs[: len(eqn.outvars)], iter(outs[len(eqn.outvars) :])
            for other in order:
                for group in programs[other][2]:
                    outs += [next(captured) if other == k else _zeros(aval) for aval in group]
                    outs.append(jnp.bool_(other == k))
            return outs

        avals = [*map(jax.typeof, extras), *new.in_avals[closed_over.stop - closed_over.start :]]
        return trace_closed(fun, avals, new)[0]

    branches, extras = rebuilt_once(run, [old[k] for k in order], start, make)
    params = dict(eqn.params, branches=branches)
    return split(_jax_internals.bind(eqn, [args[0], *extras, *args[1:]], params), eqn)


RULES.update({primitives.while_p.name: _while, primitives.cond_p.name: _cond})
