"""Checks while tests run what the annotations of public functions say of arrays: dtypes, and axes by their letters.

A function is checked after it has returned, so that its own errors for wrong arguments come first. In one call, a
letter is one size in all arguments and in the result; what comes back in a dataclass or a named tuple is checked too.
Users pay nothing for it: the packages themselves check no annotation.
"""

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import AbstractArray, jaxtyped


def check_packages(*packages: ModuleType) -> None:
    """Has every call of what is in the `__all__` of packages checked from now on, also in methods of their classes."""
    for package in packages:
        for name in package.__all__:
            value = vars(package).get(name)
            if inspect.isfunction(value):
                # Where it is defined as well, for what imports it from there later.
                for module in (package, sys.modules[value.__module__]):
                    setattr(module, name, checked(value))
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                for base in value.__mro__:
                    if base.__module__.split(".")[0] == package.__name__:
                        _check_methods(base)


def checked(function: Callable) -> Callable:
    """Returns a function that does the same, and raises TypeError where arrays are not as its annotations say.

    One without annotations of arrays, and one that is checked already, come back as they are.
    """
    hints = {name: hint for name, hint in hints_of(function).items() if has_arrays(hint)}
    if not hints or hasattr(function, "checked_hints"):
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        with jaxtyped("context"):
            for name in [name for name in values if name in hints]:
                if not fits(values[name], hints[name]):
                    shown = jax.tree.map(
                        lambda leaf: jax.typeof(leaf) if hasattr(leaf, "dtype") else leaf, values[name]
                    )
                    raise TypeError(f"{function.__qualname__}: {name} is annotated {hints[name]}, got {shown!r:.300}")
        return result

    call.checked_hints = hints
    return call


@functools.cache
def hints_of(value: Callable) -> dict[str, Any]:
    """The annotations of a function or a class by name, those in strings evaluated."""
    try:
        return typing.get_type_hints(value)
    except NameError:  # of what is imported for type checkers alone
        packages = [sys.modules[name] for name in ("gemma", "sae", "sae.autoencoder") if name in sys.modules]
        return typing.get_type_hints(
            value, localns={name: each for one in packages for name, each in vars(one).items()}
        )


def has_arrays(hint: Any, within: tuple = ()) -> bool:
    """Whether a type of arrays with axes is in an annotation, or in a dataclass or a named tuple that it names."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    if _is_record(hint) and hint not in within:
        return any(has_arrays(each, (*within, hint)) for each in hints_of(hint).values())
    return any(has_arrays(each, within) for each in typing.get_args(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is as an annotation says: arrays exactly, other types as far as they are classes."""
    if len(alternatives(hint)) > 1:
        return any(fits(value, each) for each in alternatives(hint))
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(each, parts[1]) for each in value.values())
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str)
    if _is_record(hint) and isinstance(value, hint):
        fields = {name: each for name, each in hints_of(hint).items() if has_arrays(each)}
        return all(fits(getattr(value, name), each) for name, each in fields.items())
    if inspect.isclass(hint) and issubclass(hint, AbstractArray) and isinstance(value, (list, tuple)):
        value = np.asarray(value)  # whoever takes lists makes them this
    if not inspect.isclass(hint) or hint is Any or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, (int, float) if hint is float else hint)


def alternatives(hint: Any) -> tuple:
    """The types of a union; of another annotation, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_record(hint: Any) -> bool:
    """Whether it is a dataclass or a named tuple."""
    return inspect.isclass(hint) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"))


def _check_methods(owner: type) -> None:
    for name, member in list(vars(owner).items()):
        if name.startswith("_") and name != "__call__":
            continue
        if inspect.isfunction(member):
            setattr(owner, name, checked(member))
        elif isinstance(member, classmethod):
            setattr(owner, name, classmethod(checked(member.__func__)))
        elif isinstance(member, property):
            setattr(owner, name, property(checked(member.fget), doc=member.__doc__))
