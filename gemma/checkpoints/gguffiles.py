"""Reads the GGUF format: metadata, then tensors in blocks of numbers that are mostly quantised.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, as the reader of the `gguf`
package needs seconds for a vocabulary of 262144; that package (extra `gguf`) expands quantised tensors.
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma.checkpoints.places import in_bucket, read_bytes
from gemma.checkpoints.streaming import Stored

# The format's numbers for types of metadata; 8 is a string, 9 an array.
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file's header.

    Attributes:
        file: the file's path.
        metadata: the key-value pairs; arrays of numbers are numpy arrays, strings in arrays are bytes.
        tensors: the tensors by name.
        quantised: the names of tensors in blocks, which take time to expand.
    """

    file: Path
    metadata: Mapping
    tensors: Mapping[str, Stored]
    quantised: frozenset[str] = frozenset()


def scan(file: Path) -> Contents:
    """Reads the header of a file, and nothing of its tensors.

    Raises:
        ValueError: without the `gguf` package, for a file that is not GGUF, and for a damaged header.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ValueError(f"reading {file} needs the package gguf: pip install gguf") from None
    if in_bucket(file):
        raise ValueError(f"{file} is a GGUF file in a bucket, where it cannot be read: copy it to this machine")
    size = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file: it does not begin with GGUF")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                metadata, tensors, end = _header(data)
                alignment = metadata.get("general.alignment", 32)
                base = -(-end // alignment) * alignment
            except (struct.error, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
                raise ValueError(f"{file} ends within its header, or the header is damaged: {error}"[:400]) from error
    blocks = {kind: _block(kind) for _, kind, _ in tensors.values()}
    by_name = {
        name: _stored(file, name, shape, blocks[kind], kind, base + offset, size)
        for name, (shape, kind, offset) in tensors.items()
    }
    quantised = frozenset(name for name, (_, kind, _) in tensors.items() if (blocks[kind] or (1, 1))[0] > 1)
    return Contents(file, metadata, by_name, quantised)


def _header(data: mmap.mmap) -> tuple[dict, dict[str, tuple[tuple[int, ...], int, int]], int]:
    """Returns the metadata, the tensors' (shape, type, offset) by name, and the end of the header."""
    at = 4

    def number(code: str) -> Any:
        nonlocal at
        value = struct.unpack_from("<" + code, data, at)[0]
        at += struct.calcsize("<" + code)
        return value

    def string() -> bytes:
        nonlocal at
        length = number("Q")
        if at + length > len(data):
            raise ValueError(f"a string of {length} bytes at byte {at}")
        at += length
        return data[at - length : at]

    def value(kind: int) -> object:
        nonlocal at
        if kind == _STRING:
            return string().decode("utf-8")
        if kind != _ARRAY:
            return number(_NUMBERS[kind])
        inner, count = number("I"), number("Q")
        if inner in (_STRING, _ARRAY):
            if count > len(data):
                raise ValueError(f"an array of {count} entries")
            return [string() if inner == _STRING else value(inner) for _ in range(count)]
        dtype = np.dtype("<" + _NUMBERS[inner])
        if at + count * dtype.itemsize > len(data):
            raise ValueError(f"an array of {count} numbers at byte {at}")
        at += count * dtype.itemsize
        return np.frombuffer(data[at - count * dtype.itemsize : at], dtype)

    version, tensor_count, pair_count = number("I"), number("Q"), number("Q")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3, little-endian")
    metadata = {string().decode("utf-8"): value(number("I")) for _ in range(pair_count)}
    tensors = {}
    for _ in range(tensor_count):
        name, axes = string().decode("utf-8"), number("I")
        shape = tuple(number("Q") for _ in range(axes))[::-1]  # the file has the fastest axis first
        tensors[name] = shape, number("I"), number("Q")
    return metadata, tensors, at


def _block(kind: int) -> tuple[int, int] | None:
    """Returns the number of entries and of bytes in a block of a type; None if the package cannot expand the type."""
    import gguf

    try:
        numbers, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        gguf.dequantize(np.zeros((1, count), np.uint8), gguf.GGMLQuantizationType(kind))
    except (KeyError, ValueError, NotImplementedError):
        return None
    return numbers, count


def _stored(
    file: Path, name: str, shape: tuple[int, ...], block: tuple[int, int] | None, kind: int, offset: int, size: int
) -> Stored:
    """Returns one tensor, in blocks of a type, from `offset` on in a file of `size` bytes."""
    import gguf

    def unreadable(problem: str) -> Stored:
        return Stored(name, shape, lambda start, stop: np.zeros(0), problem)

    if block is None or not shape or shape[-1] % block[0]:
        return unreadable(f"the installed gguf package cannot expand its type {kind}, with shape {shape}")
    row = math.prod(shape[1:]) // block[0] * block[1] if len(shape) > 1 else shape[0] // block[0] * block[1]
    end = offset + row * (shape[0] if len(shape) > 1 else 1)
    if end > size:
        return unreadable(f"{file.name} is cut short: it has {size} bytes, this tensor ends at {end}")

    def rows(start: int, stop: int) -> np.ndarray:
        if len(shape) > 1:
            raw = read_bytes(file, offset + start * row, (stop - start) * row)
        else:  # a vector is one row of blocks
            raw = read_bytes(file, offset, row)
        # The package expands one long row at once.
        numbers = gguf.dequantize(raw[None], gguf.GGMLQuantizationType(kind))
        if len(shape) > 1:
            return numbers.reshape(stop - start, *shape[1:])
        return numbers.reshape(shape)[start:stop]

    return Stored(name, shape, rows)
