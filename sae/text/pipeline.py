"""The order of a harvest, and its batches, by grain (https://github.com/google/grain).

Axis letters: T tokens of a sequence.
"""

from collections.abc import Iterator
from typing import TypeVar

import grain
import numpy as np

from sae.text.sequences import Sequences, batch_at

T = TypeVar("T")


def segment(sequences: Sequences, seed: int, index: int, size: int) -> Sequences:
    """The sequences number index·size to (index+1)·size - 1 of a random order of them all; the last segment is shorter.

    The order is that of `grain.MapDataset.shuffle`, a permutation that is computed number by number: nothing is kept of
    it, and no segment costs more than its own sequences, which are read into memory.

    It is a pure function of its arguments, and that is all the sharding there is: processes share a harvest by taking
    different segments, whichever and in whatever order, and need to tell each other nothing.

    Raises:
      ValueError: for an index beyond the last segment, a size under 1, or a seed that is not within 32 bits.
    """
    if size < 1:
        raise ValueError(f"a segment has one sequence at least, got size {size}")
    last = -(-len(sequences) // size) - 1
    if not 0 <= index <= last:
        raise ValueError(f"segment {index} of {len(sequences)} sequences by {size}: expected one of 0 to {last}")
    order = grain.MapDataset.range(len(sequences)).shuffle(seed)
    rows = [order[row] for row in range(index * size, min((index + 1) * size, len(sequences)))]
    return sequences.take(np.asarray(rows))


def batches(sequences: Sequences, size: int, pad: int, *, start: int = 0) -> Iterator[np.ndarray]:
    """The tokens as [size, T] int32, from sequence number `start` on. The last is filled up as `batch_at` does it.

    Threads of grain's make the next batches while one is worked on; the order is that of the sequences.

    Raises:
      ValueError: for a size under 1, or a start that is negative.
    """
    if size < 1 or start < 0:
        raise ValueError(f"expected a size of 1 at least and a start of 0 at least, got {size} and {start}")
    starts = grain.MapDataset.range(start, len(sequences), size)
    # Few threads: a batch is copied in microseconds from memory, and waits for the disk where sequences are mapped.
    return read_ahead(starts.map(lambda at: batch_at(sequences.tokens, at, size, pad)), threads=2, ahead=4)


def read_ahead(dataset: grain.MapDataset[T], *, threads: int, ahead: int) -> Iterator[T]:
    """A dataset's elements in order, up to `ahead` of which threads make in advance; they end with the iterator."""
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
    try:
        yield from iterator
    finally:
        iterator.close()
