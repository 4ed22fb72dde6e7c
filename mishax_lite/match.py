"""Finds a piece of source in a syntax tree: the pattern language of `Rewrite`.

A pattern is Python: one expression, or one or several statements. In it,
    `...`    stands for any one expression; as an argument of a call, for any number of arguments (none too, and keyword
             arguments; after a keyword argument Python wants it written `**...`); as a statement, for any number of
             statements. In an index (`x[..., 0]`) it is Python's Ellipsis.
    `$name`  stands for any one expression, `*$name` or `**$name` for any number of arguments, and `$name` as a
             statement for any number of statements. Where a name occurs again, the same source must stand there.
Layout, comments, quotes and redundant parentheses do not matter; everything else does.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator
from typing import Any

# An attribute of a node that an earlier edit put around another node, as `tap("p", x)` around `x`: the inner node.
# Patterns see through the outer node, so a patch for the original source still matches after another patch tapped it.
WRAPPED = "_mishax_wrapped"

# Under this key a match has the nodes that it saw through.
THROUGH = ""

# A `$name` becomes an identifier with this prefix, so that Python can parse it.
_PREFIX = "_mishax_wildcard_"
_STRING_OR_WILDCARD = re.compile(
    r"""(?P<skip>[rbfuRBFU]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|\#[^\n]*)"""
    r"""|\$(?P<name>[A-Za-z_]\w*)""",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        body: one expression, or a list of statements.
        text: the parsed text.
    """

    body: Any
    text: str

    @property
    def is_expression(self) -> bool:
        return isinstance(self.body, ast.expr)

    def wildcards(self) -> dict[int, str]:
        """Returns the name that each wildcard is bound as, by its node's id: `name`, or `...k` for the k-th `...`."""
        root = self.body if isinstance(self.body, ast.expr) else ast.Module(self.body, [])
        nodes = [n for n in _walk_outside_indices(root) if isinstance(n, ast.expr) and wildcard_name(n) is not None]
        ellipses = itertools.count()
        return {
            id(node): f"...{next(ellipses)}" if wildcard_name(node) == "..." else str(wildcard_name(node))
            for node in sorted(nodes, key=_place)
        }


@dataclasses.dataclass(frozen=True)
class Match:
    """A place that a pattern matches.

    Attributes:
        nodes: the expression, or the statements in a row.
        bound: the nodes in a row that each wildcard stands for; the k-th `...` is bound as `...k`. Under `THROUGH` are
            the nodes that the match saw through.
    """

    nodes: list[Any]
    bound: dict[str, list[Any]]


def parse(text: str, what: str) -> Pattern:
    """Parses a pattern.

    Args:
        text: the pattern.
        what: the name of the pattern in error messages.

    Raises:
        ValueError: if the text, `$names` aside, is no Python or is empty.
    """
    readable = textwrap.dedent(text).strip("\n").rstrip()
    readable = readable if "\n" in readable else readable.strip()
    plain = _STRING_OR_WILDCARD.sub(lambda m: m["skip"] or _PREFIX + m["name"], readable)
    try:
        body = ast.parse(plain).body
    except SyntaxError as error:
        hint = "; write `**...` for further arguments there" if "follows keyword" in error.msg else ""
        raise ValueError(f"{what} is no Python: {error.msg}{hint} (line {error.lineno})\n{readable}") from error
    if not body:
        raise ValueError(f"{what} is empty; give an expression or statements")
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        return Pattern(body[0].value, plain)
    return Pattern(body, plain)


def wildcard_name(node: Any) -> str | None:
    """Returns `name` for `$name`, `...` for an Ellipsis, None for other nodes; a statement counts as its expression."""
    node = node.value if isinstance(node, ast.Expr) else node
    if isinstance(node, ast.Name) and node.id.startswith(_PREFIX):
        return node.id.removeprefix(_PREFIX)
    if isinstance(node, ast.Constant) and node.value is Ellipsis:
        return "..."
    return None


def several(argument: Any) -> Any:
    """Returns the wildcard for any number of arguments that an argument of a pattern is; None for other arguments."""
    if isinstance(argument, ast.Starred) or (isinstance(argument, ast.keyword) and argument.arg is None):
        return argument.value if wildcard_name(argument.value) is not None else None
    return argument if wildcard_name(argument) == "..." else None


def find(pattern: Pattern, root: Any) -> list[Match]:
    """Returns all places in the body of the function `root` that the pattern matches, in the order of the source.

    Default values and decorators of `root` are not part of the body: they were evaluated when it was defined.
    """
    matcher = _Matcher(pattern.wildcards())
    body = root.body if isinstance(root.body, list) else [root.body]
    matches = []
    if isinstance(pattern.body, ast.expr):
        for statement in body:
            for node in ast.walk(statement):
                loaded = isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
                if isinstance(node, ast.expr) and loaded:
                    for bound in matcher.exactly(pattern.body, node, {}):
                        matches.append(Match([node], bound))
                        break
    else:
        for statements in _statement_lists(root):
            for start in range(len(statements)):
                # The first and the last pattern are no wildcards: the match would have no definite extent.
                for stop, bound in matcher.run(pattern.body, statements, start, {}):
                    if stop > start:
                        matches.append(Match(list(statements[start:stop]), bound))
                        break
    return sorted(matches, key=lambda match: (match.nodes[0].lineno, match.nodes[0].col_offset))


def same(a: Any, b: Any) -> bool:
    """Returns whether two trees are the same code, wherever they stand."""
    return any(True for _ in _Matcher({}).one(a, b, {}))


def _statement_lists(root: Any) -> Iterator[list[Any]]:
    for node in ast.walk(root):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and statements and isinstance(statements[0], ast.stmt):
                yield statements


def _walk_outside_indices(node: Any) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Subscript) and child is node.slice:
            inner = child.elts if isinstance(child, ast.Tuple) else [child]
            for item in inner:
                if wildcard_name(item) != "...":
                    yield from _walk_outside_indices(item)
        else:
            yield from _walk_outside_indices(child)


