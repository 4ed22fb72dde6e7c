"""Which sites a program has, by reading it: names in program order, shapes, and what stands around each.

Two views of one program. Not differentiated, the functions with custom rules run. Differentiated, their rules do, and
what a backward rule taps comes after all else, in the order of the backward pass. Knows nothing of JAX.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.mishax_lite.fuzz.programs import Block, Call, Function, Op, Outer, Program, Scope, Tap, With, hooked

Path = tuple[Any, ...]
Levels = frozenset[int]  # the vmaps (by number) over whose rows a value differs


@dataclasses.dataclass(frozen=True)
class Site:
    """One occurrence of a tap.

    Attributes:
        path: the statements that lead to it; "bwd" and "fwd" in it stand for a rule's program.
        name: with scopes, without `#k`.
        nest: of each scan and shard_map around it, outermost first: ("loop" or "shard", size).
        levels: of each vmap around it, outermost first, its number and size.
        leaves: of each leaf of the value, the vmaps that it depends on.
        barrier: "while" or "cond" if one is around it, the outermost.
        barriers: how many are around it; `outside`: how many entries of `nest` are outside of the innermost.
        test: whether it is in the condition of a while.
        rules: how many custom rules are around it.
        rerun: whether the derivative of a rule runs it again.
        after_while: whether, in a custom rule, a while may come before it, in a turn before of a loop around it, too.
    """

    path: Path
    name: str
    nest: tuple[tuple[str, int], ...]
    levels: tuple[tuple[int, int], ...]
    leaves: tuple[Levels, ...]
    barrier: str = ""
    barriers: int = 0
    outside: int = 0
    test: bool = False
    rules: int = 0
    rerun: bool = False
    after_while: bool = False

    @property
    def loops(self) -> int:
        return sum(kind == "loop" for kind, _ in self.nest)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each leaf as it is captured."""
        nest = tuple(size for _, size in self.nest)
        return [(*nest, *(size for level, size in self.levels if level in leaf), 2) for leaf in self.leaves]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites of a program, and what each is called; `forward`, `backward`: it can only be differentiated so."""

    sites: tuple[Site, ...]
    forward: bool
    backward: bool

    @property
    def names(self) -> list[str]:
        totals = Counter(site.name for site in self.sites)
        seen: Counter[str] = Counter()
        names = []
        for site in self.sites:
            names.append(f"{site.name}#{seen[site.name]}" if totals[site.name] > 1 else site.name)
            seen[site.name] += 1
        return names


def plan(program: Program, differentiated: bool = False, rows: int | None = None) -> Plan:
    """Returns the sites of the program's function, or of its derivative; with `rows`, mapped over so many inputs."""
    planner = _Planner(program)
    start, context = (frozenset(), _Context()) if rows is None else (frozenset({0}), _Context(levels=((0, rows),)))
    _, backward = planner.block(program.main, (), [start], None, context, differentiated)
    return Plan((*planner.sites, *backward), planner.forward, planner.backward)


def original(path: Path) -> Path:
    """The path in the function of what its rule runs at `path`."""
    return tuple(part for part in path if part != "bwd")


@dataclasses.dataclass(frozen=True)
class _Context:
    prefix: str = ""
    nest: tuple[tuple[str, int], ...] = ()
    levels: tuple[tuple[int, int], ...] = ()
    barrier: str = ""
    barriers: int = 0
    outside: int = 0
    test: bool = False
    rules: int = 0
    rerun: bool = False
    edits: Levels = frozenset()  # what the edits around, which are part of the program, close over


def _within(context: _Context, barrier: str) -> _Context:
    barrier = context.barrier or barrier
    return dataclasses.replace(context, barrier=barrier, barriers=context.barriers + 1, outside=len(context.nest))


