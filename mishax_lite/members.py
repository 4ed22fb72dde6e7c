"""Finds a member of a module by name in its syntax tree, and applies one edit to it."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import difflib
import textwrap
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from mishax_lite import match as matching
from mishax_lite import rewriting
from mishax_lite.report import Finding, nearest
from mishax_lite.rewriting import Rewrite
from mishax_lite.sources import split_lines

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function definition, or a lambda.

    Attributes:
        path: its name after the names of the classes and functions around it. A lambda has the name that it is assigned
            to, directly or in a call (`f = jax.jit(lambda x: x)`), and otherwise `<lambda>`.
        node: the definition.
        outermost: the (qualified name, first line) of the outermost function around it; its own if no function is.
    """

    path: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    outermost: tuple[str, int]


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Yields all function definitions of a module, in the order of its source."""
    return _definitions(tree.body, "", None)


def _definitions(
    nodes: Iterable[ast.AST], path: str, outermost: tuple[str, int] | None, name: str = "<lambda>"
) -> Iterator[Definition]:
    """Yields the definitions in `nodes`; `name` is the variable that lambdas among them are assigned to."""
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            yield from _definitions([*node.decorator_list, *node.bases, *node.keywords], path, outermost)
            yield from _definitions(node.body, f"{path}{node.name}.", outermost)
        elif isinstance(node, _FUNCTIONS):
            yield from _definitions([*node.decorator_list, node.args], path, outermost)
            place = outermost or (path + node.name, _first_line(node))
            yield Definition(path + node.name, node, place)
            yield from _definitions(node.body, f"{path}{node.name}.", place)
        elif isinstance(node, ast.Lambda):
            yield from _definitions([node.args], path, outermost)
            place = outermost or (path + "<lambda>", node.lineno)
            yield Definition(path + name, node, place)
            yield from _definitions([node.body], f"{path}{name}.", place)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            # The last name stands for all names of the same function: they are one definition.
            yield from _definitions([node.value], path, outermost, names[-1] if names else "<lambda>")
        else:
            calls = isinstance(node, (ast.Call, ast.IfExp, ast.keyword, ast.Starred))
            yield from _definitions(ast.iter_child_nodes(node), path, outermost, name if calls else "<lambda>")


def _first_line(node: Any) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def lines_of(tree: ast.Module, member: str) -> list[int]:
    """Returns the lines on which a member is defined; none if the module has no such member."""
    nodes = [d.node for d in definitions(tree) if d.path == member]
    # pyrefly: ignore[unsupported-operation]  not None here
    return [line for node in nodes for line in range(node.lineno, node.end_lineno + 1)]


def apply_edit(
    module: types.ModuleType,
    text: str,
    tree: ast.Module,
    alive: Container[tuple[str, int]],
    member: str,
    index: int,
    rewrite: Rewrite,
    namespace: int,
    names: Mapping[str, Any],
) -> Finding:
    """Applies one edit to `tree`, in place, if it fits, and returns what it found.

    Args:
        module: the module.
        text: the module's source.
        tree: the module's tree with the earlier edits.
        alive: the functions of the module that exist, by qualified name and first line. A definition that a later one
            replaced (an overload, another branch of an `if`) has none, and is ignored.
        member: the member's name.
        index: the index of the edit among the member's edits.
        rewrite: the edit.
        namespace: the patch's, see `rewriting.apply`.
        names: the patch's extra names.
    """

    def finding(status: str, message: str, **more: Any) -> Finding:
        return Finding(module.__name__, member, index, status, message, **more)

    everything = list(definitions(tree))
    named = [d for d in everything if d.path == member]
    if not named:
        return finding("stale", _no_such_member(module, member, everything))
    candidates = [d for d in named if d.outermost in alive]
    if not candidates:
        return finding("refused", "no function that was made from this definition exists any more")
    pin = rewriting.pin_of("\n".join(_source(text, d.node) for d in candidates))
    if rewrite.pin is not None and rewrite.pin != pin:
        return finding("stale", f"the source is not the one that the edit was written for (pin {rewrite.pin})", pin=pin)
    before, after = rewrite.patterns()
    matches = [match for d in candidates for match in matching.find(before, d.node)]
    lines = tuple(match.nodes[0].lineno for match in matches)
    if not matches:
        diffs = (nearest(before.body, d.node, text) for d in candidates)
        message = "`before` is missing"
        if not before.is_expression and all(isinstance(d.node, ast.Lambda) for d in candidates):
            message += ": a lambda has one expression and no statements, so `before` and `after` must be expressions"
        return finding("stale", message, pin=pin, diff=next(filter(None, diffs), ""))
    if len(matches) != rewrite.count:
        message = (
            f"`before` occurs {len(matches)} times (lines {', '.join(map(str, lines))}), expected {rewrite.count}; "
            "take more of the code around it into `before`, or set count"
        )
        return finding("ambiguous" if len(matches) > rewrite.count else "stale", message, lines=lines, pin=pin)
    around = [d for d in everything if d.outermost in {d.outermost for d in candidates}]
    unknown = _unknown_names(module, around, after, names)
    if unknown:
        message = (
            f"`after` uses {', '.join(unknown)}, which neither the module nor the function defines; pass "
            f"{'it' if len(unknown) == 1 else 'them'} in `names`"
        )
        return finding("refused", message, lines=lines, pin=pin)
    try:
        for match in matches:
            rewriting.apply(rewrite, tree, match, namespace, names)
    except ValueError as error:
        return finding("refused", str(error), lines=lines, pin=pin)
    return finding("ok", f"line {', '.join(map(str, lines))}", lines=lines, pin=pin)


def _no_such_member(module: types.ModuleType, member: str, everything: list[Definition]) -> str:
    name = member.split(".")[0]
    thing = vars(module).get(name)
    home = getattr(thing, "__module__", None)
    if thing is not None and isinstance(home, str) and home != module.__name__:
        return f"{name!r} is defined in {home}, and only imported here; patch that module"
    if any(d.path.startswith(member + ".") for d in everything):
        return f"{member!r} is a class; name one of its methods"
    near = difflib.get_close_matches(member, [d.path for d in everything], n=3, cutoff=0.4)
    return f"the module defines no function {member!r}" + (f"; near names: {', '.join(near)}" if near else "")


def _source(text: str, node: Any) -> str:
    return textwrap.dedent("\n".join(split_lines(text)[_first_line(node) - 1 : node.end_lineno]))


def _unknown_names(
    module: types.ModuleType, around: list[Definition], after: matching.Pattern, names: Mapping[str, Any]
) -> list[str]:
    """Returns names that the inserted code reads and that neither the module nor the functions around it define."""
    root = after.body if isinstance(after.body, ast.expr) else ast.Module(after.body, [])
    wild = after.wildcards()
    used = [n.id for n in ast.walk(root) if isinstance(n, ast.Name) and id(n) not in wild]
    defined = {*names, *vars(module), *vars(builtins)}
    for tree in [root, *(d.node for d in around)]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and (tree is not root or not isinstance(node.ctx, ast.Load)):
                defined.add(node.id)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.alias):
                defined.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                defined.add(node.name)
    return sorted(set(used) - defined)
