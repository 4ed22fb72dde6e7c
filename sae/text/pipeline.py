"""The order of a harvest, and reading ahead, by grain (https://github.com/google/grain).

Axis letters: T tokens of a sequence.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import numpy as np

from sae.text.sequences import Sequences

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


# pyrefly: ignore[missing-attribute]  not None here
def read_ahead(dataset: "grain.MapDataset[T]", *, threads: int, ahead: int) -> Iterator[T]:
    """A dataset's elements in order, up to `ahead` of which threads make in advance; they end with the iterator."""
    iterator = iter(
        dataset.to_iter_dataset(installed_grain().ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    )
    try:
        yield from iterator
    finally:
        iterator.close()
