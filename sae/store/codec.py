"""The base of codecs, which decide how a store keeps its rows, and their registry: a file in `codecs/` adds one."""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sae.discovery import import_all
from sae.registry import Registry

_ROWS = 1024  # rows that are copied to float32 at a time


class Codec(abc.ABC):
    """How rows of activations are kept in a store, in one array or several. Its name is the store's `dtype`.

    Attributes:
        about: one line on the codec, for help texts.
    """

    about: ClassVar[str]

    @abc.abstractmethod
    def parts(self, dim: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Returns the arrays that keep rows of `dim` numbers, as {suffix of the array's name: (dtype, shape of a row)}.
        The first suffix is "", the others begin with a dot."""

    @abc.abstractmethod
    def encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Returns activations [rows, A] of any float dtype in their stored form, by suffix.

        Raises:
            ValueError: for activations that it cannot keep.
        """

    @abc.abstractmethod
    def decode(self, stored: Mapping[str, np.ndarray], out: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Writes stored rows into `out` [rows, A] float32; with `rows`, only those with these indices, in that
        order."""

    def exact(self, dtype: np.dtype) -> bool:
        """Returns whether activations of a dtype come back unchanged."""
        del dtype
        return False

    def row_bytes(self, dim: int) -> int:
        """Returns the bytes of a row in all its arrays."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.parts(dim).values())


codecs: Registry[type[Codec]] = Registry("codec of a store")


def codec(name: str) -> Codec:
    """Returns the codec of a store's dtype.

    Raises:
        ValueError: for a name that no codec has.

    Example:
        >>> codec("int8").row_bytes(100)
        104
    """
    names()
    return codecs[name]()


def names() -> tuple[str, ...]:
    """Returns the names of all codecs, which are the dtypes that a store can have."""
    import_all("sae.store.codecs")
    return tuple(codecs)


def lost(codec: Codec, x: np.ndarray, stored: Mapping[str, np.ndarray]) -> float:
    """Returns the sum of the squares of x minus its decoded form, in float64."""
    if codec.exact(x.dtype):
        return 0.0
    total = 0.0
    for start in range(0, len(x), _ROWS):
        piece = slice(start, start + _ROWS)
        back = np.empty(x[piece].shape, np.float32)
        codec.decode({suffix: part[piece] for suffix, part in stored.items()}, back)
        total += float(np.square(x[piece].astype(np.float64) - back).sum())
    return total


def take(values: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Writes values of any dtype into `out`; with `rows`, only the rows with these indices, in that order."""
    if rows is None:
        out[...] = values
    elif values.dtype == out.dtype:
        # mode="clip" moves whole rows; the default and values[rows] take several times as long.
        np.take(values, rows, axis=0, out=out, mode="clip")
    else:
        out[...] = np.take(values, rows, axis=0, mode="clip")
