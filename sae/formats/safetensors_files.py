"""The safetensors format: eight bytes of length, a JSON header of names, dtypes, shapes and offsets, then the bytes
(https://github.com/huggingface/safetensors).

Files are read and written here and not by the format's library, which has no bfloat16 for numpy, and so that errors
name every damage. All numbers in a file are checked against its size before they are used.
"""

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import jax
import ml_dtypes
import numpy as np

from sae.files import current
from sae.formats import mapped
from sae.formats.configs import once

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
_LONGEST_HEADER = 1 << 20  # bytes; an autoencoder's is below ten thousand


def read(file: Path, needed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, floating-point ones in float32; large float32 ones are read while they are used.

    Args:
        file: the path, which `sae.files.current` resolves.
        needed: the names that the file has to have.

    Raises:
        ValueError: for a file of another format, a damaged file, or a missing tensor.
    """
    with _open(file) as stream:
        entries, base = _header(file, stream, needed)
        tensors = {}
        for name, (dtype, shape, begin, end) in entries.items():
            if dtype == np.float32 and sys.byteorder == "little" and end - begin >= mapped.LARGE:
                tensors[name] = mapped.mapped(Path(stream.name), dtype, shape, base + begin)
                continue
            stream.seek(base + begin)
            values = np.frombuffer(stream.read(end - begin), dtype).reshape(shape)
            tensors[name] = values if dtype.kind == "i" else values.astype(np.float32)
    return tensors


def headers(file: Path, needed: Collection[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a file's tensors as `read` would give them; only the header is read.

    Args:
        file: the path, which `sae.files.current` resolves.
        needed: the names that the file has to have.

    Raises:
        ValueError: as `read` does, except for damaged values.
    """
    with _open(file) as stream:
        entries, _ = _header(file, stream, needed)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype if dtype.kind == "i" else np.float32)
        for name, (dtype, shape, _, _) in entries.items()
    }


def sizes(file: Path, W_enc: jax.ShapeDtypeStruct, W_dec: jax.ShapeDtypeStruct) -> dict[str, int]:
    """Returns the sizes of an autoencoder's axes A, Z and A', for an encoder [A, Z] and a decoder [Z, A'].

    Raises:
        ValueError: for arrays of other ranks.
    """
    if len(W_enc.shape) != 2 or len(W_dec.shape) != 2:
        raise ValueError(f"{file}: W_enc and W_dec must have 2 axes, got {list(W_enc.shape)}, {list(W_dec.shape)}")
    return {"A": W_enc.shape[0], "Z": W_enc.shape[1], "A'": W_dec.shape[1]}


def _open(file: Path) -> BinaryIO:
    place = current(file.parent, file.name) or file
    if not place.is_file():
        raise ValueError(f"{file} is no file, or is missing")
    return place.open("rb")


def count_layers(folder: Path, *names: str) -> int:
    """Returns the number of layers with files in a folder.

    Args:
        folder: a folder with files of at least one layer.
        names: the names of the files of each layer, with `{}` for its index.

    Raises:
        ValueError: where a file of a layer below the last is missing.
    """
    pattern = re.escape(names[0]).replace(re.escape("{}"), r"(\d+)")
    last = max(int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name)))
    for layer in range(last + 1):
        for name in names:
            if not (folder / name.format(layer)).exists():
                raise ValueError(f"{folder} has no {name.format(layer)}, while it has {names[0].format(last)}")
    return last + 1


def _header(file: Path, stream: BinaryIO, needed: Collection[str]) -> tuple[dict[str, tuple], int]:
    """Returns {name: (dtype, shape, begin, end)}, and the offset of the first byte of the tensors."""
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(_LONGEST_HEADER, size - 8):
        raise ValueError(f"{file} is no safetensors file, or cut short: its header would have {length:,} bytes")
    try:
        header = json.loads(stream.read(length), object_pairs_hook=once)
        if not isinstance(header, dict):
            raise TypeError("it is no object")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, entry, size - 8 - length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: in its header, {error}") from None
    spans = sorted((begin, end, name) for name, (_, _, begin, end) in entries.items())
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise ValueError(f"{file} is damaged: {one} and {other} overlap")
    if missing := [name for name in needed if name not in entries]:
        raise ValueError(f"{file}: it has no {', '.join(missing)}; it holds {', '.join(entries) or 'nothing'}"[:400])
    return entries, 8 + length


def _entry(name: str, entry: Mapping, size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']!r}, expected one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[entry["dtype"]]
    whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if not whole or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name} would be {entry['dtype']}{shape} in the bytes {begin} to {end}")
    if end > size:
        raise ValueError(f"{name} ends at byte {end:,} of {size:,}: the file is cut short")
    return dtype, tuple(shape), begin, end


def writer(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Callable[[BinaryIO], None]:
    """Returns a function that writes a file of float32 tensors, with one in memory at a time."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in tensors.items():
        size = 4 * tensor.size
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in _little_endian(tensors.values()):
            file.write(part.data)

    return write


def _little_endian(tensors: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    return (np.ascontiguousarray(tensor, "<f4") for tensor in tensors)
