"""Which rows make the batch of a step: pure functions of (seed, step) and of the segments that a pass goes over.

A pass lays all blocks of consecutive rows (of rows that were shuffled when written) one after another, in an order
that the seed and the number of the pass decide, and cuts that line into lanes. A batch takes its rows from all lanes,
so that it has rows of many segments, while each lane is read in large runs.
"""

import dataclasses
import functools

import numpy as np

BLOCK_ROWS = 4096  # at most
BLOCK_BYTES = 8 << 20  # of the widest site as float32, at most: the order does not depend on the stored dtype
LANES = 8  # at most; a power of two


@dataclasses.dataclass(frozen=True)
class Pass:
    """From a step on, passes go over these segments, until the next `Pass`.

    Attributes:
      first_step: of all steps, the one that begins it.
      number: how many passes there were before.
      segments: (number, rows) of each segment.
      block: rows of a block.
    """

    first_step: int
    number: int
    segments: tuple[tuple[int, int], ...]
    block: int = BLOCK_ROWS

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.segments)


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive rows of a segment."""

    segment: int
    start: int
    stop: int


def block_rows(width: int) -> int:
    """Rows of a block in a store whose widest site has this width: a power of two, as a chunk's are, so that blocks are
    whole chunks."""
    return min(BLOCK_ROWS, 1 << (max(1, BLOCK_BYTES // (4 * width)).bit_length() - 1))


def lanes_for(batch_size: int) -> int:
    """As many lanes as divide a batch."""
    return int(np.gcd(batch_size, LANES))


def steps_per_pass(rows: int, batch_size: int) -> int:
    """Whole batches in a pass over so many rows; those left over are left out of it."""
    lanes = lanes_for(batch_size)
    return (rows // lanes) // (batch_size // lanes)


def runs(plan: Pass, batch_size: int, seed: int, step: int, steps: int, lane: int) -> list[Run]:
    """The rows that a lane gives to `steps` batches from `step` on, all of one pass, in order."""
    lanes = lanes_for(batch_size)
    share = batch_size // lanes
    number, index = divmod(step - plan.first_step, steps_per_pass(plan.rows, batch_size))
    blocks, ends = _line(plan.segments, plan.block, seed, plan.number + number)
    first = lane * (plan.rows // lanes) + index * share
    last = first + steps * share
    found = []
    block = int(np.searchsorted(ends, first, side="right"))
    while first < last:
        run = blocks[block]
        offset = first - (int(ends[block]) - (run.stop - run.start))
        size = min(run.stop - run.start - offset, last - first)
        found.append(Run(run.segment, run.start + offset, run.start + offset + size))
        first, block = first + size, block + 1
    return found


@functools.lru_cache(maxsize=8)
def _line(segments: tuple[tuple[int, int], ...], block: int, seed: int, number: int) -> tuple[list[Run], np.ndarray]:
    """The blocks of a pass in its order, and the rows up to the end of each."""
    blocks = [
        Run(segment, start, min(start + block, rows)) for segment, rows in segments for start in range(0, rows, block)
    ]
    blocks = [blocks[i] for i in np.random.default_rng([seed, number]).permutation(len(blocks))]
    return blocks, np.cumsum([run.stop - run.start for run in blocks])
