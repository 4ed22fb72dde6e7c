"""Edits that are applied later: a function's rule runs when the function is differentiated, long after it was edited.

The function and its rule are two programs. A tap in the rule's program stands for a tap of the same name in the
function's program: `pairing.py` says for which.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as extend_core

from mishax_lite import _jax_internals, mapping
from mishax_lite.interpret import NOTHING, Action, LeafEdit, Run
from mishax_lite.pairing import pair
from mishax_lite.reading import NO_READING, MeshAxis
from mishax_lite.survey import Tap, first_runs, survey


@dataclasses.dataclass(frozen=True)
class Program:
    """An edit, traced for a value without mapped axes.

    Attributes:
        jaxpr: the edit's program.
        closed_over: which of `Frozen.values` it closes over.
        loops: how many indices of loops it takes before the leaves.
    """

    jaxpr: extend_core.Jaxpr
    closed_over: slice
    loops: int

    def uses_loops(self) -> bool:
        """Returns whether the edit depends on the indices of the loops in the function."""
        first = self.closed_over.stop - self.closed_over.start
        indices = set(self.jaxpr.invars[first : first + self.loops])
        used = {v for eqn in self.jaxpr.eqns for v in eqn.invars if isinstance(v, extend_core.Var)}
        return bool(indices & (used | {v for v in self.jaxpr.outvars if isinstance(v, extend_core.Var)}))


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The actions in a function with a rule, independent of the present trace.

    The traced values that an edit closes over may be gone when the rule runs. So each edit is traced now, and the
    values that it closes over (`values`) become arguments of the call.

    Attributes:
        jaxpr: the function's program.
        actions: the action at each of its taps.
        programs: the traced edits, by the position of their taps.
        values: the values that the edits close over.
        turns: as of `interpret.Run`.
    """

    jaxpr: extend_core.Jaxpr
    actions: tuple[Action, ...]
    programs: dict[int, Program]
    values: list[Any]
    turns: int

    @property
    def taps(self) -> tuple[Tap, ...]:
        return survey(self.jaxpr)

    @property
    def captures(self) -> bool:
        return any(action.capture for action in self.actions)

    def run(self, values: Sequence[Any]) -> Run:
        """Returns the actions for the function, with these values in place of the ones that the edits close over."""
        return Run(tuple(self._action(position, values) for position in range(len(self.taps))), self.turns)

    def rule_run(self, values: Sequence[Any], rule: extend_core.Jaxpr, consts: int) -> tuple[Run, list[int]]:
        """Returns the actions for a rule, and the position in the function of each tap that it captures.

        Args:
            values: as for `run`.
            rule: the rule; its first inputs are the function's inputs after the constants.
            consts: how many of the function's inputs are constants.

        Raises:
            ValueError: for a site that the rule lacks, or has in another form, or maybe in another order.
        """
        taps = survey(rule)
        theirs, actions = _by_name(taps), [NOTHING] * len(taps)
        captures: dict[int, int] = {}
        missing: list[int] = []
        for name, ours in _by_name(self.taps).items():
            wanted = {p for p in ours if self.actions[p].edit or self.actions[p].capture}
            same = theirs.get(name, []) if wanted else []
            for position, k in zip(self._paired(name, ours, rule, same, consts), same, strict=True):
                action = self._action(position, values)
                if position in wanted or (action.edit and not self._fits(position, taps[k])):
                    _check_same(action.name, self.taps[position], taps[k])
                if position in wanted and action.capture:
                    captures[k] = position
                # A part that the rule runs again, maybe to differentiate it, is edited as well.
                actions[k] = action if position in wanted else action.without_capture()
                wanted.discard(position)
            missing += wanted
        self._follow(actions, taps, values)
        if self.programs:
            for k, tap in enumerate(taps):
                if tap.is_backward:
                    actions[k] = Action("", backward=(self, values))
        if missing:
            names = ", ".join(repr(self.actions[k].name) for k in sorted(missing))
            raise ValueError(
                f"site {names} is in a function with a custom derivative rule, but not in the rule; while "
                "differentiating only the rule runs, so tap the value in the rule (the `fwd` of a custom_vjp) too, or "
                "leave the site out"
            )
        return Run(tuple(actions), self.turns), [captures[k] for k in sorted(captures)]

    def _paired(
        self, name: str, ours: list[int], rule: extend_core.Jaxpr, theirs: list[int], consts: int | None = None
    ) -> list[int]:
        """Returns which tap of the function each tap of one name in a rule is; `consts` is None for backward rules."""
        captures = consts is not None
        if not theirs or self._all_alike(ours, captures):
            return [ours[k % len(ours)] for k in range(len(theirs))]
        paired = pair(self.jaxpr, ours, rule, theirs, lambda p, q: self._alike(p, q, captures), consts)
        if paired is None:
            times = f"{len(theirs)} {'time' if len(theirs) == 1 else 'times'}"
            times += f" in its {'' if captures else 'backward '}rule"
            times += ", maybe in another order" if len(theirs) % len(ours) == 0 else ""
            raise ValueError(
                f"site {name!r} occurs {len(ours)} times in a function with a custom derivative rule and {times}, so "
                "nobody can say which of them is which; edit all of them alike, give the values different names, or "
                "leave the site out"
            )
        return paired

    def backward_run(self, values: Sequence[Any], rule: extend_core.Jaxpr, loops: int | None = None) -> Run:
        """Returns the edits for a backward rule, which may run the function again, once or several times.

        Args:
            values: as for `run`.
            rule: the backward rule.
            loops: None for the function's own backward rule. For the rule of another function that the function calls,
                the number of scans in the function around the call.

        Raises:
            ValueError: if nobody can say which of the function's taps a tap of the rule is.
        """
        taps = tuple(dataclasses.replace(tap, loops=tap.loops + (loops or 0)) for tap in survey(rule))
        ours, actions = _by_name(self.taps), [NOTHING] * len(taps)
        for name, theirs in _by_name(taps).items():
            # A tap that the rule of another function runs stands in a function with a rule.
            same = [p for p in ours.get(name, []) if loops is None or self.taps[p].ruled]
            if not any(position in self.programs for position in same):
                continue
            alike = same if self._all_alike(same) else []
            for position, k in zip(self._paired(name, same, rule, theirs), theirs, strict=True):
                fitting = self._fitting([position, *alike], taps[k])
                if fitting in self.programs and not self._fits(fitting, taps[k]):
                    _check_same(self.actions[fitting].name, self.taps[fitting], taps[k])
                actions[k] = self._action(fitting, values).without_capture()
        self._follow(actions, taps, values)
        return Run(tuple(actions), self.turns)

    def _follow(self, actions: list[Action], taps: tuple[Tap, ...], values: Sequence[Any]) -> None:
        """Gives recomputations and slopes, in place, the edits of the taps that they belong to.

        A slope may stand far from its tap, where a pullback is made in the forward rule, or outside of a jit, and
        called elsewhere. The slope's name then says which tap it belongs to.
        """
        firsts = first_runs(taps)
        for k, tap in enumerate(taps):
            if k in firsts:
                actions[k] = actions[firsts[k]].without_capture()
            elif tap.is_slope:
                same = _by_name(self.taps).get(tap.name, [])
                edited = [position for position in same if position in self.programs]
                if edited and not self._all_alike(same):
                    raise ValueError(
                        f"edit: site {tap.name!r} occurs {len(same)} times in a function with a derivative rule, "
                        "whose derivative is made in one place and used in another, so nobody can say which of them to "
                        "edit there; edit all of them, or give the values different names"
                    )
                if edited:
                    fitting = self._fitting(edited, tap)
                    actions[k] = self._action(fitting, values).without_capture()

    def _all_alike(self, positions: Sequence[int], captures: bool = False) -> bool:
        return all(self._alike(*two, captures) for two in itertools.combinations(positions, 2))

    def _alike(self, first: int, second: int, captures: bool = False) -> bool:
        """Returns whether it makes no difference which of two taps of the function a tap is.

        One function may still do different things at the two, since it knows their names. Where their types or the
        loops around them differ, those tell which of them a tap of a rule is.

        Args:
            first: the position of one tap.
            second: the position of the other tap.
            captures: whether captured values count, too.
        """
        a, b = self.actions[first], self.actions[second]
        if a.functions != b.functions or (captures and (a.capture or b.capture)):
            return False
        one, other = self.taps[first], self.taps[second]
        if first not in self.programs or (_types(one), _surroundings(one)) != (_types(other), _surroundings(other)):
            return True
        programs = self.programs[first], self.programs[second]
        closed_over = [self.values[program.closed_over] for program in programs]
        return str(programs[0].jaxpr) == str(programs[1].jaxpr) and all(map(_same_value, *closed_over))

    def _fitting(self, positions: Sequence[int], tap: Tap) -> int:
        """Returns, of taps of the function with the same edit, the one whose edit is applied to a tap of a rule.

        The edit was traced for each of them. Traced for a tap outside of loops and shards, it has no index, and takes
        values for the same in all shards. Such an edit is wrong for a tap inside, although its types fit.
        """
        fitting = [position for position in positions if self._fits(position, tap)]
        same = [position for position in fitting if _surroundings(self.taps[position]) == _surroundings(tap)]
        return next(iter([*same, *fitting, *positions]))

    def _fits(self, position: int, tap: Tap) -> bool:
        """Returns whether the edit of a tap of the function can be applied to a tap of a backward rule."""
        ours = self.taps[position]
        same = _types(ours) == _types(tap)
        return same and (
            position not in self.programs or tap.loops == ours.loops or not self.programs[position].uses_loops()
        )

    def _action(self, position: int, values: Sequence[Any]) -> Action:
        action = self.actions[position]
        if position not in self.programs:
            return action
        return dataclasses.replace(action, edit=_edit(self.programs[position], values))


