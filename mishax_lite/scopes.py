"""Finds the names that inserted code binds itself, scope by scope.

An extra name of a `Patch` yields to a variable that the patch's own code binds: an assignment, a loop, a comprehension,
a parameter. A variable that only the patched function binds does not count: the extra name may shadow it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

# An attribute of an extra name in inserted code: the patch that has the name.
NAMESPACE = "_mishax_namespace"
# An attribute of a node that the `after` of an edit spells out: the patches (a frozenset) that spell it out.
SPELLED = "_mishax_spelled"

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def find_bound(tree: ast.Module) -> set[int]:
    """Returns the ids of the names marked with NAMESPACE that are variables of the inserted code after all."""
    finder = _Finder()
    for statement in tree.body:
        finder.visit(statement)
    return finder.bound


class _Scope:
    """A scope of Python: its nodes, and its parameters if it is a function's."""

    def __init__(self, nodes: list[Any], arguments: ast.arguments | None = None, is_class: bool = False):
        self.nodes, self.arguments, self.is_class = nodes, arguments, is_class
        self.names: set[tuple[int, str]] | None = None  # (patch, name), from the first question on

    def binds(self, patch: int, name: str) -> bool:
        if self.names is None:
            pairs = [(node, name) for root in self.nodes for node, name in _bindings(root)]
            if self.arguments is not None:
                pairs += [(n, n.arg) for n in ast.walk(self.arguments) if isinstance(n, ast.arg)]
            self.names = {(p, name) for node, name in pairs for p in getattr(node, SPELLED, ())}
        return (patch, name) in self.names


class _Finder(ast.NodeVisitor):
    def __init__(self):
        self.scopes: list[_Scope] = []
        self.bound: set[int] = set()

    def visit_Name(self, node: ast.Name) -> None:
        patch = getattr(node, NAMESPACE, None)
        if patch is None:
            return
        inner, outer = self.scopes[-1:], self.scopes[:-1]
        # The variables of a class are not seen from the functions in it.
        around = [*(scope for scope in outer if not scope.is_class), *inner]
        if any(scope.binds(patch, node.id) for scope in around):
            self.bound.add(id(node))

    def inside(self, scope: _Scope) -> None:
        self.scopes.append(scope)
        for node in scope.nodes:
            self.visit(node)
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for child in _outside(node):
            self.visit(child)
        self.inside(_Scope(node.body, node.args))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for child in _outside(node):
            self.visit(child)
        self.inside(_Scope([node.body], node.args))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in _outside(node):
            self.visit(child)
        self.inside(_Scope(node.body, is_class=True))

    def visit_ListComp(self, node: Any) -> None:
        self.visit(node.generators[0].iter)
        self.inside(_Scope(_inside_of_comprehension(node)))

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def _outside(node: Any) -> list[Any]:
    """Returns the parts of a definition that Python evaluates in the scope around it."""
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords]
    defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    if isinstance(node, ast.Lambda):
        return defaults
    arguments = (n.annotation for n in ast.walk(node.args) if isinstance(n, ast.arg))
    return [*node.decorator_list, *defaults, *filter(None, arguments), *filter(None, [node.returns])]


def _inside_of_comprehension(node: Any) -> list[Any]:
    elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
    rest = [child for g in node.generators for child in (g.target, *g.ifs)]
    return [*elements, *rest, *(g.iter for g in node.generators[1:])]


def _bindings(node: Any) -> Iterator[tuple[ast.AST, str]]:
    """Yields the names that `node` binds in its own scope, each after the node that binds it."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
        if not isinstance(node, ast.Lambda):
            yield node, node.name
        for child in _outside(node):
            yield from _bindings(child)
        return
    if isinstance(node, _COMPREHENSIONS):
        yield from _bindings(node.generators[0].iter)
        for child in _inside_of_comprehension(node):
            # `:=` binds in the function around a comprehension; the targets of the comprehension are its own.
            named = {id(n.target) for n in ast.walk(child) if isinstance(n, ast.NamedExpr)}
            yield from ((n, name) for n, name in _bindings(child) if id(n) in named)
        return
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node, node.id
    elif isinstance(node, ast.alias):
        yield node, (node.asname or node.name).split(".")[0]
    elif isinstance(node, (ast.Global, ast.Nonlocal)):  # whoever declares a name means another variable than the extra
        yield from ((node, name) for name in node.names)
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node, node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node, node.rest
    for child in ast.iter_child_nodes(node):
        yield from _bindings(child)
