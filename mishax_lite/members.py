"""Finding a member of a module by name in its syntax tree, and applying one edit to it."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import difflib
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

from mishax_lite import match as matching
from mishax_lite import rewriting
from mishax_lite.report import Finding, nearest
from mishax_lite.rewriting import Rewrite

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function definition. `path`: its name with those of the classes and functions around it.

    `outermost`: the (qualified name, first line) of the outermost function around it, itself if there is none.
    """

    path: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    outermost: tuple[str, int]


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """All function definitions of a module, in the order of its source."""

    def visit(node: ast.AST, path: str, outermost: tuple[str, int] | None) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{path}{child.name}.", outermost)
            elif isinstance(child, _FUNCTIONS):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                own = outermost or (path + child.name, first)
                yield Definition(path + child.name, child, own)
                yield from visit(child, f"{path}{child.name}.", own)
            else:
                yield from visit(child, path, outermost)

    return visit(tree, "", None)


def lines_of(tree: ast.Module, member: str) -> list[int]:
    """The lines on which a member is defined; none if there is no such member."""
    nodes = [d.node for d in definitions(tree) if d.path == member]
    return [line for node in nodes for line in range(node.lineno, node.end_lineno + 1)]


def apply_edit(
    module: types.ModuleType,
    text: str,
    tree: ast.Module,
    alive: Mapping[tuple[str, int], Any],
    member: str,
    index: int,
    rewrite: Rewrite,
    namespace: int,
    names: Mapping[str, Any],
) -> Finding:
    """Applies one edit to `tree`, in place, if it fits.

    Args:
        module, text, tree: the module, its source, and its tree with the earlier edits.
        alive: the functions of the module that exist, by qualified name and first line; definitions that were
            replaced by later ones (overloads, other branches of an `if`) have none, and are not looked at.
        member, index, rewrite: the member's name, the number of the edit, and the edit.
        namespace, names: of the patch, see `rewriting.apply`.
    """

    def finding(status: str, message: str, **more: Any) -> Finding:
        return Finding(module.__name__, member, index, status, message, **more)

    everything = list(definitions(tree))
    named = [d for d in everything if d.path == member]
    if not named:
        return finding("stale", _no_such_member(module, member, everything))
    found = [d for d in named if d.outermost in alive]
    if not found:
        return finding("refused", "no function that was made from this definition exists any more")
    pin = rewriting.pin_of("\n".join(_source(text, d.node) for d in found))
    if rewrite.pin is not None and rewrite.pin != pin:
        return finding("stale", f"the source is not the one that the edit was written for (pin {rewrite.pin})", pin=pin)
    before, after = rewrite.patterns()
    matches = [match for d in found for match in matching.find(before, d.node)]
    lines = tuple(match.nodes[0].lineno for match in matches)
    if not matches:
        diffs = (nearest(before.body, d.node, text) for d in found)
        return finding("stale", "`before` is not there", pin=pin, diff=next(filter(None, diffs), ""))
    if len(matches) != rewrite.count:
        message = (
            f"`before` is there {len(matches)} times (lines {', '.join(map(str, lines))}), expected {rewrite.count}; "
            "take more of the code around it into `before`, or set count"
        )
        return finding("ambiguous" if len(matches) > rewrite.count else "stale", message, lines=lines, pin=pin)
    around = [d for d in everything if d.outermost in {d.outermost for d in found}]
    unknown = _unknown_names(module, around, after, names)
    if unknown:
        message = (
            f"`after` uses {', '.join(unknown)}, which neither the module nor the function knows; pass it in `names`"
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


def _source(text: str, node: ast.AST) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def _unknown_names(
    module: types.ModuleType, around: list[Definition], after: matching.Pattern, names: Mapping[str, Any]
) -> list[str]:
    """Names that the inserted code reads and that nobody gives a value: not the module, nor the functions around."""
    root = after.body if isinstance(after.body, ast.expr) else ast.Module(after.body, [])
    wild = after.wildcards()
    used = [n.id for n in ast.walk(root) if isinstance(n, ast.Name) and id(n) not in wild]
    known = {*names, *vars(module), *vars(builtins)}
    for tree in [root, *(d.node for d in around)]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and (tree is not root or not isinstance(node.ctx, ast.Load)):
                known.add(node.id)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                known.add(node.name)
            elif isinstance(node, ast.alias):
                known.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                known.add(node.name)
    return sorted(set(used) - known)
