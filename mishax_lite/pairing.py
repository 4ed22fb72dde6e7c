"""Pairs the taps of a function's rule with those of the function, where several have one name.

The rule is another program. Where it runs the whole function, the taps come in the function's order; but it may go
through layers from the last to the first, or run some of them alone. Three facts tell them apart: how a value is
computed from the inputs, which line of code called `tap`, and which values are computed from which others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jax.extend import core as extend_core
from jax.extend.core import primitives

from mishax_lite import _jax_internals
from mishax_lite.primitive import tap, tap_p
from mishax_lite.slopes import slope_p
from mishax_lite.survey import inner_jaxprs, survey, survey_equation


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a value.

    Attributes:
        formula: a hash of how the value is computed; equal for values computed in the same way. It ignores taps.
        taps: the positions of the taps that the value is computed from; through loops and branches, maybe too many.
    """

    formula: Hashable
    taps: frozenset[int] = frozenset()


def pair(
    function: extend_core.Jaxpr,
    ours: Sequence[int],
    rule: extend_core.Jaxpr,
    theirs: Sequence[int],
    alike: Callable[[int, int], bool],
    consts: int | None = None,
) -> list[int] | None:
    """Returns which tap of a function each tap of the same name in a rule is.

    Args:
        function: the function's program.
        ours: the positions of its taps of that name.
        rule: the rule's program.
        theirs: the positions of the rule's taps of that name.
        alike: whether it makes no difference which of two taps of the function a tap is.
        consts: how many inputs of the function are constants, if its other inputs are the first inputs of the rule.
            None if the inputs of the two are unrelated.

    Returns:
        For each of `theirs` one of `ours`; None if nobody can say.
    """
    named = consts is not None
    inputs = [_input(k - (consts or 0) if named else None, v) for k, v in enumerate(function.invars)]
    origins = [(walk(function, inputs), ours)]
    origins.append((walk(rule, [_input(k if named else None, v) for k, v in enumerate(rule.invars)]), theirs))
    ((before, formulas), (before_in_rule, formulas_in_rule)) = (
        ([origin.taps for origin in rows], [rows[position].formula for position in positions])
        for rows, positions in origins
    )
    whole_runs = len(theirs) // len(ours) if len(theirs) % len(ours) == 0 else 0
    in_order = [ours[k % len(ours)] for k in range(len(theirs))]
    if named and formulas == formulas_in_rule:
        return in_order
    told = (
        set(formulas_in_rule) <= set(formulas) if named else Counter(formulas_in_rule) == Counter(formulas * whole_runs)
    )
    if len(set(formulas)) == len(ours) and told:
        return [ours[formulas.index(formula)] for formula in formulas_in_rule]
    places, places_in_rule = ([_place(*x) for x in pairs] for pairs in (_each(function, ours), _each(rule, theirs)))
    if None not in places and len(set(places)) == len(ours) and set(places_in_rule) <= set(places):
        return [ours[places.index(place)] for place in places_in_rule]
    for start in range(0, len(theirs), len(ours)):
        run = zip(ours, theirs[start : start + len(ours)], strict=False)
        for (first, first_in_rule), (second, second_in_rule) in itertools.combinations(run, 2):
            sure = first in before[second] and first_in_rule in before_in_rule[second_in_rule]
            if not sure and not alike(first, second):
                return None
    return in_order if whole_runs else None


def _input(number: int | None, v: extend_core.Var) -> Origin:
    return Origin(hash(("input", number if number is None or number >= 0 else None, str(v.aval))))


def _each(jaxpr: extend_core.Jaxpr, positions: Sequence[int]) -> list[tuple[extend_core.Jaxpr, int]]:
    return [(jaxpr, position) for position in positions]


def _place(jaxpr: extend_core.Jaxpr, position: int) -> Hashable:
    """Returns the code and the instruction that called `tap`; None if JAX keeps no tracebacks."""
    return _jax_internals.caller(survey(jaxpr)[position].eqn, tap.__code__)


