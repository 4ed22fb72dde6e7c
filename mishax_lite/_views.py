"""`modules` for nnx and Equinox: a copy of the model whose modules are of subclasses that tap in `__call__`.

The path is an attribute of each module, and static for JAX, so it survives when JAX flattens and rebuilds the model.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax

from mishax_lite.module_taps import matches, no_match, tap_output


def nnx(library: types.ModuleType, model: Any, pattern: str) -> Any:
    """Returns a view of an nnx model: its modules are copies, while Variables and all else are the same objects."""
    copies: dict[int, Any] = {}  # by identity: modules may be shared, and may point back at their owners
    names: list[str] = []

    def view(value: Any, path: tuple[str, ...]) -> Any:
        if id(value) in copies:
            return copies[id(value)]
        # Other nodes, such as Rngs, are copied only if they hold modules.
        if not isinstance(value, library.Pytree) or not any(
            isinstance(node, library.Module) for _, node in library.iter_graph(value)
        ):
            return _in_containers(value, path, view)
        parts = dict(vars(value))
        kind = _kind(value, path, pattern, names, parts, pytree=value._pytree__is_pytree)
        copies[id(value)] = copy = object.__new__(kind)
        parts = {name: view(part, (*path, name)) for name, part in parts.items()}
        # Unflattened anew, the copy belongs to the trace in which this runs.
        parts["_pytree__state"] = jax.tree.map(lambda leaf: leaf, parts["_pytree__state"])
        vars(copy).update(parts)
        return copy

    return _checked(view(model, ()), pattern, names)


def equinox(library: types.ModuleType, model: Any, pattern: str) -> Any:
    """Returns an Equinox model with the same leaves, in which the modules that match are of subclasses."""
    names: list[str] = []

    def view(value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, library.Module):
            return _in_containers(value, path, view)
        parts = dict(vars(value))
        kind = _kind(value, path, pattern, names, parts)
        new = {name: view(part, (*path, name)) for name, part in parts.items()}
        if kind is type(value) and all(new[name] is part for name, part in vars(value).items()):
            return value
        copy = object.__new__(kind)
        for name, part in new.items():
            object.__setattr__(copy, name, part)
        return copy

    return _checked(view(model, ()), pattern, names)


def _checked(view: Any, pattern: str, names: list[str]) -> Any:
    if not any(matches(name, pattern) for name in names):
        raise no_match(pattern, names)
    return view


def _kind(
    value: Any, path: tuple[str, ...], pattern: str, names: list[str], parts: dict[str, Any], **options: Any
) -> type:
    """Returns the class of a module's copy.

    The path of a module that taps joins `parts`; the name of every module that can be called joins `names`.
    """
    base = type(value)
    if not any("__call__" in vars(cls) for cls in base.__mro__):  # hasattr would find the metaclass's
        return base
    name = parts.get("_mishax_path") or "/".join(map(str, path)) or base.__name__
    names.append(name)
    if not matches(name, pattern):
        return base
    parts["_mishax_path"] = name
    return _tapped_class(base, **options)


def _tapped_class(base: type, **options: Any) -> type:
    """Returns the subclass of a module's class that taps, made once: JAX keeps the classes of pytrees forever."""
    if "_mishax_path" in vars(base):
        return base
    for subclass in type.__subclasses__(base):
        if "_mishax_path" in vars(subclass):
            return subclass

    @functools.wraps(base.__call__, updated=())
    def call(self, *args, **kwargs):
        out = base.__call__(self, *args, **kwargs)
        # A module without a path was made by one of these, of its own class.
        return tap_output(self._mishax_path, out) if self._mishax_path else out

    # A field for Equinox, whose modules are dataclasses; its `field(static=True)` is this metadata.
    path = dataclasses.field(default="", kw_only=True, repr=False, metadata={"static": True})
    namespace = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace |= {"__call__": call, "__annotations__": {"_mishax_path": str}, "_mishax_path": path}
    try:
        return type(base)(base.__name__, (base,), namespace, **options)
    except TypeError as error:
        raise ValueError(f"modules: {base.__name__} cannot be subclassed, which tapping its output needs") from error


def _in_containers(value: Any, path: tuple[str, ...], view: Callable[[Any, tuple[str, ...]], Any]) -> Any:
    """Returns a list, tuple or dict with the views of its members; the same object where all members are the same."""
    if type(value) is dict:
        new = {key: view(member, (*path, str(key))) for key, member in value.items()}
        return new if any(new[key] is not member for key, member in value.items()) else value
    if type(value) is list or isinstance(value, tuple):
        names = getattr(value, "_fields", range(len(value)))
        members = [view(member, (*path, str(name))) for name, member in zip(names, value, strict=True)]
        if all(new is old for new, old in zip(members, value, strict=True)):
            return value
        # A named tuple takes its members one by one.
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value
