"""The order of a harvest, and reading ahead, by grain (https://github.com/google/grain).

Axis letters: T tokens of a sequence.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import numpy as np

from sae.text.sequences import Sequences

try:
    # At import, since it defines a flag of absl, which has to exist before flags are parsed.
    import grain
except ModuleNotFoundError:
    grain = None  # training on rows of one's own does not need it

T = TypeVar("T")


def installed_grain() -> ModuleType:
    """Returns the module grain. Raises ModuleNotFoundError, with the command to install it, where it is missing."""
    if grain is None:
        raise ModuleNotFoundError("grain cuts and reads text, and it is not installed: pip install grain")
    return grain


def segment(sequences: Sequences, seed: int, index: int, size: int) -> Sequences:
    """Returns the sequences index·size to (index+1)·size - 1 of a random order of all; the last segment is shorter.

    The order is that of `grain.MapDataset.shuffle`, a permutation that is computed number by number: it takes no
    memory, and a segment costs no more than its own sequences, which are read into memory.

    It is a pure function of its arguments. So processes divide a harvest by taking different segments, in any order,
    and need not talk to each other.

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
    """Returns the indices of a segment's sequences, in its order.

    Args:
        sequences: the number of all sequences.
        seed: as for `segment`.
        index: as for `segment`.
        size: as for `segment`.
    """
    if size < 1:
        raise ValueError(f"a segment has at least one sequence, got size {size}")
    last = -(-sequences // size) - 1
    if not 0 <= index <= last:
        raise ValueError(f"{sequences} sequences make segments 0 to {last} of {size}, got segment {index}")
    order = installed_grain().MapDataset.range(sequences).shuffle(seed)
    return np.asarray([order[row] for row in range(index * size, min((index + 1) * size, sequences))])


# pyrefly: ignore[missing-attribute]  not None here
def read_ahead(dataset: "grain.MapDataset[T]", *, threads: int, ahead: int) -> Iterator[T]:
    """Yields a dataset's elements in order. Threads make up to `ahead` of them in advance, and end with the
    iterator."""
    iterator = iter(
        dataset.to_iter_dataset(installed_grain().ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    )
    try:
        yield from iterator
    finally:
        iterator.close()