def walk(jaxpr: extend_core.Jaxpr, inputs: Sequence[Origin]) -> list[Origin]:
    """Returns, for each tap of the survey of a jaxpr, the origin of its value (of all its leaves together)."""
    rows: list[Origin] = []
    _walk(jaxpr, inputs, rows)
    return rows


def _walk(jaxpr: extend_core.Jaxpr, inputs: Sequence[Origin], rows: list[Origin]) -> list[Origin]:
    """Returns the origins of the outputs, and adds those of the taps to `rows`."""
    env = {v: _input(None, v) for v in jaxpr.constvars}
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(v) -> Origin:
        if isinstance(v, extend_core.Literal):
            return Origin(hash(("literal", np.asarray(v.val).tobytes(), str(v.aval))))
        return env[v]

    for eqn in jaxpr.eqns:
        given, position = [read(v) for v in eqn.invars], len(rows)
        if eqn.primitive is tap_p:
            rows.append(_of("tap", given))
            outs = [Origin(one.formula, one.taps | {position}) for one in given]
        elif survey_equation(eqn) and not inner_jaxprs(eqn):  # a slope, or a backward rule
            rows.append(_of("none", given))
            outs = given[len(eqn.params["moving"]) :] if eqn.primitive is slope_p else None
        else:
            outs = _inside(eqn, given, rows)
        if outs is None:
            params = "" if inner_jaxprs(eqn) else str(eqn.params)
            outs = [_of((eqn.primitive.name, params, k), given) for k in range(len(eqn.outvars))]
        through = frozenset(range(position, len(rows))) if eqn.primitive.name not in _DIRECT else frozenset()
        outs = [Origin(one.formula, one.taps | through) for one in outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _inside(eqn: extend_core.JaxprEqn, given: list[Origin], rows: list[Origin]) -> list[Origin] | None:
    """Returns the origins of the outputs of an equation with programs in it; None if its programs are unknown."""
    name, params = eqn.primitive.name, eqn.params
    inner = inner_jaxprs(eqn)
    if name in _DIRECT:
        return _walk(inner[0], given, rows)
    if eqn.primitive is primitives.scan_p:
        fixed, carry = _jax_internals.scan_counts(params)
        kinds = ["const"] * fixed + ["carry"] * carry + ["x"] * (len(given) - fixed - carry)
        outs = _walk(inner[0], [_of(kind, [one]) for kind, one in zip(kinds, given, strict=True)], rows)
        turns = params["length"], params["reverse"]
        return [_of(("scan", k < carry, turns), [one]) for k, one in enumerate(outs)]
    if eqn.primitive is primitives.while_p:
        ends = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = [_of("carry", [one]) for one in given[ends[1] :]]
        test = _walk(inner[0], [*given[: ends[0]], *carry], rows)
        return [_of("while", [one, *test]) for one in _walk(inner[1], [*given[ends[0] : ends[1]], *carry], rows)]
    if eqn.primitive is primitives.cond_p:
        branches = [_walk(branch, given[1:], rows) for branch in inner]
        return [_of("cond", [given[0], *ones]) for ones in zip(*branches, strict=True)]
    for program in inner:
        _walk(program, [_of((name, k), given) for k in range(len(program.invars))], rows)
    return None


def _of(what: Hashable, given: Sequence[Origin]) -> Origin:
    formula = hash((what, *(one.formula for one in given)))
    return Origin(formula, frozenset().union(*(one.taps for one in given)))


# Primitives whose equations have the inputs and outputs of their program.
_DIRECT = {
    "shard_map",
    primitives.jit_p.name,
    primitives.remat_p.name,
    primitives.call_p.name,
    primitives.closed_call_p.name,
    primitives.custom_jvp_call_p.name,
    primitives.custom_vjp_call_p.name,
}
