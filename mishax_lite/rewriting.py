"""`Rewrite`, and its change of a syntax tree.

Original code keeps its positions, so tracebacks name the lines of the file; inserted code has the position of the code
that it replaces.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

from mishax_lite import match as matching
from mishax_lite.match import WRAPPED, Match, Pattern
from mishax_lite.scopes import NAMESPACE, SPELLED
from mishax_lite.sources import split_lines

# An attribute of the root of inserted code: the extent in the file of the code that it replaced, as (line, column, end
# line, end column).
REGION = "_mishax_region"


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One edit of a function's body: where the source says `before`, it shall say `after`.

    Attributes:
        before: an expression, or statements in a row; see `match.py` for wildcards (`...` and `$name`).
        after: the code that takes the place of `before`. `$name` stands for the code that it matched in `before`, the
            k-th `...` for the code that the k-th `...` matched; a target of an assignment may be read, and the other
            way round. `after` may use `tap` and the extra names of its `Patch` without importing them. A variable that
            `after` itself binds wins over an extra name, as it wins over a global one.
        count: the number of places in which `before` must occur; with any other number the edit is stale or ambiguous.
        pin: the hash of the member's source that the edit was written for (`Patch.check` and `python -m mishax_lite
            check` print it), or None. With another source the edit is stale even if it matches.

    Raises:
        ValueError: if `before` or `after` is no Python, or `after` has a wildcard that `before` lacks.

    Example:
        >>> rewrite = mishax_lite.Rewrite("jax.nn.softmax($scores)", 'tap("pattern", jax.nn.softmax($scores))')
        >>> mishax_lite.Rewrite("jax.nn.softmax($scores)", 'tap("pattern", $weights)')
        Traceback (most recent call last):
        ValueError: Rewrite: `after` uses $weights, which `before` lacks:
        tap("pattern", $weights)
    """

    before: str
    after: str
    count: int = 1
    pin: str | None = None

    def __post_init__(self):
        before, after = self.patterns()
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"Rewrite: count must be a positive number; got {self.count!r}")
        unbound = set(after.wildcards().values()) - set(before.wildcards().values())
        if unbound:
            names = ", ".join(sorted("..." if name.startswith("...") else "$" + name for name in unbound))
            raise ValueError(f"Rewrite: `after` uses {names}, which `before` lacks:\n{self.after}")
        if not before.is_expression:
            for end in (before.body[0], before.body[-1]):
                if matching.wildcard_name(end) is not None:
                    raise ValueError(
                        "Rewrite: `before` may not begin or end with a wildcard for statements, since it would have "
                        f"no definite extent:\n{self.before}"
                    )

    def patterns(self) -> tuple[Pattern, Pattern]:
        """Returns `before` and `after`, parsed: both an expression, or both statements."""
        for what, text in (("before", self.before), ("after", self.after)):
            if not isinstance(text, str):
                raise ValueError(f"Rewrite: {what} must be source text; got {type(text).__name__}")
        before = matching.parse(self.before, "Rewrite: `before`")
        after = matching.parse(self.after, "Rewrite: `after`")
        if before.is_expression and after.is_expression:
            return before, after
        return _as_statements(before), _as_statements(after)


def _as_statements(pattern: Pattern) -> Pattern:
    if not pattern.is_expression:
        return pattern
    return Pattern([ast.copy_location(ast.Expr(pattern.body), pattern.body)], pattern.text)


