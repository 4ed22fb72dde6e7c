"""A check of 64 bits for each row of an array, by which changes of rows are noticed. It knows nothing of the rows' use.

The check of a row is the sum of its 64-bit words modulo 2^64, each mixed and multiplied by an odd number of its place.
A change of one word always changes it; changes of several words cancel by a rare chance, 2^-30 where only their highest
bits change. It protects against mistakes, and not against a search for collisions.

On one core it does about 2.5 GB a second, where sha256 and blake2b do 0.5 (float32, 256 to 2304 numbers a row).
"""

import functools

import numpy as np

from sae.progress import Progress, every

_PIECE = 1 << 18  # bytes whose words are held a second time: they stay in a core's cache
_STEP = 1 << 26  # bytes between two looks at the progress


def of(rows: np.ndarray, progress: Progress, title: str) -> np.ndarray:
    """Returns the checks of all rows, which are read one after another.

    Args:
        rows: [R, ...], of any dtype, in memory or memory-mapped.
        progress: called as tqdm is.
        title: the title of the progress.

    Returns:
        uint64 [R].

    Example:
        >>> of(np.zeros((3, 4)), silent, "rows").shape
        (3,)
    """
    checks = np.empty(len(rows), np.uint64)
    row_bytes = rows[:1].nbytes
    piece = max(1, _PIECE // row_bytes)
    step = piece * max(1, _STEP // (piece * row_bytes))
    starts = range(0, len(rows), step)
    for start in every(progress(starts, total=len(starts), desc=title), starts):
        for first in range(start, min(start + step, len(rows)), piece):
            checks[first : first + piece] = of_piece(rows[first : first + piece])
    return checks


def of_piece(rows: np.ndarray) -> np.ndarray:
    """Returns the checks of some rows, uint64 [R]; they are equal to those of `of`.

    Example:
        >>> x = np.arange(6.0).reshape(2, 3)
        >>> bool(of_piece(x)[0] == of_piece(-x)[0])
        False
    """
    joined = np.ascontiguousarray(rows).reshape(len(rows), -1)
    size = int(np.gcd(joined[:1].nbytes, 8))
    words = joined.view(np.uint8).view(f"u{size}").astype(np.uint64, copy=False)
    # By multiplication alone, the highest bits of two words would cancel, always for two float64 whose signs change. So
    # each bit is first copied to a lower place, by a shift that moves no sign of a float16, float32 or float64 onto
    # another sign.
    return np.einsum("ra,a->r", words ^ (words >> np.uint64(29)), _factors(words.shape[1]))


@functools.lru_cache(maxsize=32)
def _factors(count: int) -> np.ndarray:
    """Returns odd numbers of 64 bits, the same on every machine: splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of
    1, 2, ..."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