class _Matcher:
    """Matches trees with backtracking. Each method yields the bindings of every way to match."""

    def __init__(self, keys: dict[int, str]):
        self.keys = keys  # from Pattern.wildcards

    def one(self, pattern: Any, node: Any, bound: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
        if isinstance(pattern, ast.expr) and isinstance(node, ast.expr):
            key = self.key(pattern)
            if key is not None:
                yield from self.bind(key, [node], bound)
                return
            wrapped = getattr(node, WRAPPED, None)
            if wrapped is not None:
                yield from self.one(pattern, wrapped, {**bound, THROUGH: [*bound.get(THROUGH, []), node]})
        yield from self.exactly(pattern, node, bound)

    def exactly(self, pattern: Any, node: Any, bound: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
        """Matches like `one`, but does not see through `node` itself; the pattern is no wildcard."""
        if isinstance(pattern, ast.AST):
            if type(pattern) is not type(node):
                return
            fields = [f for f in pattern._fields if f not in ("ctx", "type_comment", "kind")]
            if isinstance(pattern, ast.Call):
                yield from self.call(pattern, node, bound)
                return
            yield from self.fields(fields, pattern, node, bound)
        elif isinstance(pattern, list):
            if isinstance(node, list):
                for stop, bindings in self.run(pattern, node, 0, bound):
                    if stop == len(node):
                        yield bindings
        elif type(pattern) is type(node) and repr(pattern) == repr(node):  # 1, 1.0 and True are three constants
            yield bound

    def fields(self, fields, pattern, node, bound):
        if not fields:
            yield bound
            return
        for bindings in self.one(getattr(pattern, fields[0]), getattr(node, fields[0]), bound):
            yield from self.fields(fields[1:], pattern, node, bindings)

    def run(self, patterns, nodes, start, bound):
        """Matches a list of patterns from nodes[start] on; yields also the end of the match."""
        if not patterns:
            yield start, bound
            return
        key = self.key(patterns[0]) if isinstance(patterns[0], ast.stmt) else None
        if key is not None:
            for stop in range(start, len(nodes) + 1):
                for bindings in self.bind(key, nodes[start:stop], bound):
                    yield from self.run(patterns[1:], nodes, stop, bindings)
        elif start < len(nodes):
            for bindings in self.one(patterns[0], nodes[start], bound):
                yield from self.run(patterns[1:], nodes, start + 1, bindings)

    def call(self, pattern, node, bound):
        """Matches a call. Arguments match in order; a wildcard stands for any number, keyword arguments included."""
        ours, theirs = ([*call.args, *call.keywords] for call in (pattern, node))
        for bindings in self.one(pattern.func, node.func, bound):
            yield from self.arguments(sorted(ours, key=_place), sorted(theirs, key=_place), bindings)

    def arguments(self, patterns, nodes, bound):
        if not patterns:
            if not nodes:
                yield bound
            return
        key = self.key(several(patterns[0]))
        if key is None:
            if nodes:
                for bindings in self.one(patterns[0], nodes[0], bound):
                    yield from self.arguments(patterns[1:], nodes[1:], bindings)
            return
        for stop in range(len(nodes) + 1):
            for bindings in self.bind(key, nodes[:stop], bound):
                yield from self.arguments(patterns[1:], nodes[stop:], bindings)

    def key(self, node: Any) -> str | None:
        return self.keys.get(id(node.value if isinstance(node, ast.Expr) else node))

    def bind(self, key, nodes, bound):
        if key not in bound:
            yield {**bound, key: nodes}
        elif same(list(bound[key]), list(nodes)):
            yield bound


def _place(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset
