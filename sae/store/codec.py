"""What a codec is, which says how a store keeps its rows, and the registry of them: a file in `codecs/` adds one."""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sae.discovery import import_all
from sae.registry import Registry

_ROWS = 1024  # of which a copy in float32 is made at a time


class Codec(abc.ABC):
    """How rows of activations are kept in a store, in one array or several. Its name is the store's `dtype`.

    Attributes:
        about: one line on it, for help texts.
    """

    about: ClassVar[str]

    @abc.abstractmethod
    def parts(self, dim: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The arrays that keep rows of `dim` numbers: by suffix of the array's name the dtype and the shape of a row.
        The suffix of the first is "", the others' begin with a dot."""

    @abc.abstractmethod
    def encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Activations [rows, A] of any float dtype as they are stored, by suffix.

        Raises:
            ValueError: for activations that it cannot keep.
        """

    @abc.abstractmethod
    def decode(self, stored: Mapping[str, np.ndarray], out: np.ndarray, rows: np.ndarray | None = None) -> None:
        """What `encode` returned, into `out` [rows, A] float32; or only the rows with these numbers, in their order."""

    def exact(self, dtype: np.dtype) -> bool:
        """Whether activations of a dtype come back as they were."""
        del dtype
        return False

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row in all its arrays."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.parts(dim).values())


codecs: Registry[type[Codec]] = Registry("codec of a store")


def codec(name: str) -> Codec:
    """The codec of a store's dtype.

    Raises:
        ValueError: for a name that no codec has.

    Example:
        >>> codec("int8").row_bytes(100)
        104
    """
    names()
    return codecs[name]()


def names() -> tuple[str, ...]:
    """The names of all codecs: what a store's dtype may be."""
    import_all("sae.store.codecs")
    return tuple(codecs)


def lost(codec: Codec, x: np.ndarray, stored: Mapping[str, np.ndarray]) -> float:
    """Sum of the squares of x minus what `encode` made of it, in float64."""
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
    """Values of any dtype into `out`; or only the rows with these numbers, in their order."""
    if rows is None:
        out[...] = values
    elif values.dtype == out.dtype:
        # mode="clip" moves whole rows; the default and values[rows] take several times as long.
        np.take(values, rows, axis=0, out=out, mode="clip")
    else:
        out[...] = np.take(values, rows, axis=0, mode="clip")
