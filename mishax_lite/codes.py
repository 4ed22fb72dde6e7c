"""Compiles code objects from a module's syntax tree, compares them, and finds those of a function."""

from __future__ import annotations

import ast
import inspect
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mishax_lite import scopes, sources
from mishax_lite.scopes import NAMESPACE
from mishax_lite.sources import Source

# Identifies a function's code: its qualified name, and the line where its definition begins.
Key = tuple[str, int]
Codes = dict[Key, list[types.CodeType]]

# The errors of compiling an edited tree: Python has several for a tree that is no program.
COMPILE_ERRORS = (SyntaxError, ValueError, TypeError, RecursionError)


class Names:
    """The extra names of a patch, as attributes.

    It is a constant of the patched code. Python hashes code by its constants, so it is hashed by identity, whatever its
    values are. When cloudpickle sends a function by value, it sends this along.
    """

    def __init__(self, names: Mapping[str, Any]):
        vars(self).update(names)


def code_of(module: types.ModuleType, tree: ast.Module, source: Source, namespaces: Mapping[int, Names]) -> Codes:
    """Compiles a module's tree and returns the code of every function in it; functions of one key in source order.

    Names that edits brought in are constants of the code, so the module shows no new name.

    Args:
        module: the module.
        tree: its syntax tree with the edits; it changes.
        source: the source of the tree.
        namespaces: the extra names of the patches, by the ids that mark them in the tree.

    Raises:
        SyntaxError, ValueError, TypeError, RecursionError: if the tree is no program.
    """
    tree = ast.fix_missing_locations(_Names(scopes.find_bound(tree) if namespaces else set()).visit(tree))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python showed the module's own when it imported the module
        code = sources.compile_as_imported(module, tree, source)
    markers = {_marker(key): namespace for key, namespace in namespaces.items()}
    codes: Codes = {}
    for inner in walk(_with_constants(code, markers) if markers else code):
        codes.setdefault((inner.co_qualname, inner.co_firstlineno), []).append(inner)
    return codes


def walk(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields the code of all functions in `code`, in source order."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from walk(constant)


class Index:
    """Finds the place of a code object among `codes`: its key, and its index among the codes of that key."""

    def __init__(self, codes: Codes):
        self.codes = codes
        self._by_name: dict[str, list[tuple[Key, int]]] = {}
        for key, alike in codes.items():
            for k in range(len(alike)):
                self._by_name.setdefault(_local_name(key[0]), []).append((key, k))

    def find(self, code: types.CodeType, qualname: str) -> tuple[Key, int] | None:
        """Returns the place of code that does the same as `code`, nearest to its line; None if none or several fit.

        Args:
            code: the code of a function.
            qualname: `__qualname__` of the function. Tools that compile a method alone (IPython's autoreload) give the
                code other lines, and another qualified name than the function's.
        """
        places = [
            (key, k)
            for key, k in self._by_name.get(_local_name(code.co_qualname), [])
            if same_code(self.codes[key][k], code)
        ]
        for name in (code.co_qualname, qualname):
            named = [place for place in places if place[0][0] == name]
            if named:
                return min(named, key=lambda place: abs(place[0][1] - code.co_firstlineno))
        return places[0] if len(places) == 1 else None


def _local_name(qualname: str) -> str:
    """Returns a qualified name without the classes around its outermost function."""
    head, *inner = qualname.split(".<locals>.")
    return ".<locals>.".join([head.rsplit(".", 1)[-1], *inner])


_COMPARED = (
    *("co_code", "co_exceptiontable", "co_name", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount"),
)


def same_code(a: types.CodeType, b: types.CodeType) -> bool:
    """Returns whether two code objects do the same; positions in lines do not count."""
    if a is b:
        return True
    if any(getattr(a, name) != getattr(b, name) for name in _COMPARED):
        return False
    if len(a.co_consts) != len(b.co_consts):
        return False
    for x, y in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(x, types.CodeType) and isinstance(y, types.CodeType):
            if not same_code(x, y):
                return False
        elif not _same_constant(x, y):
            return False
    return True


def all_same(a: list[types.CodeType], b: list[types.CodeType]) -> bool:
    """Returns whether two lists hold code objects that do the same, in the same order."""
    return len(a) == len(b) and all(map(same_code, a, b))


def _same_constant(x: Any, y: Any) -> bool:
    if type(x) is not type(y):
        return False
    if isinstance(x, tuple):
        return len(x) == len(y) and all(map(_same_constant, x, y))
    if isinstance(x, (int, float, complex)):
        return repr(x) == repr(y)  # tells 0.0 from -0.0
    return x is y or (isinstance(x, (str, bytes, frozenset)) and x == y)


def incompatible(original: list[types.CodeType], new: list[types.CodeType]) -> str:
    """Returns why functions with the original code of some key cannot get the new code; "" if they can.

    A function keeps its closure when its code is replaced, so the new code must use the same cells. This holds also for
    functions that are made while the patch is installed: the patch could not be taken out of them again.
    """
    if len(original) != len(new):
        return ""
    for a, b in zip(original, new, strict=True):
        if a.co_freevars != b.co_freevars and _makes_function(a):
            extra, gone = (sorted(set(x.co_freevars) - set(y.co_freevars)) for x, y in ((b, a), (a, b)))
            changes = [f"would need {extra} too" if extra else "", f"would not need {gone} any more" if gone else ""]
            change = " and ".join(filter(None, changes))
            return (
                f"the closure of {a.co_qualname} has the cells {list(a.co_freevars)}; the edited code {change}, and "
                "the closure of a function cannot be changed. Let the edit use the same variables of the enclosing "
                "functions that the function uses already (`__class__` is that of super())"
            )
    return ""


def _makes_function(code: types.CodeType) -> bool:
    """Returns whether code makes functions that outlive a statement, unlike class bodies and comprehensions."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.endswith(("comp>", "genexpr>"))


def _marker(key: int) -> str:
    return f"\0mishax_lite names {key}"


def _with_constants(code: types.CodeType, markers: Mapping[str, Any]) -> types.CodeType:
    """Returns code in which objects stand in the place of their markers among the constants."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constant = _with_constants(constant, markers)
        elif type(constant) is str:
            constant = markers.get(constant, constant)
        constants.append(constant)
    if all(new is old for new, old in zip(constants, code.co_consts, strict=True)):
        return code
    return code.replace(co_consts=tuple(constants))


class _Names(ast.NodeTransformer):
    """Turns an extra name into an attribute of a constant: Python folds constants, but never their attributes."""

    def __init__(self, bound: set[int]):
        self.bound = bound  # from scopes.find_bound

    def visit_Name(self, node: ast.Name) -> ast.AST:
        key = getattr(node, NAMESPACE, None)
        if key is None or id(node) in self.bound:
            return node
        namespace = ast.copy_location(ast.Constant(_marker(key)), node)
        return ast.copy_location(ast.Attribute(namespace, node.id, ast.Load()), node)