class _Planner:
    def __init__(self, program: Program):
        self.program = program
        self.sites: list[Site] = []
        self.forward = self.backward = False
        self.after_while = False

    def block(
        self,
        block: Block,
        path: Path,
        env: list[Levels],
        outer: list[Levels] | None,
        context: _Context,
        differentiated: bool,
        shards: bool = False,
    ) -> tuple[Levels, list[Site]]:
        """Notes the sites of a block; returns what its result depends on, and the sites of its backward pass.

        `env` gets the values of the block.
        """
        must: list[Levels] = []
        backward = self.statements(block, path, env, outer, context, differentiated, must, shards)
        return env[-1].union(*must), backward

    def statements(self, block, path, env, outer, context, differentiated, must, shards) -> list[Site]:
        backward: list[Site] = []
        for index, statement in enumerate(block.statements):
            place = (*path, index)
            if isinstance(statement, Scope):
                inner = dataclasses.replace(context, prefix=context.prefix + statement.prefix)
                back = self.statements(statement.block, place, env, outer, inner, differentiated, must, shards)
            else:
                levels, back = self.statement(statement, place, env, outer, context, differentiated, shards)
                if levels is not None:
                    env.append(levels)
                    if isinstance(statement, (Call, With)):
                        must.append(levels)
            backward = back + backward
        return backward

    def statement(self, statement, place, env, outer, context, differentiated, shards):
        at = lambda index: env[index % len(env)]  # noqa: E731
        if isinstance(statement, Op):
            return at(statement.a) | (at(statement.b) if statement.kind in ("add", "mul") else frozenset()), []
        if isinstance(statement, Outer):
            value = at(statement.a) if outer is None else outer[statement.a % len(outer)]
            return value | (env[0] if shards else frozenset()), []
        if isinstance(statement, Tap):
            leaves = {
                "pair": (at(statement.a), at(statement.b)),
                "constant": (frozenset(),),
            }.get(statement.form, (at(statement.a),))
            leaves = tuple(leaf | context.edits for leaf in leaves)
            self.tap(place, statement.name, leaves, context)
            if statement.form == "unused":
                return None, []
            return leaves[0].union(*leaves[1:], at(statement.a) if statement.form == "constant" else ()), []
        if isinstance(statement, Call):
            function = self.program.functions[statement.function]
            value, back = self.call(function, place, at(statement.a), context, differentiated)
            # Nobody uses its result: it has no backward pass.
            return (None, []) if statement.dropped else (value, back)
        return self.construct(statement, place, env, context, differentiated)

    def tap(self, path: Path, name: str, leaves: tuple[Levels, ...], context: _Context) -> None:
        site = Site(path, context.prefix + name, context.nest, context.levels, leaves)
        extra = {f: getattr(context, f) for f in ("barrier", "barriers", "outside", "test", "rules", "rerun")}
        self.sites.append(dataclasses.replace(site, after_while=self.after_while, **extra))

    def apart(self, run: Callable[[], Any]) -> tuple[Any, list[Site]]:
        """Runs something; its sites are returned, not noted."""
        kept, self.sites = self.sites, []
        try:
            return run(), self.sites
        finally:
            self.sites = kept

    def call(self, function: Function, path: Path, a: Levels, context: _Context, differentiated: bool):
        custom = function.kind in ("custom_jvp", "custom_vjp")
        if not custom:
            return self.block(function.block, path, [a], None, context, differentiated)
        inside = dataclasses.replace(context, rules=context.rules + 1)
        if function.kind == "custom_vjp" and differentiated:
            self.backward = True

        def body(at: Path, how: bool, within: _Context) -> tuple[Levels, list[Site], list[Levels]]:
            env = [a]
            self.after_while = self.after_while and context.rules > 0
            result, back = self.block(function.block, at, env, None, within, how)
            return result, back, env

        if not differentiated:
            inside = dataclasses.replace(inside, rerun=context.rerun or function.rule == "again")
            return body(path, False, inside)[0], []
        if function.rule == "lacking":
            (result, _, _), _ = self.apart(lambda: body(path, False, inside))
            return result, []
        if function.rule == "again":
            again = dataclasses.replace(inside, rerun=True)
            if function.kind == "custom_jvp":
                result, back, _ = body(path, True, again)
                return result, back
            result, _, _ = body(path, False, again)
            (_, back, _), sites = self.apart(lambda: body((*path, "bwd"), True, again))
            return result, sites + back
        result, _, env = body(path, False, inside)
        back = []
        if "only_fwd" in function.options:
            self.tap((*path, "fwd"), "only_fwd", (env[-1],), inside)
        if "only_bwd" in function.options:
            _, back = self.apart(lambda: self.tap((*path, "bwd"), "only_bwd", (env[-1],), inside))
        return result, back

    def construct(self, statement: With, place: Path, env: list[Levels], context: _Context, differentiated: bool):
        a = env[statement.a % len(env)]
        kind, blocks = statement.kind, statement.blocks
        run = lambda block, path, given, within, **more: self.block(  # noqa: E731
            block, path, given, list(env), within, differentiated, **more
        )
        if kind in ("jit", "remat"):
            return run(blocks[0], place, [a], context)
        if kind in ("edit", "capture"):
            closed = env[statement.b % len(env)] if "closes" in statement.options else frozenset()
            values = [a]
            inner = dataclasses.replace(context, edits=context.edits | closed)
            result, back = run(hooked(statement), place, values, inner)
            return result | (values[-1] if kind == "capture" else frozenset()), back
        if kind == "shard_map":
            inner = dataclasses.replace(context, nest=(*context.nest, ("shard", 2)))
            return run(blocks[0], place, [a], inner, shards=True)
        if kind == "vmap":
            level = len(context.levels)
            inner = dataclasses.replace(context, levels=(*context.levels, (level, statement.size)))
            result, back = run(blocks[0], place, [a | {level}, env[statement.b % len(env)]], inner)
            return result - {level}, back
        if kind in ("cond", "switch"):
            inner = _within(context, "cond")
            pairs = [run(block, (*place, k), [a], inner) for k, block in enumerate(blocks)]
            # The predicate is made of the operand.
            return a.union(*(levels for levels, _ in pairs)), [site for _, back in pairs for site in back]
        if kind == "while":
            return self.loop_while(statement, place, a, run, context, differentiated)
        inner = dataclasses.replace(context, nest=(*context.nest, ("loop", statement.size)))
        row = [a] if kind == "scan" and "no_xs" not in statement.options else []
        carry = a
        while True:  # until what the carry depends on does not grow
            values = [carry, *row]
            (result, _), _ = self.apart(lambda c=carry, v=values: run(blocks[0], place, v, inner))
            if result <= carry:
                break
            carry |= result
        values = [carry, *row]
        result, back = run(blocks[0], place, values, inner)
        return carry | (values[-1] if kind == "scan" else frozenset()), back

    def loop_while(self, statement, place, a, run, context, differentiated):
        if differentiated:
            self.forward = True
        # Never taken back: the body of a loop is gone through several times, at last with what comes before it noted.
        self.after_while |= context.rules > 0
        inner = _within(context, "while")
        testing = dataclasses.replace(inner, test=True)
        carry = a
        while True:
            test, _ = self.apart(lambda c=carry: run(statement.blocks[0], (*place, 0), [c], inner)[0])
            body, _ = self.apart(lambda c=carry: run(statement.blocks[1], (*place, 1), [c], inner)[0])
            if test | body <= carry:
                break
            carry |= test | body
        back = run(statement.blocks[0], (*place, 0), [carry], testing)[1]
        back += run(statement.blocks[1], (*place, 1), [carry], inner)[1]
        return carry, back
