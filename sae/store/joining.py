"""Batches of one size from pieces of any size, such as the segments of a stream."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from sae.store.codec import take

Piece = tuple[Mapping[str, np.ndarray], np.ndarray]  # values [rows, …] by name, and the indices of rows in their order


def batches_of(pieces: Iterable[Piece], size: int, rows: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of an epoch, from the rows of its pieces, one piece after another.

    Every row is in one batch. The last batch is filled up with rows of the batch before it. A piece may be overwritten
    as soon as the next one is taken.

    Args:
        pieces: activations of any float dtype [rows, A], or fields of rows [rows], with their order. A piece may be
            empty.
        size: B, rows of a batch.
        rows: the number of rows in all pieces; at least one batch.
        first: the index, within the epoch, of the first batch to yield. The pieces then begin with row `start_of(size,
            rows, first)`.

    Yields:
        {name: [B, A] float32, or [B] int32 of a field}.

    Example:
        >>> order = np.array([2, 0, 1, 4, 3])
        >>> [batch["x"].tolist() for batch in batches_of([({"x": np.arange(5)}, order)], 2, 5)]
        [[2, 0], [1, 4], [3, 1]]
    """
    count = -(-rows // size)
    number = start_of(size, rows, first) // size
    batch, filled, before = None, 0, None
    for values, order in pieces:
        while len(order):
            if batch is None:
                batch, filled = {name: _empty(value, size) for name, value in values.items()}, 0
            some, order = order[: size - filled], order[size - filled :]
            for name, out in batch.items():
                take(values[name], out[filled : filled + len(some)], some)
            filled += len(some)
            if filled < size:
                continue
            if number == count - 2:  # the last batch may need rows of this one, which its reader may change
                before = {name: out[: count * size - rows].copy() for name, out in batch.items()}
            if number >= first:
                yield batch
            batch, number = None, number + 1
    if batch is not None:
        for name, out in batch.items():
            # pyrefly: ignore[unsupported-operation]  not None here
            out[filled:] = before[name]
        yield batch


def start_of(size: int, rows: int, first: int) -> int:
    """Returns the first row that `batches_of` needs to begin with batch `first` of an epoch of `rows` rows: a batch
    that is filled up needs the batch before it."""
    count = -(-rows // size)
    filled_up = first == count - 1 and rows % size
    return (first - 1 if filled_up else first) * size


def _empty(value: np.ndarray, size: int) -> np.ndarray:
    return np.empty((size, *value.shape[1:]), np.float32 if value.ndim > 1 else np.int32)
