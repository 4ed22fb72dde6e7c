"""The text of a patched module, for tracebacks, debuggers and `inspect.getsource`.

The text has the lines of the original file, so that line numbers mean the same in both: inserted code stands on the
lines of the code that it replaced.
"""

from __future__ import annotations

import ast
import linecache
from typing import Any

from mishax_lite.rewriting import REGION
from mishax_lite.sources import Source, split_lines

# Expressions that need no parentheses wherever they stand.
_ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.List, ast.Dict, ast.Set, ast.JoinedStr)


def patched_lines(text: str, tree: ast.Module) -> list[str]:
    """Returns the lines of `text` with the edits of `tree`, as many as before, each with its newline.

    A line may hold several lines: an inserted compound statement that does not fit into its place.
    """
    lines = [line.encode() for line in split_lines(text, keepends=True)]
    for nodes in sorted(_edited(tree), key=lambda nodes: _region(nodes), reverse=True):
        _replace(lines, _region(nodes), nodes)
    return [line.decode() for line in lines]


def show(source: Source, lines: list[str] | None) -> None:
    """Makes Python show these lines for a source, or the source itself again."""
    if lines is None and not source.cell:
        linecache.cache.pop(source.filename, None)
        return
    # The entry is the only copy of a cell.
    lines = split_lines(source.text, keepends=True) if lines is None else lines
    # No time of modification: `linecache.checkcache` then leaves the entry alone.
    linecache.cache[source.filename] = (sum(map(len, lines)), None, lines, source.filename)


def _edited(tree: ast.Module) -> list[list[Any]]:
    """Returns the outermost inserted nodes; statements of one region, with the old ones between them, in one list."""
    replaced: list[list[Any]] = []

    def visit(node: Any) -> None:
        if hasattr(node, REGION) or (
            isinstance(node, ast.JoinedStr) and any(hasattr(n, REGION) for n in ast.walk(node))
        ):
            replaced.append([node])
            return
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                visit_statements(value)
            else:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child)

    def visit_statements(statements: list[Any]) -> None:
        k = 0
        while k < len(statements):
            region = getattr(statements[k], REGION, None)
            covered = [s for s in statements if region is None and _covers(s, statements[k])]
            region = getattr(covered[0], REGION, region) if covered else region
            if region is None:
                visit(statements[k])
                k += 1
                continue
            stop = k
            while stop < len(statements) and _inside(statements[stop], region):
                stop += 1
            replaced.append(statements[k:stop])
            k = stop

    visit(tree)
    return replaced


def _covers(inserted: ast.stmt, carried: ast.stmt) -> bool:
    region = getattr(inserted, REGION, None)
    return region is not None and _inside(carried, region)


def _inside(node: Any, region: tuple[int, int, int, int]) -> bool:
    start = (node.lineno, node.col_offset)
    return region[:2] <= start < region[2:] or getattr(node, REGION, None) == region


def _region(nodes: list[Any]) -> tuple[int, int, int, int]:
    for node in nodes:
        if hasattr(node, REGION):
            return getattr(node, REGION)
    return nodes[0].lineno, nodes[0].col_offset, nodes[-1].end_lineno, nodes[-1].end_col_offset


def _replace(lines: list[bytes], region: tuple[int, int, int, int], nodes: list[Any]) -> None:
    first, column, last, end_column = region
    before, rest = lines[first - 1][:column], lines[last - 1][end_column:]
    height = last - first + 1
    margin = before if before.isspace() else b" " * column  # tabs stay tabs, or Python could not read the lines again
    new = _expression(nodes[0], height) if isinstance(nodes[0], ast.expr) else _statements(nodes, height, margin)
    new[0] = before + new[0]
    new[-1] = new[-1] + rest
    lines[first - 1 : last] = new


def _expression(node: ast.expr, height: int) -> list[bytes]:
    """Returns an expression on its first line; the rest of its lines is blank, within parentheses around it."""
    text = ast.unparse(node)
    if not isinstance(node, _ATOMS):
        text = f"({text})"
    if height == 1:
        return [text.encode()]
    if not text.endswith(")"):
        text = f"({text})"
    return [text[:-1].encode() + b"\n", *[b"\n"] * (height - 2), b")"]


def _statements(nodes: list[Any], height: int, margin: bytes) -> list[bytes]:
    rows = [split_lines(ast.unparse(node)) for node in nodes]
    flat = [line for row in rows for line in row]
    if len(flat) > height and all(len(row) == 1 for row in rows):
        kept = flat[: height - 1]
        flat = [*kept, "; ".join(flat[height - 1 :])]  # simple statements fit on one line
    new = [(b"" if k == 0 else margin) + line.encode() for k, line in enumerate(flat)]
    new += [b""] * (height - len(new))
    if len(new) > height:
        new = [*new[: height - 1], b"\n".join(new[height - 1 :])]
    return [line + b"\n" for line in new[:-1]] + [new[-1]]
