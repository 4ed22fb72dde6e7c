"""Code objects of a module: in its source, compiled, and in the functions that are alive."""

from __future__ import annotations

import ast
import gc
import inspect
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mishax_lite.rewriting import NAMESPACE

# What a function's code is known by: its qualified name and the line where its definition begins.
Key = tuple[str, int]


def live_functions(module: types.ModuleType, filename: str) -> dict[Key, list[types.FunctionType]]:
    """All functions in memory whose code came from this module's file, closures and wrapped functions among them."""
    found: dict[Key, list[types.FunctionType]] = {}
    for item in gc.get_objects():
        if type(item) is types.FunctionType and item.__globals__ is module.__dict__:
            code = item.__code__
            if code.co_filename == filename:
                found.setdefault((code.co_qualname, code.co_firstlineno), []).append(item)
    return found


def code_of(tree: ast.Module, filename: str, namespaces: Mapping[int, Any]) -> dict[Key, list[types.CodeType]]:
    """Compiles a module's tree and returns the code of every function in it; those of one key in source order.

    Names that edits brought in are constants of the code: the module, and all who look at it, see no new name.
    """
    tree = ast.fix_missing_locations(_Names().visit(tree))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the module's own were shown when it was imported
        module = compile(tree, filename, "exec", dont_inherit=True)
    markers = {_marker(key): namespace for key, namespace in namespaces.items()}
    found: dict[Key, list[types.CodeType]] = {}
    for code in _walk(_with_constants(module, markers) if markers else module):
        found.setdefault((code.co_qualname, code.co_firstlineno), []).append(code)
    return found


def codes_inside(code: types.CodeType) -> dict[Key, list[types.CodeType]]:
    """The code of a function and of all functions in it."""
    found: dict[Key, list[types.CodeType]] = {(code.co_qualname, code.co_firstlineno): [code]}
    for inner in _walk(code):
        found.setdefault((inner.co_qualname, inner.co_firstlineno), []).append(inner)
    return found


def same_code(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether two code objects do the same; positions in lines do not count."""
    if a is b:
        return True
    for name in ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags", "co_argcount"):
        if getattr(a, name) != getattr(b, name):
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


def _same_constant(x: Any, y: Any) -> bool:
    if type(x) is not type(y):
        return False
    if isinstance(x, tuple):
        return len(x) == len(y) and all(map(_same_constant, x, y))
    if isinstance(x, (int, float, complex)):
        return repr(x) == repr(y)  # tells 0.0 from -0.0
    return x is y or (isinstance(x, (str, bytes, frozenset)) and x == y)


def incompatible(original: list[types.CodeType], new: list[types.CodeType]) -> str:
    """Why functions with the original code of some key cannot get the new one; "" if they can.

    A function keeps its closure when its code is replaced, so the code must ask for the same cells. This holds for
    closures that will be made while the patch is in, too: it could not be taken out of them again.
    """
    if len(original) != len(new):
        return ""
    for a, b in zip(original, new, strict=True):
        if a.co_freevars != b.co_freevars and _makes_function(a):
            more, gone = (sorted(set(x.co_freevars) - set(y.co_freevars)) for x, y in ((b, a), (a, b)))
            changes = [f"would need {more} too" if more else "", f"would not need {gone} any more" if gone else ""]
            change = " and ".join(filter(None, changes))
            return (
                f"the closure of {a.co_qualname} has the cells {list(a.co_freevars)}; the edited code {change}, and "
                "the closure of a function cannot be changed. Let the edit use the same variables of the enclosing "
                "functions that the function uses already (`__class__` is that of super())"
            )
    return ""


def _makes_function(code: types.CodeType) -> bool:
    """Whether functions that outlive a statement are made of it, unlike class bodies and comprehensions."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.endswith(("comp>", "genexpr>"))


def new_code(function: types.FunctionType, current: list[types.CodeType], new: list[types.CodeType]) -> types.CodeType:
    """The code that a living function gets when the code of its key goes from `current` to `new`.

    Raises:
        ValueError: if the code that it has is not that of the module's source, so that nobody can say what to put in.
    """
    if len(current) == len(new) and all(map(same_code, current, new)):
        return function.__code__
    if not new:  # an edit removed the inner function; the one that is alive goes on as it is
        return function.__code__
    for k, code in enumerate(current):
        if same_code(code, function.__code__):
            if len(current) != len(new):
                raise ValueError("several functions begin on this line, and the edit changes how many; edit them apart")
            return function.__code__ if same_code(new[k], function.__code__) else new[k]
    raise ValueError(
        "the code in memory is not that of the source file: the file changed after it was imported, or another tool "
        "(a tracer, pytest's assertion rewriting) changed the code; import the module afresh, without that tool"
    )


def is_importing(module: types.ModuleType) -> bool:
    """Whether the module or a package around it is still being imported, so that nobody can have traced it."""
    parts = module.__name__.split(".")
    for k in range(1, len(parts) + 1):
        spec = getattr(sys.modules.get(".".join(parts[:k])), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return True
    return False


def _walk(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _walk(constant)


def _marker(key: int) -> str:
    return f"\0mishax_lite names {key}"


def _with_constants(code: types.CodeType, markers: Mapping[str, Any]) -> types.CodeType:
    """Replaces the markers among the constants by the objects that they stand for."""
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
    """Makes an extra name into an attribute of a constant: Python folds constants, but never their attributes."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        key = getattr(node, NAMESPACE, None)
        if key is None:
            return node
        namespace = ast.copy_location(ast.Constant(_marker(key)), node)
        return ast.copy_location(ast.Attribute(namespace, node.id, ast.Load()), node)