def freeze(run: Run, jaxpr: extend_core.Jaxpr, start: int, loops: tuple[Any, ...]) -> Frozen:
    """Returns the actions of `run` from `start` on, for a function with this program that stands in these loops."""
    taps = survey(jaxpr)
    actions = tuple(run.actions[start : start + len(taps)])
    programs, values = {}, []
    for position, (tap, action) in enumerate(zip(taps, actions, strict=True)):
        if action.edit is None:
            continue

        def fun(*inputs, tap=tap, action=action):
            inner, leaves = inputs[: tap.loops], inputs[tap.loops :]
            # pyrefly: ignore[not-callable]  what is frozen has an edit
            return action.edit(list(leaves), {**tap.params, "levels": ()}, (*loops, *inner), NO_READING)

        avals = [jax.core.ShapedArray((), jnp.int32)] * tap.loops + _unmapped(tap)
        names = [(level.name, level.size) for level in tap.params["levels"] if level.name is not None]
        with _jax_internals.context_of(tap.eqn, names):
            edit, extra = _jax_internals.trace(fun, avals, _jax_internals.unknown_names(jaxpr.debug_info))
        programs[position] = Program(edit, slice(len(values), len(values) + len(extra)), tap.loops)
        values.extend(extra)
    return Frozen(jaxpr, actions, programs, values, run.turns)


