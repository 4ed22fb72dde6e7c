"""Checks of the fields of frozen dataclasses: they take plain Python values of their types. Numbers of numpy and JAX
become plain ones; other values of another type are refused when the record is made, and not when it is written."""

import dataclasses
import fractions
import numbers
import reprlib
import types
import typing
from collections.abc import Collection, Mapping

import numpy as np

_WORDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "None",
}
_WORDS[fractions.Fraction] = "a fraction such as Fraction(1, 4)"


def check_fields(record, names: Collection[str] | None = None) -> None:
    """Gives fields of a frozen dataclass plain values of their types. `__post_init__` calls it.

    A field's type may be bool, int, float, str, Fraction, a tuple of one of these, or a union. A float field takes a
    whole number too, a tuple field a list or a one-dimensional array, and a field of numbers a number of numpy or JAX,
    or an array without axes.

    Args:
        record: a frozen dataclass, whose fields are replaced.
        names: the names of the fields; all by default.

    Raises:
        ValueError: for a value of another type, or a number that is not finite; it names the class and the field.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int
        ...     def __post_init__(self):
        ...         check_fields(self)
        >>> Size(np.int64(3))
        Size(width=3)
    """
    for field in dataclasses.fields(record):
        if names is not None and field.name not in names:
            continue
        name = f"{type(record).__name__}: {field.name}"
        object.__setattr__(record, field.name, plain(name, getattr(record, field.name), field.type))


def plain(name: str, value, kind):
    """Returns a value as a plain value of a type, for an argument that goes to a file, say.

    Args:
        name: what errors call the value.
        value: any value.
        kind: the type, as for the fields of `check_fields`.

    Raises:
        ValueError: for a value of another type, or a number that is not finite.

    Example:
        >>> plain("length", np.int64(3), int)
        3
    """
    try:
        result = _plain(value, kind)
    except (TypeError, OverflowError):
        raise ValueError(f"{name} must be {_words(kind)}, got {reprlib.repr(value)}") from None
    for number in result if isinstance(result, tuple) else (result,):
        if isinstance(number, float) and not np.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")
    return result


def of_json(kind, facts: Mapping):
    """Returns the frozen dataclass of a JSON object.

    Args:
        kind: the dataclass.
        facts: the JSON object.

    Raises:
        ValueError: naming the field that is missing or unknown.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int
        >>> of_json(Size, {"width": 3})
        Size(width=3)
    """
    names = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [name for name in facts if name not in names]:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; it has {', '.join(names)}")
    for name, field in names.items():
        if name not in facts and field.default is dataclasses.MISSING:
            raise ValueError(f"{kind.__name__}: the field {name!r} is missing")
    return kind(**facts)


def options(kind) -> tuple:
    """Returns the types that a field takes: those of a union, or the single one, without `typing.Annotated`.

    Example:
        >>> options(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    kind = _bare(kind)
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _plain(value, kind):
    """Returns the value as a plain value of a type. Raises TypeError for a value of another type."""
    kind = _bare(kind)
    if isinstance(kind, types.UnionType):
        options = typing.get_args(kind)
        if type(value) in options:  # a Fraction is a number too, and stays a Fraction
            options = (type(value),)
        for option in options:
            try:
                return _plain(value, option)
            except TypeError:
                continue
        raise TypeError
    if typing.get_origin(kind) is tuple:
        return _plain_tuple(value, typing.get_args(kind)[0])
    value = _scalar(value)
    if kind is types.NoneType and value is None:
        return None
    if isinstance(value, bool) or kind is bool:
        if kind is bool and isinstance(value, bool):
            return value
    elif kind is int and isinstance(value, numbers.Integral):
        return int(value)
    elif kind is float and isinstance(value, numbers.Real):
        return float(value)
    elif kind is str and isinstance(value, str):
        return str.__str__(value)
    elif kind is fractions.Fraction and isinstance(value, fractions.Fraction):
        return value
    raise TypeError


def _plain_tuple(value, kind) -> tuple:
    if hasattr(value, "dtype") and getattr(value, "ndim", 0) == 1:
        value = list(np.asarray(value))
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_plain(item, kind) for item in value)


def _scalar(value):
    """Returns the number in an array without axes, of numpy, JAX or another library; other values stay unchanged."""
    if not hasattr(value, "dtype"):
        return value
    array = np.asarray(value)
    if array.shape:
        raise TypeError
    if array.dtype.kind in "biuU":
        return array.item()
    # bfloat16 and the like are of the kind "V".
    return float(array) if array.dtype.kind in "fV" else value


def _bare(kind):
    """Returns a type without `typing.Annotated`."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _words(kind) -> str:
    kind = _bare(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(_words(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a tuple, each item {_words(typing.get_args(kind)[0])}"
    return _WORDS[kind]
