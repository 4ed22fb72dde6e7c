"""Finding the taps of a traced program: which there are, in program order, and what stands around each."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from typing import Any

from jax.extend import core as extend_core
from jax.extend.core import primitives

from mishax_lite.primitive import tap_p


@dataclasses.dataclass(frozen=True)
class Tap:
    """One tap in a traced program.

    `name`: as tapped, with its scopes. `params`, `avals`: of the tap's equation. `loops`: how many scans stand around
    it. `uncapturable`: what forbids to carry the value out ("" if nothing does). `closed`: what forbids to change it.
    `again`: it is the recomputation, in a backward pass, of another tap. `absent`: it only says why there is no value.
    """

    name: str
    params: dict[str, Any]
    avals: tuple[Any, ...]
    loops: int = 0
    uncapturable: str = ""
    closed: str = ""
    again: bool = False
    absent: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is an occurrence of its name."""
        return not self.again and not self.absent


# Jaxprs never change once they are made, and JAX keeps those of jitted functions: each is surveyed once.
_surveys: weakref.WeakKeyDictionary[Any, tuple[Tap, ...]] = weakref.WeakKeyDictionary()


def survey(jaxpr: extend_core.Jaxpr) -> tuple[Tap, ...]:
    """All taps of a jaxpr and of the jaxprs inside it, in program order; `interpret` visits them in the same order.

    A function called twice counts twice, the body of a loop once, and each branch of a `cond` once.
    """
    found = _surveys.get(jaxpr)
    if found is None:
        found = _surveys[jaxpr] = tuple(tap for eqn in jaxpr.eqns for tap in survey_equation(eqn))
    return found


def survey_equation(eqn: extend_core.JaxprEqn) -> tuple[Tap, ...]:
    """The taps of one equation: itself, or those in the jaxprs that it holds."""
    if eqn.primitive is tap_p:
        avals = tuple(v.aval for v in eqn.invars)
        again, absent = eqn.params["again"], eqn.params["absent"]
        return (Tap(eqn.params["name"], eqn.params, avals, again=again, absent=absent),)
    if not eqn.params:
        return ()
    taps = [tap for jaxpr in inner_jaxprs(eqn) for tap in survey(jaxpr)]
    return tuple(_through(eqn, tap) for tap in taps) if taps else ()


def inner_jaxprs(eqn: extend_core.JaxprEqn) -> list[extend_core.Jaxpr]:
    """The jaxprs in the params of an equation, without constants, in program order."""
    if eqn.primitive is primitives.while_p:  # its params stand in the order of the alphabet; the condition comes first
        return [eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr]
    if eqn.primitive is primitives.cond_p:
        return [eqn.params["branches"][k].jaxpr for k in branch_order(eqn)]
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, extend_core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, extend_core.Jaxpr):
                found.append(item)
    return found


def branch_order(eqn: extend_core.JaxprEqn) -> list[int]:
    """The branches of a cond as its source has them: JAX puts that for True last, but traces it first."""
    branches = [branch.jaxpr for branch in eqn.params["branches"]]
    firsts = [min((tap.params["serial"] for tap in survey(branch)), default=-1) for branch in branches]
    return sorted(range(len(branches)), key=lambda k: firsts[k])


def _through(eqn: extend_core.JaxprEqn, tap: Tap) -> Tap:
    """A tap inside `eqn`, as it is seen from outside."""
    primitive = eqn.primitive
    if primitive is primitives.scan_p:
        return dataclasses.replace(tap, loops=tap.loops + 1)
    if primitive is primitives.while_p:
        return dataclasses.replace(tap, uncapturable=tap.uncapturable or "a while loop")
    if primitive is primitives.cond_p:
        return dataclasses.replace(tap, uncapturable=tap.uncapturable or "a branch of a cond or switch")
    if primitive is primitives.remat_p:
        return dataclasses.replace(tap, again=True) if eqn.params["differentiated"] else tap
    if primitive.name in _OPEN:
        return tap
    reason = f"the primitive {primitive.name!r}, which mishax_lite cannot rebuild"
    return dataclasses.replace(tap, uncapturable=reason, closed=reason)


# The primitives whose jaxprs `nested.py` and `custom_rules.py` can rebuild (that of shard_map is not exported).
_OPEN = {
    "shard_map",
    primitives.jit_p.name,
    primitives.scan_p.name,
    primitives.while_p.name,
    primitives.cond_p.name,
    primitives.remat_p.name,
    primitives.custom_jvp_call_p.name,
    primitives.custom_vjp_call_p.name,
    primitives.call_p.name,
    primitives.closed_call_p.name,
}


def numbered(taps: tuple[Tap, ...], firsts: dict[int, int]) -> list[str]:
    """What each tap is called: its name, or `name#k` where the name occurs more than once.

    Recomputations are no occurrences of their own; they are called what their first run is called (`firsts`, as of
    `recomputation.first_runs`).
    """
    totals = Counter(tap.name for tap in taps if tap.counts)
    seen: Counter[str] = Counter()
    names = [""] * len(taps)
    for position, tap in enumerate(taps):
        if tap.counts:
            names[position] = f"{tap.name}#{seen[tap.name]}" if totals[tap.name] > 1 else tap.name
            seen[tap.name] += 1
    for position, first in firsts.items():
        names[position] = names[first]
    return names
