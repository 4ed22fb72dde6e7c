"""Finds the taps of a traced program, in program order, and the constructs around each."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from typing import Any

from jax.extend import core as extend_core
from jax.extend.core import primitives

from mishax_lite import _jax_internals, identity
from mishax_lite.primitive import tap_p
from mishax_lite.slopes import slope_p


@dataclasses.dataclass(frozen=True)
class Tap:
    """One tap in a traced program.

    Attributes:
        name: the name, with its scopes.
        eqn: the tap's equation.
        avals: the types of the leaves of its value.
        loops: how many scans stand around it.
        turns: the constructs around it that decide how often it runs, "while" or "cond", outermost first.
        uncapturable: the construct out of which its value cannot be carried ("" if it can).
        closed: the construct in which its value cannot be changed ("" if it can).
        ruled: whether it stands in a function with a derivative rule of its own.
        recomputed: whether it stands in a backward pass of `jax.checkpoint`, or is a copy that a hook made.
        absent: why the value is missing; "" for a value.
        is_slope: whether it marks the derivative of another tap's value, with the same key (`slopes.py`).
        is_backward: whether it is a backward rule, not a tap, that runs when the program is transposed; the rule has
            taps of its own.
    """

    name: str
    eqn: extend_core.JaxprEqn
    avals: tuple[Any, ...]
    loops: int = 0
    turns: tuple[str, ...] = ()
    uncapturable: str = ""
    closed: str = ""
    ruled: bool = False
    recomputed: bool = False
    absent: str = ""
    is_slope: bool = False
    is_backward: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """The params of its equation."""
        return self.eqn.params

    @property
    def counts(self) -> bool:
        """Whether it is an occurrence of its name, unless it recomputes another."""
        return not (self.absent or self.is_slope or self.is_backward)

    @property
    def size(self) -> int:
        """The number of arrays of its captured value: its leaves, and for each of its `turns` how often it ran."""
        return len(self.avals) + len(self.turns)

    @property
    def key(self) -> tuple[str, identity.Path]:
        """The name and the path, which all copies of a tap have in common."""
        return self.name, self.params["path"]

    @property
    def selected(self) -> bool:
        """Whether vmap made a cond around it into a select, so that it also runs where its branch is not taken."""
        return self.params["branches"] > self.turns.count("cond")


# Jaxprs never change once they are made, and JAX keeps those of jitted functions: each is surveyed once.
_surveys: weakref.WeakKeyDictionary[Any, tuple[Tap, ...]] = weakref.WeakKeyDictionary()


def survey(jaxpr: extend_core.Jaxpr) -> tuple[Tap, ...]:
    """Returns all taps of a jaxpr and of the jaxprs inside it, in program order, in which `interpret` visits them.

    A function called twice counts twice, the body of a loop once, and each branch of a `cond` once.
    """
    taps = _surveys.get(jaxpr)
    if taps is None:
        taps = _surveys[jaxpr] = tuple(tap for eqn in jaxpr.eqns for tap in survey_equation(eqn))
    return taps


def survey_equation(eqn: extend_core.JaxprEqn) -> tuple[Tap, ...]:
    """Returns the taps of one equation: itself, or those in its jaxprs."""
    if eqn.primitive is tap_p:
        params = eqn.params
        avals = tuple(v.aval for v in eqn.invars)
        closed = ""
        if params["concrete"]:
            closed = "jax.ensure_compile_time_eval, where the function computes with the value now"
        recomputed, absent = params["again"], params["absent"]
        return (Tap(params["name"], eqn, avals, closed=closed, recomputed=recomputed, absent=absent),)
    if eqn.primitive is slope_p:
        avals = tuple(v.aval for v in eqn.invars[: len(eqn.params["moving"])])
        return (Tap(eqn.params["name"], eqn, avals, is_slope=True),)
    if eqn.primitive.name == identity.BACKWARD:
        return (Tap("", eqn, (), is_backward=True),)
    if not identity.holds_taps(eqn):
        return ()
    return tuple(_through(eqn, tap) for jaxpr in inner_jaxprs(eqn) for tap in survey(jaxpr))


def inner_jaxprs(eqn: extend_core.JaxprEqn) -> list[extend_core.Jaxpr]:
    """Returns the jaxprs in the params of an equation, without constants, in program order."""
    if eqn.primitive is primitives.while_p:  # its params are in alphabetical order; the condition runs first
        return [eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr]
    if eqn.primitive is primitives.cond_p:
        return [eqn.params["branches"][k].jaxpr for k in branch_order(eqn)]
    return [jaxpr for _, jaxpr in identity.jaxprs(eqn.params)] + _jax_internals.hidden_programs(eqn)


def branch_order(eqn: extend_core.JaxprEqn) -> list[int]:
    """Returns the indices of a cond's branches in the order of its source, by their paths: JAX puts True's last.

    If nobody was watching when it was traced, two branches count as those of `lax.cond`.
    """
    firsts = [
        min((tap.params["path"] for tap in survey(branch.jaxpr) if not tap.is_backward), default=())
        for branch in eqn.params["branches"]
    ]
    numbers = list(range(len(firsts)))
    if len(numbers) == 2 and not any(firsts):
        return numbers[::-1]
    return sorted(numbers, key=lambda k: firsts[k])


def _through(eqn: extend_core.JaxprEqn, tap: Tap) -> Tap:
    """Returns the record of a tap inside `eqn` as it is seen from outside."""
    primitive = eqn.primitive
    if primitive is primitives.scan_p:
        return dataclasses.replace(tap, loops=tap.loops + 1)
    if primitive is primitives.while_p:
        lanes = eqn.params["cond_jaxpr"].out_avals[0].shape
        reason = "a while loop that vmap runs until the last of its lanes is done" if lanes else ""
        uncapturable = tap.uncapturable or reason
        return dataclasses.replace(tap, turns=("while", *tap.turns), uncapturable=uncapturable)
    if primitive is primitives.cond_p:
        return dataclasses.replace(tap, turns=("cond", *tap.turns))
    if primitive is primitives.remat_p:
        return dataclasses.replace(tap, recomputed=tap.recomputed or eqn.params["differentiated"])
    if primitive in (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p):
        return dataclasses.replace(tap, ruled=True)
    if primitive.name in _OPEN:
        return tap
    reason = f"the primitive {_jax_internals.primitive_name(eqn)!r}, which mishax_lite cannot rebuild"
    return dataclasses.replace(tap, uncapturable=tap.uncapturable or reason, closed=tap.closed or reason)


# The primitives whose jaxprs `nested.py` and `further_calls.py` can rebuild (those in quotes are not exported).
_OPEN = {
    "shard_map",
    "eval_jaxpr",
    "xla_metadata_call",
    "compute_on",
    "custom_vmap_call",
    "remat_opt",
    primitives.jit_p.name,
    primitives.call_p.name,
    primitives.closed_call_p.name,
}


def first_runs(taps: tuple[Tap, ...]) -> dict[int, int]:
    """Returns, by the position of each recomputation or slope, the position of the tap that it belongs to.

    Both have the same name and path. A backward pass may also hold the only run of a tap, which recomputes nothing.
    """
    runs: dict[Any, list[int]] = {}
    for position, tap in enumerate(taps):
        if tap.counts and not tap.recomputed and tap.params["path"]:
            runs.setdefault(tap.key, []).append(position)
    firsts: dict[int, int] = {}
    for position, tap in enumerate(taps):
        if not (tap.is_slope or (tap.recomputed and tap.counts)) or not tap.params["path"]:
            continue
        same = runs.get(tap.key) or ([] if tap.is_slope else runs.setdefault(tap.key, [position]))
        if same and position not in same:
            firsts[position] = max((p for p in same if p < position), default=same[0])
    return firsts


def in_source_order(taps: tuple[Tap, ...], positions: list[int]) -> list[int]:
    """Returns positions of taps in the order of the source.

    It is the order of the program, except in a cond that vmap made into a select, whose branches stand in JAX's order.
    They stand together: after a tap outside, or when a branch comes again, the next run of that cond begins (a backward
    pass has a second run).
    """
    runs: dict[Any, _Run] = {}
    keys: dict[int, list[int]] = {}
    for position in positions:
        around = _branches(taps[position]) if taps[position].selected else []
        runs = {cond: runs[cond] for cond, _ in around if cond in runs}
        key = []
        for depth, (cond, place) in enumerate(around):
            if cond not in runs or (place != runs[cond].last and place in runs[cond].seen):
                for inner, _ in around[depth:]:
                    runs.pop(inner, None)
                runs[cond] = _Run(position)
            runs[cond].last = place
            runs[cond].seen.add(place)
            key += [runs[cond].start, place]
        keys[position] = [*key, position]
    return sorted(positions, key=keys.__getitem__)


@dataclasses.dataclass
class _Run:
    """A run of a cond that vmap made into a select.

    Attributes:
        start: the position of its first tap.
        seen: its branches so far.
        last: the last of these.
    """

    start: int
    seen: set[int] = dataclasses.field(default_factory=set)
    last: int | None = None


def _branches(tap: Tap) -> list[tuple[Any, int]]:
    """Returns the conds around a tap, outermost first: the key that its branches share, and the index of the branch."""
    path = tap.params["path"]
    return [((path[:k], number), place) for k, (number, place) in enumerate(path) if place != identity.NO_BRANCH]


def numbered(taps: tuple[Tap, ...], firsts: dict[int, int]) -> list[str]:
    """Returns the name of each tap as users see it: `name#k` where the name occurs more than once.

    Args:
        taps: the taps of a program.
        firsts: as `first_runs` returns them. Recomputations are no occurrences of their own, and have the name of their
            first run. A tap that only says that a value is absent has the name "".
    """
    occurrences = [position for position, tap in enumerate(taps) if position not in firsts and tap.counts]
    occurrences = in_source_order(taps, occurrences)
    totals = Counter(taps[position].name for position in occurrences)
    seen: Counter[str] = Counter()
    names = [""] * len(taps)
    for position in occurrences:
        name = taps[position].name
        names[position] = f"{name}#{seen[name]}" if totals[name] > 1 else name
        seen[name] += 1
    for position, first in firsts.items():
        names[position] = names[first]
    return names
