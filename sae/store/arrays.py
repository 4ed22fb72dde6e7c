"""The arrays of a store: zarr v3, sharded, through tensorstore. Any zarr v3 reader opens the float32 ones."""

from pathlib import Path

import numpy as np
import tensorstore as ts

# A shard is one file. A read fetches whole chunks, each with a checksum of its own (crc32c).
SHARD_ROWS = 65_536
CHUNK_BYTES = 1 << 20


def _codecs() -> list[dict]:
    return [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def _spec(folder: Path) -> dict:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder.absolute())}}


def chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk, the least that is read or written."""
    return max(1, min(SHARD_ROWS, CHUNK_BYTES // row_bytes))


def stored_bytes(rows: int, row_bytes: int) -> int:
    """What an array takes on disk, its last chunk filled up."""
    chunk = chunk_rows(row_bytes)
    return -(-rows // chunk) * chunk * row_bytes


def write(folder: Path, values: np.ndarray) -> None:
    """Writes [rows, …] as a new array, all of it in memory already."""
    chunk = chunk_rows(max(1, values[:1].nbytes))
    shard_rows = -(-min(SHARD_ROWS, len(values)) // chunk) * chunk
    metadata = {
        "shape": list(values.shape),
        "data_type": str(values.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *values.shape[1:]]}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [chunk, *values.shape[1:]],
                    "codecs": _codecs(),
                    "index_codecs": _codecs(),
                },
            }
        ],
    }
    array = ts.open({**_spec(folder), "metadata": metadata}, create=True, delete_existing=True).result()
    array.write(values).result()


def open_array(folder: Path) -> ts.TensorStore:
    """Opens an array to read.

    Raises:
      ValueError: when it is missing or its metadata is damaged.
    """
    return ts.open(_spec(folder), open=True, read=True).result()
