"""Small programs as data: what the fuzz generates, runs in two ways, and makes smaller.

Every value of a program is a float32 array [2]. A block is a list of statements; each makes one value, which later
statements name by its position, modulo how many there are. So whatever statement is taken out, a program stays one.
This module knows nothing of JAX: `rendering.py` writes a program as Python, `oracle.py` runs it without JAX.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

UNARY = ("sin", "tanh", "scale", "flip", "mix", "center")
BINARY = ("add", "mul")
INLINE = ("jit", "remat", "scan", "fori", "while", "cond", "switch", "vmap", "shard_map", "edit", "capture")
RULES = {
    # self: the rule calls the function itself. value: it runs the body, and keeps one of its values for the
    # derivative. again: the derivative is that of the body, run again. lacking: it computes the same without taps.
    "custom_jvp": ("self", "value", "again", "lacking"),
    "custom_vjp": ("self", "value", "again", "lacking"),
}
# What FUZZ_WITHOUT may name, beside the constructs.
FEATURES = (*INLINE, "custom_jvp", "custom_vjp", "functions", "scope", "outer", "pair", "constant", "unused", "dropped")
FEATURES += (
    "policy",
    "reverse",
    "empty",
    "again",
    "lacking",
    "self",
    "value",
    "only_fwd",
    "only_bwd",
    "top_jit",
    "closes",
)


@dataclasses.dataclass(frozen=True)
class Op:
    """An elementwise operation, or one that mixes the two elements, on values `a` and `b`."""

    kind: str
    a: int
    b: int = 0


@dataclasses.dataclass(frozen=True)
class Tap:
    """A tap of value `a`; `form`: used, unused (its result is discarded), constant, or pair (of `a` and `b`)."""

    name: str
    a: int
    form: str = "used"
    b: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
    """Value `a` of the enclosing block, which the function of this block closes over."""

    a: int


@dataclasses.dataclass(frozen=True)
class Scope:
    """Statements under `with scope(prefix)`."""

    prefix: str
    block: Block


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of one of the program's functions; `dropped`: nobody uses its result."""

    function: int
    a: int
    dropped: bool = False


@dataclasses.dataclass(frozen=True)
class With:
    """A construct around blocks that close over the values here.

    `edit` and `capture` are hooks inside of the program: edit shifts every value that its block taps, capture adds the
    block's last value to its result; `hooked` has the tap that each puts there.

    Attributes:
        kind: one of INLINE.
        a: the value that it is given; `b` is a second one, for vmap.
        blocks: while: condition and body; cond: for True and for False; switch: three; others: one.
        size: turns of a loop; number of mapped rows.
        options: reverse, no_xs (scan); transposed (vmap); dots, everything (policies of remat); never, always (cond);
            closes (edit: it closes over value `b`); the name of the tap (capture).
    """

    kind: str
    a: int
    blocks: tuple[Block, ...]
    size: int = 2
    b: int = 0
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Block:
    statements: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Function:
    """A function that may be called many times, and closes over nothing.

    `kind`: plain, jit, remat, custom_jvp, custom_vjp. `rule`: see RULES. `options`: only_fwd, only_bwd: the forward or
    the backward rule taps a value that the function does not.
    """

    kind: str
    block: Block
    rule: str = ""
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """`top`: nothing, or jit around the whole function, around its derivative, or both."""

    main: Block
    functions: tuple[Function, ...] = ()
    top: tuple[str, ...] = ()


def hooked(statement: With) -> Block:
    """The block of an edit or a capture, with the tap that is sure to be in it."""
    (block,) = statement.blocks
    if statement.kind == "edit":
        return Block((Tap("e", -1), *block.statements))
    return Block((*block.statements, Tap(statement.options[0], -1)))


def calls(block: Block) -> set[int]:
    """The functions that a block calls."""
    indices: set[int] = set()
    for statement in block.statements:
        if isinstance(statement, Call):
            indices.add(statement.function)
        for inner in getattr(statement, "blocks", ()) or ([statement.block] if isinstance(statement, Scope) else []):
            indices |= calls(inner)
    return indices


