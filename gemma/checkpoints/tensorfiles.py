"""Reads and writes the safetensors format: eight bytes of length, a JSON header of names, dtypes, shapes and offsets,
then the bytes.

Format: https://github.com/huggingface/safetensors. This package does not use its library, so that it can stream rows,
say which tensors of a file that is cut short are lost, and keep bfloat16 as bfloat16.
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma.checkpoints import places
from gemma.checkpoints.streaming import Stored
from mishax_lite.whole_files import replacing

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as in the format's own library


def scan(file: Path) -> dict[str, Stored]:
    """Returns the tensors of a file by name, without reading them.

    Raises:
        ValueError: if the file is not in this format.
    """
    size = places.size(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > _LONGEST_HEADER:
            raise ValueError(f"{file} is not a safetensors file: it does not begin with the length of a header")
        text = stream.read(length)
    if len(text) < length:
        raise ValueError(f"{file} is cut short within its header: {size} bytes, the header alone needs {8 + length}")
    try:
        header = json.loads(text)
        del text
        header.pop("__metadata__", None)
        return {name: _stored(file, name, entry, 8 + length, size) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a safetensors file, its header is damaged: {error!r}"[:500]) from error


def _stored(file: Path, name: str, entry: Mapping, base: int, size: int) -> Stored:
    """Returns one tensor of the header."""
    shape = tuple(int(n) for n in entry["shape"])
    begin, end = (int(n) for n in entry["data_offsets"])
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        problem = f"dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}"
        return Stored(name, shape, lambda start, stop: np.zeros(0), problem)
    row = dtype.itemsize * math.prod(shape[1:])
    problem = None
    if begin < 0 or min(shape, default=1) < 0 or end - begin != dtype.itemsize * math.prod(shape):
        problem = f"its header is damaged: {entry['dtype']}{list(shape)} in the bytes {begin} to {end}"
    elif base + end > size:
        problem = f"{file.name} is cut short: it has {size} bytes, this tensor ends at {base + end}"

    def rows(start: int, stop: int) -> np.ndarray:
        data = places.read_bytes(file, base + begin + start * row, (stop - start) * row)
        return data.view(dtype).reshape(stop - start, *shape[1:])

    return Stored(name, shape, rows, problem)


def write(file: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]]) -> None:
    """Writes a file with one tensor in memory at a time, and under another name first: it exists whole or not at all.

    Args:
        file: its path.
        tensors: by name the dtype, the shape, and a function that makes the array.

    Raises:
        ValueError: for a dtype that is not one of float64, float32, float16 and bfloat16.
    """
    for name, (dtype, _, _) in tensors.items():
        if np.dtype(dtype) not in _NAMES:
            raise ValueError(f"{name} is {np.dtype(dtype)}; written are {', '.join(map(str, _NAMES))}")
    # Wide numbers come first, so that all tensors stay aligned.
    order = sorted(tensors, key=lambda name: -np.dtype(tensors[name][0]).itemsize)
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        dtype, shape, _ = tensors[name]
        size = np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # In a bucket, a file appears when it is closed.
    whole = contextlib.nullcontext(file) if places.in_bucket(file) else replacing(file, ".partial")
    with whole as new, new.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            dtype, shape, make = tensors[name]
            array = np.asarray(make())
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} became {array.dtype}{list(array.shape)}, announced as {dtype}{list(shape)}")
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
