"""`ActivationStore`: what a store holds, and its rows."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts

from sae.store import arrays, order
from sae.store import manifest as manifests
from sae.store.batches import Batches
from sae.store.manifest import ROW_FIELDS, Manifest, array_name, segment_name
from sae.store.order import Pass
from sae.store.places import Place, place
from sae.store.source import Source


@dataclasses.dataclass(frozen=True)
class ActivationStore(Source):
    """Activations of one or more sites over the same rows in the same order. `ActivationStore.open(path)` makes one.

    Attributes:
      place: where it is.
      manifest: model, tokenizer, sites, units, dtype, text, order.
      segments: (number, rows) of each segment that was there when it was opened.
      growing: opened while its harvest may still be under way.
    """

    place: Place
    manifest: Manifest
    segments: tuple[tuple[int, int], ...]
    growing: bool = False

    @classmethod
    def open(cls, path: str | Path | Place, growing: bool = False) -> "ActivationStore":
        """Opens a store in a folder, `gs://…` or `s3://…`.

        Args:
          growing: open one whose harvest has not finished, with the segments that it has by now.

        Raises:
          ValueError: when there is no store, or it is not complete and `growing` is not set, or it has no row yet.
        """
        where = place(path)
        manifest = manifests.read(where)
        there = manifests.committed(where)
        missing = sorted(set(range(manifest.segments)) - set(there))
        if missing and not growing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"{where} is not complete: {segment_name(missing[0])}{more} of {manifest.segments} segments is "
                "missing; run the harvest again, it writes what is missing, or open it with growing=True"
            )
        facts = {index: manifests.segment_facts(where, index, manifest) for index in there}
        if not facts:
            raise ValueError(f"{where} has no segment yet: wait for the first of {manifest.segments}")
        store = cls(where, manifest, tuple((index, fact["rows"]) for index, fact in facts.items()), growing)
        store._facts.update(facts)
        return store

    @property
    def path(self) -> Path | str:
        """Its folder, or its address in a bucket."""
        return self.place.folder or self.place.url

    @property
    def name(self) -> str:
        return str(self.place)

    @property
    def rows(self) -> int:
        """Tokens in the store."""
        return sum(rows for _, rows in self.segments)

    @property
    def sinks(self) -> int:
        """Tokens that were left out as attention sinks."""
        return sum(self.facts(index)["sinks"] for index, _ in self.segments)

    @functools.cached_property
    def documents(self) -> list[tuple[str, str]]:
        """(id, source) of every document, by the number that rows carry."""
        return [tuple(pair) for pair in self.place.read_json("documents.json")]

    def facts(self, segment: int) -> dict:
        """What a segment's `segment.json` says: row counts, statistics, checksums."""
        if segment not in self._facts:
            self._facts[segment] = manifests.segment_facts(self.place, segment, self.manifest)
        return self._facts[segment]

    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2 over all rows, in raw units, from sums in float64."""
        return float(self._average(site, "mean_squared_norm"))

    def mean(self, site: str) -> np.ndarray:
        """E[x] over all rows, [A] float64, in raw units."""
        return self._average(site, "mean")

    def median_norm(self, site: str) -> float:
        """The segments' medians of ||x||, averaged over their rows, in raw units."""
        return float(self._average(site, "median_norm"))

    def rounding(self, site: str) -> float:
        """The share of the rows' variance that was lost when they were stored: E||x - stored||^2 / E||x - E[x]||^2, 0
        for float32. A tenth of the FVU that one hopes for is too much."""
        spread = self.mean_squared_norm(site) - float(np.square(self.mean(site)).sum())
        return float(self._average(site, "rounding")) / spread if spread > 0 else 0.0

    def _average(self, site: str, name: str):
        self.check_sites([site])
        return (
            sum(rows * np.asarray(self.facts(i)["sites"][site][name]) for i, rows in self.segments if rows) / self.rows
        )

    def rows_between(self, name: str, segment: int, start: int, stop: int) -> np.ndarray:
        """Rows of one segment: a site's activations [rows, A] float32, or `token`, `position`, `document` [rows]."""
        values, scale = self.read(name, segment, start, stop)
        values = values.result()
        if name in ROW_FIELDS:
            return values
        out = np.empty(values.shape, np.float32)
        arrays.decode(values, None if scale is None else scale.result(), out)
        return out

    def read(self, name: str, segment: int, start: int, stop: int) -> tuple[ts.Future, ts.Future | None]:
        """Begins to read rows as they are stored: values, and for int8 their scales."""
        values = self._array(name, segment)[start:stop].read()
        if name in ROW_FIELDS or self.manifest.dtype != "int8":
            return values, None
        return values, self._array(name + arrays.SCALE, segment)[start:stop].read()

    @functools.cached_property
    def _facts(self) -> dict[int, dict]:
        return {}

    @functools.cached_property
    def _opened(self) -> dict[tuple[str, int], ts.TensorStore]:
        return {}

    def _array(self, name: str, segment: int) -> ts.TensorStore:
        if (name, segment) not in self._opened:
            array = arrays.open_array(self.place, array_name(segment, name))
            expected = arrays.STORED[self.manifest.dtype]
            if name in self.manifest.sites and array.dtype.numpy_dtype != expected:
                raise ValueError(
                    f"{self.place}/{array_name(segment, name)} holds {array.dtype.name}, while manifest.json says "
                    f"{expected}: something else wrote it. experiments.inspect_store --repair harvests it again"
                )
            self._opened[name, segment] = array
        return self._opened[name, segment]

    def batches_per_pass(self, batch_size: int) -> int:
        """Whole batches in one pass; the rows left over are left out of that pass.

        Raises:
          ValueError: when the store has fewer rows than one batch.
        """
        if not 1 <= batch_size <= self.rows:
            raise ValueError(f"batch_size must be from 1 to the store's {self.rows} rows, got {batch_size}")
        return order.steps_per_pass(self.rows, batch_size)

    def batches(
        self,
        batch_size: int,
        sites: Sequence[str] | None = None,
        seed: int = 0,
        start_step: int = 0,
        *,
        sharding: jax.sharding.NamedSharding | None = None,
        passes: Sequence[Pass] = (),
    ) -> Batches:
        """Batches {site: [batch_size, A] float32} without end, pass after pass, each in an order of its own.

        The rows of a batch come from up to eight places in the pass. They are read ahead, in large runs. While a store
        is growing, a pass goes over the segments that were there when it began.

        Args:
          batch_size: B, rows of a batch.
          sites: which sites; all by default. `token`, `position` and `document` may be asked for as well.
          seed: decides the order. The batch of a step depends on (seed, step) and, in a growing store, on `passes`.
          start_step: where to begin; no cost to begin late.
          sharding: where given, batches are placed so, ahead of their use. With several processes each reads the rows
            of its own devices, and all get parts of the same batches.
          passes: of a growing store: `Batches.passes` as they were at `start_step`, to go on in the same order.

        Raises:
          ValueError: for a site that is not there, or a batch larger than the store. While iterating: for a segment
            that is damaged, which is named.
        """
        names = self.asked(batch_size, sites, start_step)
        return Batches(self, batch_size, names, seed, start_step, sharding, passes)