def generate(seed: int, without: frozenset[str] = frozenset()) -> Program:
    """Returns the program of a seed.

    Args:
        seed: any integer.
        without: features (of FEATURES) that the program may not have.
    """
    unknown = without - set(FEATURES)
    if unknown:
        raise ValueError(f"unknown features {sorted(unknown)}; expected some of {', '.join(FEATURES)}")
    return _Generator(seed, without).program()


class _Generator:
    def __init__(self, seed: int, without: frozenset[str]):
        self.random = random.Random(seed)
        self.without = without
        self.functions: list[Function] = []
        self.count = 0
        # `while` is differentiated forwards, custom_vjp backwards; a few programs have both, and no derivative.
        way = self.random.choices(("reverse", "forward", "both"), (6, 3, 1))[0]
        if way == "reverse":
            self.without |= {"while"}
        if way == "forward":
            self.without |= {"custom_vjp"}
        # An edit of all that a function taps is refused where a rule lacks a tap.
        self.without |= {self.random.choice(("edit", "lacking"))}
        self.budget = self.random.randint(5, 13)

    def program(self) -> Program:
        if "functions" not in self.without:
            for _ in range(self.random.choices((0, 1, 2, 3), (2, 4, 3, 1))[0]):
                self.functions.append(self.function())
        main = self.block(depth=3, places=("main",), least=2)
        top = [name for name in ("f", "derivative") if "top_jit" not in self.without and self.random.random() < 0.25]
        return Program(main, tuple(self.functions), tuple(top))

    def function(self) -> Function:
        kinds = [k for k in ("plain", "jit", "remat", "custom_jvp", "custom_vjp") if k not in self.without]
        kind = self.random.choice(kinds)
        rules = [rule for rule in RULES.get(kind, ("",)) if rule not in self.without]
        if not rules:
            kind, rules = "plain", [""]
        options = [o for o in ("only_fwd", "only_bwd") if o not in self.without and self.random.random() < 0.25]
        rule = self.random.choice(rules)
        keep = tuple(options) if (kind, rule) == ("custom_vjp", "value") else ()
        if kind == "remat":
            keep = self.policy()
        return Function(kind, self.block(depth=1, places=("function",), least=1), rule, keep)

    def block(self, depth: int, places: tuple[str, ...], least: int = 1) -> Block:
        count = self.random.randint(least, least + 2)
        return Block(tuple(self.statement(depth, places) for _ in range(count)))

    def policy(self) -> tuple[str, ...]:
        return self.random.choice(((), (), ("dots",), ("everything",))) if "policy" not in self.without else ()

    def reference(self) -> int:
        # Mostly one of the latest values.
        return self.random.choice((-1, -1, -1, -2, self.random.randint(0, 5)))

    def statement(self, depth: int, places: tuple[str, ...]) -> Any:
        self.budget -= 1
        deeper = 5 if depth > 0 and self.budget > 0 else 0
        kind = self.random.choices(
            ("tap", "op", "outer", "scope", "call", "with"),
            (
                5,
                2,
                1 if "outer" not in self.without and len(places) > 1 else 0,
                1 if "scope" not in self.without and deeper else 0,
                3 if self.functions and deeper else 0,
                deeper,
            ),
        )[0]
        if kind == "tap":
            forms = [f for f in ("used",) * 5 + ("unused", "constant", "pair") if f not in self.without]
            name = self.random.choice(("a", "b", "ab", "s/c"))
            return Tap(name, self.reference(), self.random.choice(forms), self.reference())
        if kind == "op":
            return Op(self.random.choice((*UNARY, *BINARY)), self.reference(), self.reference())
        if kind == "outer":
            return Outer(self.reference())
        if kind == "scope":
            return Scope(self.random.choice(("s/", "t/")), self.block(depth - 1, places))
        if kind == "call":
            dropped = "dropped" not in self.without and self.random.random() < 0.1
            return Call(self.random.randrange(len(self.functions)), self.reference(), dropped)
        return self.construct(depth, places)

    def construct(self, depth: int, places: tuple[str, ...]) -> Any:
        kinds = [k for k in INLINE if k not in self.without and not (k == "shard_map" and "shard_map" in places)]
        if "function" in places and "shard_map" in kinds:
            kinds.remove("shard_map")  # a function may be called within one
        if not kinds:
            return Op("sin", -1)
        kind = self.random.choice(kinds)
        inner = (*places, kind)
        count = {"while": 2, "cond": 2, "switch": 3}.get(kind, 1)
        blocks = tuple(self.block(depth - 1, inner) for _ in range(count))
        size = self.random.choice((0, 1, 2, 3, 3)) if kind in ("scan", "fori", "while") else self.random.choice((1, 3))
        if size == 0 and "empty" in self.without:
            size = 2
        options: tuple[str, ...] = ()
        if kind == "scan":
            options = tuple(o for o in ("reverse", "no_xs") if o not in self.without and self.random.random() < 0.3)
        elif kind == "vmap":
            options = self.random.choice(((), ("transposed",)))
        elif kind == "remat":
            options = self.policy()
        elif kind == "cond":
            options = self.random.choice(((), ("never",), ("always",)))
        elif kind == "capture":
            self.count += 1
            options = (f"k{self.count}",)
        elif kind == "edit" and "closes" not in self.without and not calls(blocks[0]):
            # A custom rule may refuse what an edit in it closes over.
            options = self.random.choice(((), ("closes",)))
        return With(kind, self.reference(), blocks, size, self.reference(), options)


