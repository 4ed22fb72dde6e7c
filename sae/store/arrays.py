"""The arrays of a store: zarr v3, sharded, through tensorstore.

Any zarr v3 reader opens arrays of float32, float16 and int8. zarr-python has no bfloat16 yet;
`tensorstore.open({"driver": "zarr3", "kvstore": …})` reads it, as `ActivationStore` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorstore as ts

from sae.store.places import Place

if TYPE_CHECKING:
    import xxhash

# A chunk is the smallest unit of reading, with a checksum of its own (crc32c); a shard is one file. The rows of both
# are powers of two, so that a run of rows that is aligned in one array is aligned in all.
CHUNK_BYTES = 1 << 20
SHARD_BYTES = 1 << 26
SHARD_ROWS = 1 << 18


def _hash() -> "xxhash.xxh3_128":
    import xxhash  # here, so that training on rows of one's own needs no store's packages

    return xxhash.xxh3_128()


def checksum(contents: bytes) -> str:
    """Returns xxh3_128 of a file's contents, in hex."""
    digest = _hash()
    digest.update(contents)
    return digest.hexdigest()


def content_checksum(label: str, values: Iterable[np.ndarray]) -> str:
    """Returns xxh3_128 of arrays and of all else that decides their stored bytes, in hex.

    Args:
        label: the store's fingerprint and the segment's index.
        values: the arrays.
    """
    digest = _hash()
    digest.update(f"{label} {CHUNK_BYTES} {SHARD_BYTES} {SHARD_ROWS}".encode())
    for array in values:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def chunk_rows(row_bytes: int, rows: int = SHARD_ROWS) -> int:
    """Returns the rows of a chunk in an array of `rows` rows; the chunk of a short array is hardly longer than it."""
    return min(SHARD_ROWS, _power_of_two(CHUNK_BYTES // row_bytes), _power_of_two(2 * rows - 1))


def shard_rows(row_bytes: int) -> int:
    """Returns the rows of a shard, which has whole chunks."""
    return max(chunk_rows(row_bytes), min(SHARD_ROWS, _power_of_two(SHARD_BYTES // row_bytes)))


def stored_bytes(rows: int, row_bytes: int) -> int:
    """Returns the bytes of an array on disk, its last chunk filled up."""
    chunk = chunk_rows(row_bytes, rows)
    return -(-rows // chunk) * chunk * row_bytes


class Writer:
    """Writes an array [rows, …] with a known number of rows, in order, piece by piece; at most two shards are in
    memory.

    Attributes:
        files: the names of the array's files, within its folder.
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
        # Zeros are written too, so that a missing chunk is a lost one.
        spec = {
            "driver": "zarr3",
            "kvstore": place.spec(name),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        # With `delete_existing`, a lost answer would end in the error that the array exists already.
        self._array = ts.open(spec, create=True, open=True).result()
        self._digest = _hash()
        self._buffered: list[np.ndarray] = []  # less than a shard: a shard is written once, never merged
        self._pending: ts.Future | None = None
        self._next = 0
        self._place, self._name = place, name

    def write(self, values: np.ndarray) -> None:
        """Writes the next rows; best in pieces of `shard_rows`."""
        self._digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        self._buffered.append(values)
        if sum(map(len, self._buffered)) >= self.shard_rows:
            self._flush()

    def close(self) -> str:
        """Ends the array, and returns the checksum (xxh3_128) of its values in the order of its rows, little-endian."""
        if self._buffered:
            self._flush()
        self._finish()
        if self._next != self._array.shape[0]:
            raise ValueError(f"the array has {self._array.shape[0]} rows, got {self._next}: write all before `close`")
        return self._digest.hexdigest()

    def _flush(self) -> None:
        values = self._buffered[0] if len(self._buffered) == 1 else np.concatenate(self._buffered)
        self._buffered.clear()
        self._finish()
        # pyrefly: ignore[bad-assignment]  tensorstore's own future has another type
        self._pending = self._array[self._next : self._next + len(values)].write(values)
        self._next += len(values)

    def _finish(self) -> None:
        """Waits for the shard that is being written, which then leaves the page cache."""
        if self._pending is None:
            return
        self._pending.result()
        shard = (self._next - 1) // self.shard_rows
        self._place.uncache("/".join([self._name, "c", str(shard), *["0"] * (self._array.ndim - 1)]))


def open_array(place: Place, name: str) -> ts.TensorStore:
    """Opens an array to read. A missing shard is an error when it is read, not zeros.

    Raises:
        ValueError: where the array is missing or its metadata is damaged.
    """
    spec = {"driver": "zarr3", "kvstore": place.spec(name), "fill_missing_data_reads": False}
    return ts.open(spec, open=True, read=True).result()


def pieces(rows: int, size: int) -> Iterator[slice]:
    """Yields consecutive slices of at most `size` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def files(place: Place, name: str) -> list[str]:
    """Returns the names of an array's files, within its folder."""
    array = open_array(place, name)
    # pyrefly: ignore[bad-argument-type,unsupported-operation]  not None here
    return _files(array.shape[0], array.chunk_layout.write_chunk.shape[0], array.ndim - 1)


def _files(rows: int, shard: int, row_axes: int) -> list[str]:
    return ["zarr.json", *("/".join(["c", str(i), *["0"] * row_axes]) for i in range(-(-rows // shard)))]


def digest(place: Place, name: str, shape: Sequence[int]) -> str:
    """Returns the checksum (xxh3_128) of an array's values as they are stored now.

    Raises:
        ValueError: for a chunk with a wrong checksum, a shard that is missing or cut short, or another shape.
    """
    array = open_array(place, name)
    if array.shape[0] != shape[0]:
        raise ValueError(f"it has {array.shape[0]} rows, and {shape[0]} were recorded")
    if array.shape != tuple(shape):
        raise ValueError(f"its rows have shape {list(array.shape[1:])}, and manifest.json says {list(shape[1:])}")
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
    """Returns the largest power of two that is not above `number`; at least 1."""
    return 1 << max(0, number.bit_length() - 1)
