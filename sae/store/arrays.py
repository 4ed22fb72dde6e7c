"""The arrays of a store: zarr v3, sharded, through tensorstore.

Any zarr v3 reader opens those of float32, float16 and int8. zarr-python has no bfloat16 yet; the numbers are there all
the same: `tensorstore.open({"driver": "zarr3", "kvstore": …})` reads them, as `ActivationStore` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorstore as ts

from sae.store.places import Place

if TYPE_CHECKING:
    import xxhash

# A chunk is the least that is read, and has a checksum of its own (crc32c); a shard is one file. Both have a power of
# two of rows, so that a run of rows that is aligned in one array is aligned in all.
CHUNK_BYTES = 1 << 20
SHARD_BYTES = 1 << 26
SHARD_ROWS = 1 << 18


def _hash() -> "xxhash.xxh3_128":
    import xxhash  # here, so that training on rows of one's own needs no store's packages

    return xxhash.xxh3_128()


def checksum(contents: bytes) -> str:
    """xxh3_128 of a file's contents."""
    digest = _hash()
    digest.update(contents)
    return digest.hexdigest()


def content_checksum(label: str, values: Iterable[np.ndarray]) -> str:
    """xxh3_128 of some arrays, and of what else decides how they are stored."""
    digest = _hash()
    digest.update(f"{label} {CHUNK_BYTES} {SHARD_BYTES} {SHARD_ROWS}".encode())
    for array in values:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def chunk_rows(row_bytes: int, rows: int = SHARD_ROWS) -> int:
    """Rows of a chunk in an array of so many rows; of one with few, it is not much longer than the array."""
    return min(SHARD_ROWS, _power_of_two(CHUNK_BYTES // row_bytes), _power_of_two(2 * rows - 1))


def shard_rows(row_bytes: int) -> int:
    """Rows of a shard, whole chunks."""
    return max(chunk_rows(row_bytes), min(SHARD_ROWS, _power_of_two(SHARD_BYTES // row_bytes)))


def stored_bytes(rows: int, row_bytes: int) -> int:
    """What an array takes on disk, its last chunk filled up."""
    chunk = chunk_rows(row_bytes, rows)
    return -(-rows // chunk) * chunk * row_bytes


class Writer:
    """Writes [rows, …] of a known number of rows, in order, piece by piece; at most two shards are in memory.

    Attributes:
      files: names of the files that the array consists of, without its own.
    """

    def __init__(self, place: Place, name: str, rows: int, row_shape: tuple[int, ...], dtype: np.dtype):
        row_bytes = dtype.itemsize * int(np.prod(row_shape))
        chunk = chunk_rows(row_bytes, rows)
        self.shard_rows = max(chunk, min(shard_rows(row_bytes), -(-rows // chunk) * chunk))
        metadata = {
            "shape": [rows, *row_shape],
            "data_type": str(dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *row_shape]}},
            "codecs": [_sharding([chunk, *row_shape])],
        }
        self.files = _files(rows, self.shard_rows, len(row_shape))
        # Zeros are written too, so that a chunk that is missing is one that was lost.
        spec = {
            "driver": "zarr3",
            "kvstore": place.spec(name),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        # With `delete_existing`, an answer that is lost ends in an error: the array exists already.
        self._array = ts.open(spec, create=True, open=True).result()
        self._digest = _hash()
        self._held: list[np.ndarray] = []  # less than a shard: a shard is written once, never merged
        self._pending: ts.Future | None = None
        self._next = 0
        self._place, self._name = place, name

    def write(self, values: np.ndarray) -> None:
        """The next rows; best in pieces of `shard_rows`."""
        self._digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        self._held.append(values)
        if sum(map(len, self._held)) >= self.shard_rows:
            self._flush()

    def close(self) -> str:
        """Checksum (xxh3_128) of the array's values in the order of its rows, little-endian."""
        if self._held:
            self._flush()
        self._finish()
        if self._next != self._array.shape[0]:
            raise ValueError(f"{self._next} rows were written of {self._array.shape[0]}")
        return self._digest.hexdigest()

    def _flush(self) -> None:
        values = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        self._held.clear()
        if self._pending is not None:
            self._finish()
        # pyrefly: ignore[bad-assignment]  not None here
        self._pending = self._array[self._next : self._next + len(values)].write(values)
        self._next += len(values)

    def _finish(self) -> None:
        """Waits for the shard that is being written, which then leaves the page cache."""
        # pyrefly: ignore[missing-attribute]  not None here
        self._pending.result()
        shard = (self._next - 1) // self.shard_rows
        self._place.uncache("/".join([self._name, "c", str(shard), *["0"] * (self._array.ndim - 1)]))


def open_array(place: Place, name: str) -> ts.TensorStore:
    """Opens an array to read. A shard that is missing is an error when it is read, not zeros.

    Raises:
      ValueError: when it is missing or its metadata is damaged.
    """
    spec = {"driver": "zarr3", "kvstore": place.spec(name), "fill_missing_data_reads": False}
    return ts.open(spec, open=True, read=True).result()


def pieces(rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def files(place: Place, name: str) -> list[str]:
    """Names of the files that an array consists of, within its folder."""
    array = open_array(place, name)
    # pyrefly: ignore[bad-argument-type,unsupported-operation]  not None here
    return _files(array.shape[0], array.chunk_layout.write_chunk.shape[0], array.ndim - 1)


def _files(rows: int, shard: int, row_axes: int) -> list[str]:
    return ["zarr.json", *("/".join(["c", str(i), *["0"] * row_axes]) for i in range(-(-rows // shard)))]


def digest(place: Place, name: str, shape: Sequence[int]) -> str:
    """Checksum (xxh3_128) of an array's values as they are stored now.

    Raises:
      ValueError: for a chunk whose checksum is wrong, a shard that is missing or cut short, or another shape.
    """
    array = open_array(place, name)
    if array.shape[0] != shape[0]:
        raise ValueError(f"it has {array.shape[0]} rows, {shape[0]} were recorded")
    if array.shape != tuple(shape):
        raise ValueError(f"its rows have shape {list(array.shape[1:])}, manifest.json says {list(shape[1:])}")
    rows = shape[0]
    hasher = _hash()
    size = shard_rows(array.dtype.numpy_dtype.itemsize * int(np.prod(array.shape[1:])))
    for piece in pieces(rows, size):
        hasher.update(np.ascontiguousarray(array[piece].read().result()).view(np.uint8).data)
    return hasher.hexdigest()


def _sharding(chunk_shape: list[int]) -> dict:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {"chunk_shape": chunk_shape, "codecs": codecs, "index_codecs": codecs}
    return {"name": "sharding_indexed", "configuration": configuration}


def _power_of_two(number: int) -> int:
    """The largest that is not above `number`, and 1 at least."""
    return 1 << max(0, number.bit_length() - 1)