def pin_of(source: str) -> str:
    """Returns the hash of a member's source for `Rewrite.pin`; white space at the ends of lines does not count."""
    text = "\n".join(line.rstrip() for line in split_lines(source.strip()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def apply(rewrite: Rewrite, tree: ast.Module, match: Match, namespace: int, names: Iterable[str]) -> None:
    """Puts `after` in the place of `match` in `tree`.

    Args:
        rewrite: the edit.
        tree: the module's tree; it changes.
        match: a match of `before`.
        namespace: the id of the patch, which marks its extra names.
        names: the extra names of the patch.

    Raises:
        ValueError: if an earlier edit would be lost, or a wildcard stands for code that does not fit its place in
            `after`.
    """
    before, after = rewrite.patterns()
    first, last = match.nodes[0], match.nodes[-1]
    region = getattr(first, REGION, _extent(first, last))
    # Inserted code that `before` spells out may go. Code that the match saw through, or a wildcard's code, may not.
    unspoken = [*match.bound.get(matching.THROUGH, [])]
    unspoken += [n for key, nodes in match.bound.items() if key != matching.THROUGH for r in nodes for n in ast.walk(r)]
    earlier = [node for node in unspoken if hasattr(node, REGION)]
    substitute = _Substitute(before, after, match, region, namespace, frozenset(names))
    new = substitute.expression() if after.is_expression else substitute.statements()
    kept = {id(node) for root in new for node in ast.walk(root)} | substitute.copied
    if any(id(node) not in kept for node in earlier):
        raise ValueError(
            "it would drop what an earlier edit inserted there; let `after` contain `before` as it is (or its parts, "
            "as $names), or put both edits into one Rewrite"
        )
    _Replace(match.nodes, new).visit(tree)


def _extent(first: Any, last: Any) -> tuple[int, int, int, int]:
    return first.lineno, first.col_offset, last.end_lineno, last.end_col_offset


class _Substitute(ast.NodeTransformer):
    """Makes `after`, with the matched code in the place of its wildcards and of `before` itself."""

    def __init__(self, before: Pattern, after: Pattern, match: Match, region, namespace: int, names: frozenset[str]):
        self.before, self.match, self.region = before, match, region
        self.namespace, self.names = namespace, names
        self.wild = after.wildcards()
        self.body = after.body
        self.used: set[int] = set()
        self.copied: set[int] = set()  # ids of nodes that are in the new code only as copies

    def expression(self) -> list[Any]:
        root = self.visit(self.body)
        if root is not self.match.nodes[0]:
            setattr(root, REGION, self.region)
            if any(node is self.match.nodes[0] for node in ast.walk(root)):
                setattr(root, WRAPPED, self.match.nodes[0])
        return [root]

    def statements(self) -> list[Any]:
        new = self.visit_list(self.body)
        for node in new:
            if not hasattr(node, REGION) and id(node) not in {id(n) for n in self.carried()}:
                setattr(node, REGION, self.region)
        return new

    def carried(self) -> list[Any]:
        return [*self.match.nodes, *(node for nodes in self.match.bound.values() for node in nodes)]

    def once(self, node: Any) -> Any:
        """Returns the node itself at its first use, copies after that."""
        if id(node) in self.used:
            return copy.deepcopy(node)
        self.used.add(id(node))
        return node

    def once_as(self, node: ast.expr, ctx: ast.expr_context) -> ast.expr:
        """Returns a node like `once` for a place that reads, assigns or deletes; a copy if the source does another."""
        if type(getattr(node, "ctx", ast.Load())) is type(ctx):
            return self.once(node)
        self.copied.update(id(child) for child in ast.walk(node))
        node = copy.deepcopy(node)
        _set_context(node, ctx)
        return node

    def spell(self, nodes: list[Any]) -> None:
        """Notes that `after` repeats code from the source; the code of its wildcards is not repeated."""
        todo = list(nodes)
        wild = {id(node) for bound in self.match.bound.values() for node in bound}
        while todo:
            node = todo.pop()
            if id(node) in wild:
                continue
            if hasattr(node, "lineno"):  # others bind nothing, and contexts are one object for all trees
                setattr(node, SPELLED, getattr(node, SPELLED, frozenset()) | {self.namespace})
            todo += ast.iter_child_nodes(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.simple = int(isinstance(node.target, ast.Name))  # the wildcard may stand for an attribute
        return node

    def visit(self, node: Any) -> Any:
        if isinstance(node, ast.expr):
            ctx = getattr(node, "ctx", ast.Load())
            if self.before.is_expression and matching.same(self.before.body, node):
                self.spell(self.match.nodes)
                return self.once_as(self.match.nodes[0], ctx)
            key = self.wild.get(id(node))
            if key is not None:
                bound = self.match.bound[key]
                if len(bound) != 1 or not isinstance(bound[0], ast.expr):
                    raise ValueError(
                        f"wildcard {key!r} stands for {len(bound)} arguments or statements, not for one "
                        "expression; use it in `after` where it is used in `before`"
                    )
                return self.once_as(bound[0], ctx)
        node = super().visit(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in self.names:
            setattr(node, NAMESPACE, self.namespace)
        if hasattr(node, "lineno"):
            setattr(node, SPELLED, frozenset([self.namespace]))
            line, column, last, end = self.region
            # On one line: for code that spans several, tracebacks have the first line or the last.
            node.lineno, node.col_offset = line, column
            node.end_lineno, node.end_col_offset = line, end if line == last else column + 1
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.func = self.visit(node.func)
        args, keywords = [], []
        for item in [*node.args, *node.keywords]:
            key = self.wild.get(id(matching.several(item)))
            items = [self.once(n) for n in self.match.bound[key]] if key is not None else [self.visit(item)]
            for new in items:
                (keywords if isinstance(new, ast.keyword) else args).append(new)
        node.args, node.keywords = args, keywords
        return node

    def visit_list(self, statements: list[Any]) -> list[Any]:
        """Returns statements with the matched code in the place of wildcards, and of the statements of `before`."""
        new: list[Any] = []
        k = 0
        while k < len(statements):
            statement = statements[k]
            if not self.before.is_expression:
                row = statements[k : k + len(self.before.body)]
                if matching.same(self.before.body, row):
                    self.spell(self.match.nodes)
                    new.extend(self.once(node) for node in self.match.nodes)
                    k += len(row)
                    continue
            k += 1
            key = self.wild.get(id(statement.value)) if isinstance(statement, ast.Expr) else None
            if key is not None:
                for node in self.match.bound[key]:
                    node = self.once(node)
                    new.append(node if isinstance(node, ast.stmt) else ast.copy_location(ast.Expr(node), node))
            else:
                new.append(self.visit(statement))
        return new

    def generic_visit(self, node: Any) -> Any:
        for field, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, field, self.visit_list(value))
            elif isinstance(value, list):
                setattr(node, field, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
        return node


def _set_context(node: ast.expr, ctx: ast.expr_context) -> None:
    if isinstance(node, (ast.Tuple, ast.List)):
        for element in node.elts:
            _set_context(element, ctx)
    elif isinstance(node, ast.Starred):
        _set_context(node.value, ctx)
    elif not isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
        raise ValueError(
            f"`after` assigns to {ast.unparse(node)!r}, which a wildcard or `before` stands for; only names, "
            "attributes, items and tuples of them can be assigned to"
        )
    node.ctx = ctx


class _Replace(ast.NodeTransformer):
    """Puts new nodes in the place of old ones in a row."""

    def __init__(self, old: list[Any], new: list[Any]):
        self.old, self.new, self.done = old, new, False

    def visit(self, node: Any) -> Any:
        return node if self.done else super().visit(node)

    def generic_visit(self, node: Any) -> Any:
        for field, value in ast.iter_fields(node):
            if value is self.old[0]:
                setattr(node, field, self.new[0])
                self.done = True
            elif isinstance(value, list):
                for k, item in enumerate(value):
                    if item is self.old[0]:
                        value[k : k + len(self.old)] = self.new
                        self.done = True
                        break
                    if isinstance(item, ast.AST):
                        self.visit(item)
            elif isinstance(value, ast.AST):
                self.visit(value)
            if self.done:
                break
        return node
