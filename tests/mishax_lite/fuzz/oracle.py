"""Runs a program unrolled, in plain Python and numpy: what its values, and their derivatives, have to be.

Loops are Python's, mapped rows and shards run one after another, nothing is traced. A value carries its derivatives in
some directions with it (`Dual`), in float64. Nothing here imports JAX or mishax_lite.

An edit acts in one of two ways. "through": the new value, with its derivative, takes the old one's place; so does the
gradient of an edited function. "value": the new value has the old one's derivative; so does the edited gradient.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.mishax_lite.fuzz.plan import Path, Site, original
from tests.mishax_lite.fuzz.programs import Block, Call, Function, Op, Outer, Program, Scope, With, hooked

MIX = np.asarray([[0.8, -0.3], [0.4, 0.6]])
ROWS = (0.4, 0.8, 1.2)
LANES = (1.0, 0.5, -0.7)
CONSTANT = np.asarray([0.2, -0.4])
DIRECTIONS = 3  # the two elements of the input, and a number that edits close over

# Of a value and the indices of the scans around it, the new value. It is written with + and * alone.
Edit = Callable[[Any, tuple[Any, ...]], Any]


@dataclasses.dataclass(frozen=True)
class Dual:
    """A value [2] and its derivatives [DIRECTIONS, 2]."""

    value: np.ndarray
    tangent: np.ndarray

    def __add__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value + other.value, self.tangent + other.tangent)

    def __mul__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value * other.value, self.tangent * other.value + self.value * other.tangent)

    __radd__, __rmul__ = __add__, __mul__

    def linear(self, function: Callable[[np.ndarray], np.ndarray]) -> Dual:
        """A linear function of the value, which acts on the last axis."""
        return Dual(function(self.value), function(self.tangent))

    def stopped(self) -> Dual:
        return Dual(self.value, np.zeros_like(self.tangent))


def _dual(value: Any) -> Dual:
    if isinstance(value, Dual):
        return value
    return Dual(np.broadcast_to(np.asarray(value, np.float64), (2,)), np.zeros((DIRECTIONS, 2)))


def sin(x: Dual) -> Dual:
    return Dual(np.sin(x.value), np.cos(x.value) * x.tangent)


def tanh(x: Dual) -> Dual:
    return Dual(np.tanh(x.value), (1 - np.tanh(x.value) ** 2) * x.tangent)


_OPS: dict[str, Callable[[Dual, Dual], Dual]] = {
    "sin": lambda a, b: sin(a),
    "tanh": lambda a, b: tanh(a),
    "scale": lambda a, b: 0.7 * a,
    "flip": lambda a, b: a.linear(lambda v: v[..., ::-1]),
    "mix": lambda a, b: a.linear(lambda v: v @ MIX),
    "center": lambda a, b: a.linear(lambda v: v - 0.5 * v.mean(-1, keepdims=True)),
    "add": lambda a, b: a + b,
    "mul": lambda a, b: 0.5 * a * b,
}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a run is: ("loop" | "shard" | "lane", index) of each construct around, outermost first."""

    stack: tuple[tuple[str, int], ...] = ()

    def __add__(self, entry: tuple[str, int]) -> _Place:
        return _Place((*self.stack, entry))

    def of(self, *kinds: str) -> tuple[int, ...]:
        return tuple(index for kind, index in self.stack if kind in kinds)