def _edit(program: Program, values: Sequence[Any]) -> LeafEdit:
    def edit(leaves: list[Any], params: dict[str, Any], loops: tuple[Any, ...], _) -> list[Any]:
        indices = [index for index in loops if not isinstance(index, MeshAxis)][: program.loops]
        indices += [jnp.int32(0)] * (program.loops - len(indices))  # a backward rule lacks them; the edit ignores them

        def apply(*leaves):
            return jax.core.eval_jaxpr(program.jaxpr, (), *values[program.closed_over], *indices, *leaves)

        return mapping.under_levels(apply, params["levels"])(*leaves)

    return edit


def _unmapped(tap: Tap) -> list[Any]:
    """Returns the types of a tap's leaves without mapped axes."""
    avals = []
    for k, aval in enumerate(tap.avals):
        for level in tap.params["levels"]:
            axis = level.axes[k]
            if axis is not None:
                aval = aval.update(shape=(*aval.shape[:axis], *aval.shape[axis + 1 :]))
        avals.append(aval)
    return avals


def _occurrences(taps: tuple[Tap, ...]) -> dict[tuple[str, int], int]:
    """Returns the positions of the taps that are occurrences, by (name, number of earlier taps of that name)."""
    firsts, seen, positions = first_runs(taps), Counter(), {}
    for position, tap in enumerate(taps):
        if tap.counts and position not in firsts:
            positions[tap.name, seen[tap.name]] = position
            seen[tap.name] += 1
    return positions


def _by_name(taps: tuple[Tap, ...]) -> dict[str, list[int]]:
    """Returns the positions of the taps that are occurrences, by name, in their order."""
    positions: dict[str, list[int]] = {}
    for (name, _), position in _occurrences(taps).items():
        positions.setdefault(name, []).append(position)
    return positions


def _same_value(a: Any, b: Any) -> bool:
    if a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return a is b
    return a.dtype == b.dtype and bool(jnp.array_equal(a, b))


def _types(tap: Tap) -> list[Any]:
    return [(aval.shape, aval.dtype) for aval in _unmapped(tap)]


def _surroundings(tap: Tap) -> Any:
    """Returns the facts that an edit is traced for, beside the types of the values."""
    return tap.loops, [_jax_internals.varying_axes(aval) for aval in tap.avals]


def _check_same(name: str, function: Tap, rule: Tap) -> None:
    if _types(function) != _types(rule) or (function.loops, function.turns) != (rule.loops, rule.turns):
        around = [f"{tap.loops} scans and {len(tap.turns)} whiles and conds" for tap in (rule, function)]
        raise ValueError(
            f"site {name!r}: the value has (shape, dtype) {_types(rule)} in {around[0]} in the custom derivative rule, "
            f"but {_types(function)} in {around[1]} in the function; tap the same value in both"
        )


def in_order(frozen: Frozen, leaves: list[Any], order: list[int]) -> list[Any]:
    """Returns the leaves that a rule captured, in the order of the function's taps."""
    groups, values = {}, iter(leaves)
    for position in order:
        groups[position] = [next(values) for _ in range(frozen.taps[position].size)]
    return [leaf for position in sorted(groups) for leaf in groups[position]]
