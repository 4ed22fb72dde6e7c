"""Arrays that are read from their file while they are used, so that a wide autoencoder goes to its devices by parts.

Pages of a file count as this process's memory from their first use on; here they are given back after each part."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 1 << 20  # bytes: smaller arrays are read at once
_BLOCK = 1 << 24  # bytes


def mapped(
    file: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Returns an array that cannot be written to, whose values are read from a file when they are used.

    Args:
        file: The file; the array keeps it open.
        dtype: The values' dtype in the file.
        shape: The array's shape.
        offset: Where the values begin, in bytes.
        order: "C", or "F" where the first axis runs fastest.
    """
    return np.memmap(file, dtype, "r", offset, shape, order)


def give_back(array: np.ndarray) -> None:
    """Gives back the memory of those values of a mapped array that were used; of any other array it does nothing."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array in parts of its first axis, of 16 MiB or one element each, and gives back their memory."""
    if array.ndim == 0:
        yield array
        return
    step = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
        give_back(array)


def place(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Returns a copy of an array on devices; no more than one device's part is in this process's memory beside it.

    Args:
        array: Any numpy array, mapped or not.
        sharding: Where the parts go; None for the default device.
    """
    if sharding is None:
        result = jnp.array(array, copy=True)
    else:
        # `jax.make_array_from_callback` would hold all parts until the last one is read.
        parts = []
        for device, index in sharding.addressable_devices_indices_map(array.shape).items():
            parts.append(jax.device_put(np.array(array[index]), device).block_until_ready())
            give_back(array)
        result = jax.make_array_from_single_device_arrays(array.shape, sharding, parts)
    result.block_until_ready()
    give_back(array)
    return result
