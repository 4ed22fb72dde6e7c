"""The order of a harvest, and its batches, by grain (https://github.com/google/grain).

Axis letters: T tokens of a sequence.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import numpy as np

from sae.text.sequences import Sequences, batch_at

try:
    # Not where it is used: it defines a flag of absl's, which has to be there before flags are parsed.
    import grain
except ModuleNotFoundError:
    grain = None  # training on rows of one's own does not need it

T = TypeVar("T")


def installed_grain() -> ModuleType:
    """Raises ModuleNotFoundError, with what to do, where grain is not installed."""
    if grain is None:
        raise ModuleNotFoundError("text is cut and read by grain, which is not installed: pip install grain")
    return grain


def segment(sequences: Sequences, seed: int, index: int, size: int) -> Sequences:
    """The sequences number index·size to (index+1)·size - 1 of a random order of them all; the last segment is shorter.

    The order is that of `grain.MapDataset.shuffle`, a permutation that is computed number by number: nothing is kept of
    it, and no segment costs more than its own sequences, which are read into memory.

    It is a pure function of its arguments, and that is all the sharding there is: processes share a harvest by taking
    different segments, whichever and in whatever order, and need to tell each other nothing.

    Raises:
      ValueError: for an index beyond the last segment, a size under 1, or a seed that is not within 32 bits.

    Example:
      >>> zeros = np.zeros(5, np.int32)
      >>> sequences = Sequences(np.arange(10, dtype=np.int32).reshape(5, 2), zeros, zeros, (("a", "s"),))
      >>> sorted(row for index in range(3) for row in segment(sequences, 0, index, 2).tokens[:, 0].tolist())
      [0, 2, 4, 6, 8]
    """
    return sequences.take(numbers(len(sequences), seed, index, size))


def numbers(sequences: int, seed: int, index: int, size: int) -> np.ndarray:
    """Which of so many sequences make a segment, by their numbers in its order; arguments as for `segment`."""
    if size < 1:
        raise ValueError(f"a segment has one sequence at least, got size {size}")
    last = -(-sequences // size) - 1
    if not 0 <= index <= last:
        raise ValueError(f"segment {index} of {sequences} sequences by {size}: expected one of 0 to {last}")
    order = installed_grain().MapDataset.range(sequences).shuffle(seed)
    return np.asarray([order[row] for row in range(index * size, min((index + 1) * size, sequences))])


def batches(sequences: Sequences, size: int, pad: int, *, start: int = 0) -> Iterator[np.ndarray]:
    """The tokens as [size, T] int32, from sequence number `start` on. The last is filled up as `batch_at` does it.

    Threads of grain's make the next batches while one is worked on; the order is that of the sequences.

    Raises:
      ValueError: for a size under 1, or a start that is negative.

    Example:
      >>> zeros = np.zeros(3, np.int32)
      >>> sequences = Sequences(np.ones((3, 2), np.int32), zeros, zeros, (("a", "s"),))
      >>> [batch.tolist() for batch in batches(sequences, 2, pad=0)]
      [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]
    """
    if size < 1 or start < 0:
        raise ValueError(f"expected a size of 1 at least and a start of 0 at least, got {size} and {start}")
    starts = installed_grain().MapDataset.range(start, len(sequences), size)
    # Few threads: a batch is copied in microseconds from memory, and waits for the disk where sequences are mapped.
    return read_ahead(starts.map(lambda at: batch_at(sequences.tokens, at, size, pad)), threads=2, ahead=4)


def read_ahead(dataset: "grain.MapDataset[T]", *, threads: int, ahead: int) -> Iterator[T]:
    """A dataset's elements in order, up to `ahead` of which threads make in advance; they end with the iterator."""
    iterator = iter(
        dataset.to_iter_dataset(installed_grain().ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    )
    try:
        yield from iterator
    finally:
        iterator.close()
