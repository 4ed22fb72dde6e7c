"""The rows of each step's batch: pure functions of (seed, step) and of the segments that an epoch goes over.

An epoch (`Pass`) lays all blocks of consecutive rows in a line, in an order that the seed and the number of the epoch
decide, and shuffles the rows of each block anew: a store of a single block has an order of its own in every epoch too.
It cuts that line into lanes. A batch takes its rows from all lanes, so that it has rows of many segments, while each
lane is read in large runs.

Every row is in every epoch. Where the rows make no whole number of batches, the line goes on with its beginning until
they do, so that less than a batch of rows comes a second time; each epoch repeats other rows.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

VERSION = 2  # `Source.batch_order`. 1 left out the last rows of an epoch, and shuffled no block anew
BLOCK_ROWS = 4096  # the most rows of a block
BLOCK_BYTES = 8 << 20  # the most bytes of a block, with the longest site as float32: the order is that of every dtype
LANES = 8  # the most lanes; a power of two


@dataclasses.dataclass(frozen=True)
class Pass:
    """The segments that epochs go over, from a step on until the next `Pass`.

    Attributes:
        first_step: the first step.
        number: the number of epochs before.
        segments: (index, rows) of each segment.
        block: rows of a block.
    """

    first_step: int
    number: int
    segments: tuple[tuple[int, int], ...]
    block: int = BLOCK_ROWS

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.segments)


class Block(NamedTuple):
    """Consecutive rows of a segment, which are read together."""

    segment: int
    start: int
    stop: int


class Run(NamedTuple):
    """Rows of a block that follow one another in a lane; their indices count from the block's first row."""

    block: Block
    rows: np.ndarray


def block_rows(width: int) -> int:
    """Returns the rows of a block in a store whose longest site has length `width`: a power of two, like the rows of a
    chunk, so that blocks are whole chunks."""
    return min(BLOCK_ROWS, 1 << (max(1, BLOCK_BYTES // (4 * width)).bit_length() - 1))


def lanes_for(batch_size: int) -> int:
    """Returns the number of lanes, which divides a batch."""
    return int(np.gcd(batch_size, LANES))


def steps_per_pass(rows: int, batch_size: int) -> int:
    """Returns the number of batches of an epoch, which have all rows."""
    return -(-rows // batch_size)


def runs(plan: Pass, batch_size: int, seed: int, step: int, steps: int, lane: int) -> list[Run]:
    """Returns the rows that a lane gives to `steps` batches of one epoch from `step` on, in order."""
    share = batch_size // lanes_for(batch_size)
    rows, per_epoch = plan.rows, steps_per_pass(plan.rows, batch_size)
    number, index = divmod(step - plan.first_step, per_epoch)
    epoch = plan.number + number
    blocks, ends = _line(plan.segments, plan.block, seed, epoch)
    first = (lane * per_epoch + index) * share
    last = first + steps * share
    taken = []
    while first < last:
        place = first % rows
        at = int(np.searchsorted(ends, place, side="right"))
        block = blocks[at]
        offset = place - (int(ends[at]) - (block.stop - block.start))
        some = _shuffled(block, seed, epoch)[offset : offset + last - first]
        taken.append(Run(block, some))
        first += len(some)
    return taken


@functools.lru_cache(maxsize=8)
def _line(segments: tuple[tuple[int, int], ...], block: int, seed: int, epoch: int) -> tuple[list[Block], np.ndarray]:
    """Returns the blocks of an epoch in its order, and the number of rows up to the end of each."""
    blocks = [
        Block(segment, start, min(start + block, rows)) for segment, rows in segments for start in range(0, rows, block)
    ]
    blocks = [blocks[i] for i in np.random.default_rng([seed, epoch]).permutation(len(blocks))]
    return blocks, np.cumsum([run.stop - run.start for run in blocks])


@functools.lru_cache(maxsize=4 * LANES)  # a lane comes back to its block for as long as it has rows left
def _shuffled(block: Block, seed: int, epoch: int) -> np.ndarray:
    """Returns the indices of a block's rows in the order of an epoch."""
    # Zeros at the end of a seed's words change nothing, hence the + 1: these words differ from those of the line.
    words = [seed, epoch, block.segment + 1, block.start]
    return np.random.default_rng(words).permutation(block.stop - block.start)