class Oracle:
    """One run of a program.

    Attributes:
        out: the result.
        records: for the path of each site, for the indices of (loops and shards) and of (mapped rows) around it, the
            leaves of the value there; the last, if it ran there several times.
        counts: how many times it ran, by the indices of loops and shards.
    """

    def __init__(
        self,
        program: Program,
        x: np.ndarray,
        differentiated: bool = False,
        edits: Mapping[Path, list[Edit]] | None = None,
        way: str = "through",
        hooks: bool = True,
        capturing: bool = False,
    ):
        """Runs the program.

        Args:
            program: the program.
            x: its input [2], or inputs [rows, 2].
            differentiated: whether rules run in the place of their functions.
            edits: by the path of the site; with way "through" a path of the function itself, not of its derivative.
            way: "through" or "value".
            hooks: whether the edits that are part of the program act.
            capturing: whether the derivatives of `records` are those of captured values; `counts` then means nothing.
        """
        self.program, self.edits, self.way, self.hooks = program, dict(edits or {}), way, hooks
        self.capturing = capturing
        self.inner: list[tuple[int, Dual]] = []  # of each such edit around, the loops around it, and what it adds
        self.counts: dict[Path, Counter[tuple[int, ...]]] = defaultdict(Counter)
        self.records: dict[Path, dict[tuple[tuple[int, ...], tuple[int, ...]], list[Dual]]] = {}
        directions = np.zeros((DIRECTIONS, 2))
        directions[0, 0] = directions[1, 1] = 1
        self.outs = []
        for row, value in enumerate(np.atleast_2d(np.asarray(x, np.float64))):
            place = _Place() + ("lane", row) if np.ndim(x) == 2 else _Place()
            self.outs.append(self.block(program.main, (), [Dual(value, directions)], None, place, differentiated))
        self.out = self.outs[0]

    def captured(self, site: Site) -> list[tuple[np.ndarray, np.ndarray]]:
        """The value and the derivatives (on a leading axis) of each leaf of a site, as capture returns them."""
        records = self.records.get(site.path, {})
        nest = tuple(size for _, size in site.nest)
        results = []
        for leaf, levels in enumerate(site.leaves):
            mapped = [place for place, (level, _) in enumerate(site.levels) if level in levels]
            lanes = tuple(site.levels[place][1] for place in mapped)
            value = np.full((*nest, *lanes, 2), np.nan)
            tangent = np.full((DIRECTIONS, *nest, *lanes, 2), np.nan)
            for (outside, rows), leaves in records.items():
                index = (*outside, *(rows[place] for place in mapped))
                if not np.isnan(value[index]).any() and not np.allclose(value[index], leaves[leaf].value):
                    raise AssertionError(f"the plan calls site {site.name!r} the same in all rows, but it differs")
                value[index] = leaves[leaf].value
                tangent[(slice(None), *index)] = leaves[leaf].tangent
            if np.isnan(value).any() and not site.barrier:
                raise AssertionError(f"the plan has turns of site {site.name!r} that did not run")
            results.append((value, tangent))
        return results

    def tap(self, path: Path, leaves: list[Dual], place: _Place) -> list[Dual]:
        if path[-1] not in ("fwd", "bwd"):  # the edit of a function does not know what only its rule taps
            for outside, added in reversed(self.inner):
                shift = 0.15 + 0.05 * sum(place.of("loop")[outside:])
                leaves = [leaf + shift + added for leaf in leaves]
        key = original(path) if self.way == "through" else path
        for edit in self.edits.get(key, ()):
            new = [_dual(edit(leaf, place.of("loop"))) for leaf in leaves]
            if self.way == "value":
                new = [Dual(n.value, old.tangent) for n, old in zip(new, leaves, strict=True)]
            leaves = new
        self.records.setdefault(path, {})[place.of("loop", "shard"), place.of("lane")] = leaves
        self.counts[path][place.of("loop", "shard")] += 1
        return leaves

    def block(self, block, path, env, outer, place, differentiated, shards=False) -> Dual:
        must: list[Dual] = []
        self.statements(block, path, env, outer, place, differentiated, must, shards)
        total = env[-1]
        for value in must:
            total = total + 0.3 * value
        return sin(total)

    def statements(self, block: Block, path, env, outer, place, differentiated, must, shards) -> None:
        for index, statement in enumerate(block.statements):
            inner = (*path, index)
            if isinstance(statement, Scope):
                self.statements(statement.block, inner, env, outer, place, differentiated, must, shards)
                continue
            value = self.statement(statement, inner, env, outer, place, differentiated, shards)
            if value is not None:
                env.append(value)
                if isinstance(statement, (Call, With)):
                    must.append(value)

    def statement(self, statement, path, env, outer, place, differentiated, shards) -> Dual | None:
        at = lambda index: env[index % len(env)]  # noqa: E731
        if isinstance(statement, Op):
            return _OPS[statement.kind](at(statement.a), at(statement.b))
        if isinstance(statement, Outer):
            value = at(statement.a) if outer is None else outer[statement.a % len(outer)]
            return value + 0.1 * env[0] if shards else value
        if isinstance(statement, Call):
            function = self.program.functions[statement.function]
            value = self.call(function, path, at(statement.a), place, differentiated)
            return None if statement.dropped else value
        if isinstance(statement, With):
            return getattr(self, "_" + statement.kind)(statement, path, at(statement.a), env, place, differentiated)
        if statement.form == "pair":
            first, second = self.tap(path, [at(statement.a), at(statement.b)], place)
            return first + 0.5 * second
        if statement.form == "constant":
            return at(statement.a) + 0.3 * self.tap(path, [_dual(CONSTANT)], place)[0]
        value = self.tap(path, [at(statement.a)], place)[0]
        return None if statement.form == "unused" else value

    def call(self, function: Function, path: Path, x: Dual, place: _Place, differentiated: bool) -> Dual:
        def body(at: Path, how: bool) -> tuple[Dual, Dual]:
            env = [x]
            return self.block(function.block, at, env, None, place, how), env[-1]

        if function.kind not in ("custom_jvp", "custom_vjp"):
            return body(path, differentiated)[0]
        if not differentiated:
            return body(path, False)[0]
        result = self.ruled(function, path, x, body, place)
        if self.capturing:
            # The rule says nothing of a value captured in the function, whose derivative is the function's own, as if
            # it were written without the rule and returned the value. Rules of what it calls count.
            body(path, True)
        return result

    def ruled(self, function: Function, path: Path, x: Dual, body: Callable[..., tuple[Dual, Dual]], place: _Place):
        """The result of a function with the derivative that its rule says."""
        jvp = function.kind == "custom_jvp"
        if function.rule == "again":
            result, _ = body(path, jvp)
            tangent = result.tangent if jvp else body((*path, "bwd"), True)[0].tangent
            return Dual(result.value, 1.5 * tangent)
        if function.rule == "lacking":
            edits, self.edits = self.edits, {}
            result, _ = body(path, False)
            self.edits = edits
        else:
            result, last = body(path, False)
        kept = x
        if function.rule == "value":
            kept = last
            if "only_fwd" in function.options:
                kept = self.tap((*path, "fwd"), [kept], place)[0]
            if "only_bwd" in function.options:
                kept = self.tap((*path, "bwd"), [kept], place)[0]
        return Dual(result.value, (1.2 if jvp else 1.3) * np.cos(kept.value) * x.tangent)

    def _jit(self, statement: With, path, a, env, place, differentiated) -> Dual:
        return self.block(statement.blocks[0], path, [a], env, place, differentiated)

    _remat = _jit

    def _scan(self, statement: With, path, a, env, place, differentiated) -> Dual:
        carry, total = a, _dual(0.0)
        turns = range(statement.size)
        for turn in reversed(turns) if "reverse" in statement.options else turns:
            values = [carry] if "no_xs" in statement.options else [carry, ROWS[turn] * a]
            carry = self.block(statement.blocks[0], path, values, env, place + ("loop", turn), differentiated)
            total = total + values[-1]
        return carry + 0.5 * total

    def _fori(self, statement: With, path, a, env, place, differentiated) -> Dual:
        for turn in range(statement.size):
            a = self.block(statement.blocks[0], path, [a], env, place + ("loop", turn), differentiated)
        return a

    def _while(self, statement: With, path, a, env, place, differentiated) -> Dual:
        turn = 0
        while True:
            test = self.block(statement.blocks[0], (*path, 0), [a], env, place, differentiated)
            if turn >= statement.size or test.value.sum() >= 1.2:
                return a
            a = self.block(statement.blocks[1], (*path, 1), [a], env, place, differentiated)
            turn += 1

    def _cond(self, statement: With, path, a, env, place, differentiated) -> Dual:
        limit = {("never",): 9.0, ("always",): -9.0}.get(statement.options, 0.123)
        branch = 0 if a.value[0] > limit else 1
        return self.block(statement.blocks[branch], (*path, branch), [a], env, place, differentiated)

    def _switch(self, statement: With, path, a, env, place, differentiated) -> Dual:
        branch = int(np.clip(int(1.7 * a.value[0] + 1.1), 0, 2))
        return self.block(statement.blocks[branch], (*path, branch), [a], env, place, differentiated)

    def _vmap(self, statement: With, path, a, env, place, differentiated) -> Dual:
        fixed = env[statement.b % len(env)]
        total = _dual(0.0)
        for row in range(statement.size):
            values = [LANES[row] * a, fixed]
            total = total + self.block(statement.blocks[0], path, values, env, place + ("lane", row), differentiated)
        return 0.5 * total

    def _shard_map(self, statement: With, path, a, env, place, differentiated) -> Dual:
        total = _dual(0.0)
        for shard, scale in enumerate((1.0, 0.6)):
            within = place + ("shard", shard)
            total = total + self.block(statement.blocks[0], path, [scale * a], env, within, differentiated, shards=True)
        return 0.5 * total

    def _edit(self, statement: With, path, a, env, place, differentiated) -> Dual:
        block = hooked(statement)
        if not self.hooks:
            return self.block(block, path, [a], env, place, differentiated)
        added = 0.1 * env[statement.b % len(env)] if "closes" in statement.options else _dual(0.0)
        self.inner.append((len(place.of("loop")), added))
        result = self.block(block, path, [a], env, place, differentiated)
        self.inner.pop()
        return result

    def _capture(self, statement: With, path, a, env, place, differentiated) -> Dual:
        values = [a]
        result = self.block(hooked(statement), path, values, env, place, differentiated)
        return result + 0.3 * values[-1]
