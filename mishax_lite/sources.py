"""Reads the source of a module, and compiles it as its importer did.

A module's functions may come from a file, an archive, a script that runs as `__main__`, or the cells of a notebook.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
import functools
import importlib.util
import linecache
import operator
import sys
import types
from typing import Any

_FUTURE = functools.reduce(operator.or_, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))


@dataclasses.dataclass(frozen=True)
class Source:
    """Source text.

    Attributes:
        filename: the file that tracebacks name.
        text: the source, with lines that end in "\\n".
        cell: whether a person typed it in (a notebook's cell). It has no file, and `linecache` holds the only copy.
        flags: the `__future__` features that hold in it although it does not import them, in the compiler's form.
    """

    filename: str
    text: str
    cell: bool = False
    flags: int = 0


def split_lines(text: str, keepends: bool = False) -> list[str]:
    """Splits source at "\\n" alone, as Python counts lines: a form feed or U+2028 is inside of a line, not its end.

    `str.splitlines` would end lines there too, and the lines after them would have other numbers than in the tree.
    """
    lines = text.split("\n")
    ends = [*[line + "\n" for line in lines[:-1]], lines[-1]] if keepends else lines
    return ends if ends[-1] else ends[:-1]


def read_module(module: types.ModuleType) -> Source | None:
    """Reads the present source of a module on disk; None if it has none (built in, compiled, typed in)."""
    filename = getattr(module, "__file__", None)
    if not isinstance(filename, str):
        return None
    text = _text_of_loader(module)
    if text is None and not filename.endswith((".pyc", ".so", ".pyd")):
        try:
            with open(filename, "rb") as file:
                text = importlib.util.decode_source(file.read())
        except (OSError, UnicodeDecodeError, SyntaxError):
            return None
    return None if text is None else Source(filename, _with_newlines(text))


def read_cell(module: types.ModuleType, code: types.CodeType) -> Source | None:
    """Reads the source of a function that was typed into a notebook or a console; None if nobody kept it."""
    text = "".join(linecache.getlines(code.co_filename, vars(module)))
    if not text:
        return None
    return Source(code.co_filename, _with_newlines(text), cell=True, flags=code.co_flags & _FUTURE)


def parse(source: Source) -> ast.Module:
    """Returns the syntax tree of a source.

    Raises:
        SyntaxError: if it is no Python.
    """
    return compile(source.text, source.filename, "exec", ast.PyCF_ONLY_AST | source.flags, dont_inherit=True)


def compile_as_imported(module: types.ModuleType, tree: ast.Module, source: Source) -> types.CodeType:
    """Compiles a module's tree as its importer did; the tree changes.

    pytest rewrites the assert statements of test modules on import, so the code in memory is that of a rewritten tree.
    This package does not know other import hooks that change function bodies: it refuses patches of their code.
    """
    loader: Any = getattr(module, "__loader__", None)
    if type(loader).__module__ == "_pytest.assertion.rewrite":
        rewriter = sys.modules[type(loader).__module__]
        rewriter.rewrite_asserts(tree, source.text.encode(), source.filename, loader.config)
    return compile(tree, source.filename, "exec", source.flags, dont_inherit=True)


def _text_of_loader(module: types.ModuleType) -> str | None:
    loader, spec = getattr(module, "__loader__", None), getattr(module, "__spec__", None)
    if not hasattr(loader, "get_source"):
        return None
    try:
        # `python -m prog` calls the module `__main__`; the loader still knows it as `prog`.
        return loader.get_source(getattr(spec, "name", None) or module.__name__)
    except (ImportError, OSError, SyntaxError):
        return None


def _with_newlines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"