def smaller(program: Program) -> Iterator[Program]:
    """Programs that are a little smaller than this one, those that save most first."""
    for part in ("f", "derivative"):
        if part in program.top:
            yield dataclasses.replace(program, top=tuple(p for p in program.top if p != part))
    for main in _smaller_blocks(program.main):
        yield dataclasses.replace(program, main=main)
    for index, function in enumerate(program.functions):
        for changed in _smaller_functions(function):
            functions = (*program.functions[:index], changed, *program.functions[index + 1 :])
            yield dataclasses.replace(program, functions=functions)


def _smaller_functions(function: Function) -> Iterator[Function]:
    if function.kind != "plain":
        yield Function("plain", function.block)
    if function.options:
        yield dataclasses.replace(function, options=())
    for block in _smaller_blocks(function.block):
        yield dataclasses.replace(function, block=block)


def _smaller_blocks(block: Block) -> Iterator[Block]:
    for index, statement in enumerate(block.statements):
        before, after = block.statements[:index], block.statements[index + 1 :]
        yield Block((*before, *after))
        for changed in _smaller_statements(statement):
            yield Block((*before, *changed, *after))


def _smaller_statements(statement: Any) -> Iterator[tuple[Any, ...]]:
    """What one statement may become: several statements each time."""
    if isinstance(statement, Tap) and statement.form != "used":
        yield (Tap(statement.name, statement.a),)
    elif (isinstance(statement, Op) and statement.kind != "sin") or isinstance(statement, Call):
        yield (Op("sin", statement.a),)
    elif isinstance(statement, Scope):
        yield statement.block.statements
        for block in _smaller_blocks(statement.block):
            yield (Scope(statement.prefix, block),)
    elif isinstance(statement, With):
        yield (Op("sin", statement.a),)
        for block in statement.blocks:
            yield block.statements
        if statement.options and statement.kind != "capture":
            yield (dataclasses.replace(statement, options=()),)
        if statement.size > 1:
            yield (dataclasses.replace(statement, size=statement.size - 1),)
        for index, block in enumerate(statement.blocks):
            for changed in _smaller_blocks(block):
                blocks = (*statement.blocks[:index], changed, *statement.blocks[index + 1 :])
                yield (dataclasses.replace(statement, blocks=blocks),)
