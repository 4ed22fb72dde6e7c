"""`ActivationStore`: what a store holds, and its rows."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts
from jaxtyping import Float64, Shaped

from sae import showing
from sae.store import arrays, order
from sae.store import facts as facts_module
from sae.store import manifest as manifests
from sae.store.batches import StoreBatches
from sae.store.codec import Codec, codec
from sae.store.manifest import ROW_FIELDS, Manifest, array_name, segment_name
from sae.store.order import Pass
from sae.store.places import Place, place
from sae.store.source import Batches, Source


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
    kind = "store"
    batch_order = order.VERSION

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
        committed = manifests.committed(where)
        missing = sorted(set(range(manifest.segments)) - set(committed))
        if missing and not growing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"{where} is not complete: {segment_name(missing[0])}{others} of {manifest.segments} segments is "
                "missing; run the harvest again, it writes what is missing, or open it with growing=True"
            )
        facts = {index: facts_module.read(where, index, manifest) for index in committed}
        if not facts:
            raise ValueError(f"{where} has no segment yet: wait for the first of {manifest.segments}")
        store = cls(where, manifest, tuple((index, fact["rows"]) for index, fact in facts.items()), growing)
        store._facts.update(facts)
        return store

    def __repr__(self) -> str:
        m = self.manifest
        part = "" if len(self.segments) == m.segments else f", {len(self.segments)} of {m.segments} segments"
        return f"ActivationStore({self.name}: {showing.count(self.rows, 'token')} at {m.label}, {m.dtype}{part})"

    def reopened(self) -> "ActivationStore":
        """The same store with the segments that there are by now."""
        return type(self).open(self.place, growing=True)

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
        """(id, source) of every document, by the number that rows carry.

        Raises:
          FileNotFoundError, ValueError: when documents.json is missing, or is another one than the store's.
        """
        return manifests.read_documents(self.place, self.manifest)

    def facts(self, segment: int) -> dict:
        """What a segment's `segment.json` says: row counts, statistics, checksums."""
        if segment not in self._facts:
            self._facts[segment] = facts_module.read(self.place, segment, self.manifest)
        return self._facts[segment]

    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2 over all rows, in raw units, from sums in float64."""
        return float(self._average(site, "mean_squared_norm"))

    def mean(self, site: str) -> Float64[np.ndarray, " A"]:
        """E[x] over all rows, [A] float64, in raw units."""
        # pyrefly: ignore[bad-return]  an average of arrays
        return self._average(site, "mean")

    def median_norm(self, site: str) -> float:
        """The segments' medians of ||x||, averaged over their rows, in raw units."""
        return float(self._average(site, "median_norm"))

    def sink_limits(self) -> dict[str, float]:
        """{site: the norm over which a row was a sink}: the segments', which each have a median of their own, averaged
        over their rows."""
        counted, limits = self.manifest.counted, {}
        for site in counted.sink_sites:
            if any("sink_limits" not in self.facts(index) for index, _ in self.segments):
                warnings.warn(
                    f"{self.name} was harvested before stores recorded the norm over which a token is a sink: "
                    # pyrefly: ignore[missing-attribute]  not None here
                    f"{counted.sinks.factor:g} medians of the rows that were kept stand for it, which is somewhat "
                    "less. Harvest again for the exact norm",
                    stacklevel=2,
                )
                # pyrefly: ignore[missing-attribute]  not None here
                return {site: counted.sinks.factor * self.median_norm(site) for site in counted.sink_sites}
            limits[site] = sum(rows * self.facts(i)["sink_limits"][site] for i, rows in self.segments) / max(
                1, self.rows
            )
        return limits

    def rounding(self, site: str) -> float:
        """The share of the rows' variance that was lost when they were stored: E||x - stored||^2 / E||x - E[x]||^2, 0
        for float32. A tenth of the FVU that one hopes for is too much."""
        spread = self.mean_squared_norm(site) - float(np.square(self.mean(site)).sum())
        return float(self._average(site, "rounding")) / spread if spread > 0 else 0.0

    def _average(self, site: str, name: str):
        self.check_sites([site])
        self._check_rows()
        return (
            sum(rows * np.asarray(self.facts(i)["sites"][site][name]) for i, rows in self.segments if rows) / self.rows
        )

    def _check_rows(self) -> None:
        """Raises ValueError for a store without a row, which has no statistics and no batches."""
        if self.rows:
            return
        growing = len(self.segments) < self.manifest.segments
        raise ValueError(
            f"{self.name} has no rows: in its {len(self.segments)} segments every token was left out. "
            + ("Wait for more segments" if growing else "Harvest text that has tokens to count into another folder")
        )

    def rows_between(self, name: str, segment: int, start: int, stop: int) -> Shaped[np.ndarray, "R ..."]:
        """Rows of one segment: a site's activations [rows, A] float32, or `token`, `position`, `document` [rows]."""
        stored = {suffix: part.result() for suffix, part in self.read(name, segment, start, stop).items()}
        if name in ROW_FIELDS:
            return stored[""]
        out = np.empty((len(stored[""]), self.width(name)), np.float32)
        self.codec.decode(stored, out)
        return out

    @functools.cached_property
    def codec(self) -> Codec:
        """How the rows of its sites are kept."""
        return codec(self.manifest.dtype)

    def read(self, name: str, segment: int, start: int, stop: int) -> dict[str, ts.Future]:
        """Begins to read rows as they are stored: the parts of a site by suffix (`Codec.parts`), a field's by ""."""
        suffixes = ("",) if name in ROW_FIELDS else tuple(self.codec.parts(self.width(name)))
        return {suffix: self._array(name, segment, suffix)[start:stop].read() for suffix in suffixes}

    def array_folder(self, name: str, segment: int) -> str:
        """The folder, within the store's, of a site's array in a segment, or a row field's."""
        folder = self.facts(segment).get("folder")
        return "/".join(part for part in (segment_name(segment), folder, array_name(name)) if part)

    @functools.cached_property
    def _facts(self) -> dict[int, dict]:
        return {}

    @functools.cached_property
    def _opened(self) -> dict[tuple[str, int, str], ts.TensorStore]:
        return {}

    def _array(self, name: str, segment: int, suffix: str = "") -> ts.TensorStore:
        if (name, segment, suffix) not in self._opened:
            folder = self.array_folder(name + suffix, segment)
            array = arrays.open_array(self.place, folder)
            site = name in self.manifest.sites
            expected = self.codec.parts(self.width(name))[suffix][0] if site else None
            if site and array.dtype.numpy_dtype != expected:
                raise ValueError(
                    f"{self.place}/{folder} holds {array.dtype.name}, while manifest.json says {expected}: something "
                    "else wrote it. experiments.inspect_store --repair harvests it again"
                )
            self._opened[name, segment, suffix] = array
        return self._opened[name, segment, suffix]

    def batches_per_pass(self, batch_size: int) -> int:
        """Batches in one epoch. They have every row; the last are filled up with rows of the same epoch, so that less
        than a batch of rows come twice, other ones in each epoch.

        Raises:
          ValueError: when the store has fewer rows than one batch.
        """
        self._check_rows()
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
        """Batches {site: [batch_size, A] float32} without end, epoch after epoch, each in an order of its own.

        Each epoch has every row (`batches_per_pass`). The rows of a batch come from up to eight places in it. They are
        read ahead, in large runs. While a store is growing, an epoch goes over the segments that were there when it
        began.

        Args:
          batch_size: B, rows of a batch.
          sites: which sites; all by default. `token`, `position` and `document` may be asked for as well.
          seed: decides the order. The batch of a step depends on (seed, step) and, in a growing store, on `passes`.
          start_step: where to begin; no cost to begin late.
          sharding: where given, batches are placed so, ahead of their use. With several processes each reads the rows
            of its own devices, and all get parts of the same batches.
          passes: of a growing store: `Batches.passes` as they were at `start_step`, to go on in the same order.

        Raises:
          ValueError: for a site that the store lacks, or a batch larger than the store. While iterating: for a segment
            that is damaged, which is named.
        """
        names = self.asked(batch_size, sites, start_step)
        # pyrefly: ignore[bad-argument-type]  `Segments` says what it reads of a store
        return StoreBatches(self, batch_size, names, seed, start_step, sharding, passes)
