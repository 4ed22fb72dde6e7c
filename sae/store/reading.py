"""Reading a store: aligned batches in a seeded order, in which a place is a function of (seed, step).

A pass goes over blocks of consecutive rows (of rows that were shuffled when written), in an order that the seed and
the number of the pass decide; a batch is the next rows of that stream. So any step can be gone to at once.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sae.store import arrays
from sae.store import manifest as manifests
from sae.store.manifest import ROW_FIELDS, Manifest

BLOCK_ROWS = 4096
# Batches whose reads are under way while one is being used.
LOOKAHEAD = 4


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """Activations of one or more sites over the same rows in the same order. `ActivationStore.open(path)` makes one.

    Attributes:
      path: its folder.
      manifest: model, tokenizer, sites, units, dtype, text, order.
      segment_rows: rows of each segment that the store has.
    """

    path: Path
    manifest: Manifest
    segment_rows: tuple[int, ...]

    @classmethod
    def open(cls, path: str | Path) -> "ActivationStore":
        """Raises ValueError when there is no store, or one whose harvest has not finished."""
        path = Path(path)
        manifest = manifests.read(path)
        rows = []
        for index in range(manifest.segments):
            folder = manifests.segment_folder(path, index)
            if not folder.is_dir():
                raise ValueError(
                    f"{path} is not complete: {folder.name} of {manifest.segments} segments is missing; "
                    "run the harvest again, it writes what is missing"
                )
            rows.append(manifests.segment_facts(path, index, manifest)["rows"])
        return cls(path, manifest, tuple(rows))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest.sites)

    @property
    def rows(self) -> int:
        """Tokens in the store."""
        return sum(self.segment_rows)

    def width(self, site: str) -> int:
        """A, the length of a row of a site."""
        self.check_sites([site])
        return int(np.prod(self.manifest.sites[site]))

    def check_sites(self, sites: Sequence[str]) -> None:
        """Raises ValueError unless the store has them all."""
        for site in sites:
            if site not in self.manifest.sites:
                raise ValueError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}")

    @functools.cached_property
    def documents(self) -> list[tuple[str, str]]:
        """(id, source) of every document, by the number that rows carry."""
        return [tuple(pair) for pair in manifests.read_json(self.path / "documents.json")]

    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2 over all rows, in raw units, from sums in float64."""
        self.check_sites([site])
        return float(self._average(lambda segment: segment["sites"][site]["mean_squared_norm"]))

    def mean(self, site: str) -> np.ndarray:
        """E[x] over all rows, [A] float64, in raw units."""
        self.check_sites([site])
        return self._average(lambda segment: np.asarray(segment["sites"][site]["mean"]))

    def _average(self, value):
        return sum(segment["rows"] * value(segment) for segment in self._segments) / self.rows

    @functools.cached_property
    def _segments(self) -> list[dict]:
        return [manifests.segment_facts(self.path, i, self.manifest) for i in range(len(self.segment_rows))]

    def rows_between(self, name: str, segment: int, start: int, stop: int) -> np.ndarray:
        """Rows of one segment: a site's activations [rows, A] as stored, or `token`, `position`, `document` [rows]."""
        return self._array(name, segment)[start:stop].read().result()

    @functools.cached_property
    def _opened(self) -> dict:
        return {}

    def _array(self, name: str, segment: int):
        if (name, segment) not in self._opened:
            folder = manifests.segment_folder(self.path, segment)
            folder = folder / name if name in ROW_FIELDS else manifests.site_folder(folder, name)
            self._opened[name, segment] = arrays.open_array(folder)
        return self._opened[name, segment]

    def batches_per_pass(self, batch_size: int) -> int:
        """Whole batches in one pass; the rows left over are left out of that pass.

        Raises:
          ValueError: when the store has fewer rows than one batch.
        """
        if not 1 <= batch_size <= self.rows:
            raise ValueError(f"batch_size must be from 1 to the store's {self.rows} rows, got {batch_size}")
        return self.rows // batch_size

    def batches(
        self, batch_size: int, sites: Sequence[str] | None = None, seed: int = 0, start_step: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches {site: [batch_size, A] float32} without end, pass after pass, each in an order of its own.

        Args:
          batch_size: B, rows of a batch.
          sites: which sites; all by default. `token`, `position` and `document` may be asked for as well.
          seed: decides the order. The batch of a step depends on (seed, step) and nothing else.
          start_step: where to begin; no cost to begin late.

        Raises:
          ValueError: for a site that is not there, or a batch larger than the store.
        """
        names = list(self.sites if sites is None else sites)
        self.check_sites([name for name in names if name not in ROW_FIELDS])
        if start_step < 0:
            raise ValueError(f"start_step counts batches from 0, got {start_step}")
        self.batches_per_pass(batch_size)
        return self._batches(batch_size, names, seed, start_step)

    def _batches(self, batch_size, names, seed, start_step):
        pending: collections.deque = collections.deque()
        for step in itertools.count(start_step):
            reads = [
                {name: self._array(name, segment)[start:stop].read() for name in names}
                for segment, start, stop in self._ranges(batch_size, seed, step)
            ]
            pending.append(reads)
            if len(pending) <= LOOKAHEAD:
                continue
            yield _joined(pending.popleft(), names)

    def _ranges(self, batch_size: int, seed: int, step: int) -> list[tuple[int, int, int]]:
        """The (segment, start, stop) ranges of rows that make the batch of a step."""
        number, index = divmod(step, self.batches_per_pass(batch_size))
        blocks, ends = _pass_blocks(self.segment_rows, seed, number)
        first, last = index * batch_size, (index + 1) * batch_size
        ranges = []
        block = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            segment, start, stop = blocks[block]
            offset = first - (int(ends[block]) - (stop - start))
            size = min(stop - start - offset, last - first)
            ranges.append((segment, start + offset, start + offset + size))
            first, block = first + size, block + 1
        return ranges


@functools.lru_cache(maxsize=8)
def _pass_blocks(segment_rows: tuple[int, ...], seed: int, number: int):
    """The blocks (segment, start, stop) of a pass in its order, and the rows up to the end of each."""
    blocks = [
        (segment, start, min(start + BLOCK_ROWS, rows))
        for segment, rows in enumerate(segment_rows)
        for start in range(0, rows, BLOCK_ROWS)
    ]
    blocks = [blocks[i] for i in np.random.default_rng([seed, number]).permutation(len(blocks))]
    return blocks, np.cumsum([stop - start for _, start, stop in blocks])


def _joined(reads: list[dict], names: list[str]) -> dict[str, np.ndarray]:
    batch = {}
    for name in names:
        values = np.concatenate([part[name].result() for part in reads])
        batch[name] = values if name in ROW_FIELDS else values.astype(np.float32, copy=False)
    return batch
