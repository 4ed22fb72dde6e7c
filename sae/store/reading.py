"""`ActivationStore`: an open store, its facts and its rows."""

import dataclasses
import functools
import os
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
    """Activations of one or more sites over the same rows in the same order. `ActivationStore.open(path)` opens one.

    Attributes:
        place: the folder or the bucket.
        manifest: model, tokenizer, sites, units, dtype, text, order.
        segments: (index, rows) of each segment that existed when the store was opened.
        growing: whether it was opened while its harvest may still be under way.

    Raises:
        TypeError: for a path: `ActivationStore.open` opens a store.

    Example:
        >>> store = sae.ActivationStore.open(store.path)
        >>> store.sites, store.width("layer_1/resid_post")
        (('layer_1/resid_post',), 192)
        >>> batches = store.batches(64)
        >>> next(batches)["layer_1/resid_post"].shape
        (64, 192)
        >>> batches.close()
    """

    place: Place
    manifest: Manifest
    segments: tuple[tuple[int, int], ...]
    growing: bool = False
    kind = "store"
    batch_order = order.VERSION

    def __new__(cls, *arguments, **fields):
        path = arguments[0] if arguments else fields.get("place", fields.get("path"))
        if isinstance(path, str | os.PathLike):
            raise TypeError(
                f"sae.ActivationStore is the type of an open store, got the path {str(path)!r}: call "
                "sae.ActivationStore.open(path)"
            )
        return super().__new__(cls)

    @classmethod
    def open(cls, path: str | Path | Place, growing: bool = False) -> "ActivationStore":
        """Opens a store.

        Args:
            path: a folder, `gs://bucket/folder` or `s3://bucket/folder`.
            growing: whether to open a store whose harvest has not finished, with the segments that it has so far.

        Raises:
            ValueError: where the path has no store, the store is not complete and `growing` is False, or it has no
                segment yet.
        """
        where = place(path)
        manifest = manifests.read(where)
        committed = manifests.committed(where)
        missing = sorted(set(range(manifest.segments)) - set(committed))
        if missing and not growing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"{where} is not complete: {segment_name(missing[0])}{others} of {manifest.segments} segments "
                f"{'are' if others else 'is'} missing. Run the harvest again, which writes the missing ones, or open "
                "the store with growing=True"
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
        """Returns the same store with the segments that exist now."""
        return type(self).open(self.place, growing=True)

    @property
    def path(self) -> Path | str:
        """The store's folder, or its address in a bucket."""
        return self.place.folder or self.place.url

    @property
    def name(self) -> str:
        return str(self.place)

    @property
    def rows(self) -> int:
        """Rows of the store, one for each token that counts."""
        return sum(rows for _, rows in self.segments)

    @property
    def sinks(self) -> int:
        """Tokens that were left out as attention sinks."""
        return sum(self.facts(index)["sinks"] for index, _ in self.segments)

    @functools.cached_property
    def documents(self) -> list[tuple[str, str]]:
        """(id, source) of every document, by the number that rows have in `document`.

        Raises:
            FileNotFoundError, ValueError: where documents.json is missing, or belongs to another store.
        """
        return manifests.read_documents(self.place, self.manifest)

    def facts(self, segment: int) -> dict:
        """Returns the facts in a segment's `segment.json`: row counts, statistics, checksums."""
        if segment not in self._facts:
            self._facts[segment] = facts_module.read(self.place, segment, self.manifest)
        return self._facts[segment]

    def mean_squared_norm(self, site: str) -> float:
        """Returns E||x||^2 over all rows, in raw units, from sums in float64."""
        return float(self._average(site, "mean_squared_norm"))

    def mean(self, site: str) -> Float64[np.ndarray, " A"]:
        """Returns E[x] over all rows, float64 [A], in raw units."""
        # pyrefly: ignore[bad-return]  an average of arrays
        return self._average(site, "mean")

    def median_norm(self, site: str) -> float:
        """Returns the segments' medians of ||x||, averaged over their rows, in raw units."""
        return float(self._average(site, "median_norm"))

    def sink_limits(self) -> dict[str, float]:
        """Returns {site: the norm over which a row was a sink}. Each segment has a median of its own; their limits are
        averaged over their rows."""
        counted, limits = self.manifest.counted, {}
        for site in counted.sink_sites:
            if any("sink_limits" not in self.facts(index) for index, _ in self.segments):
                warnings.warn(
                    f"{self.name} was harvested before stores recorded the norm over which a token is a sink. "
                    # pyrefly: ignore[missing-attribute]  not None here
                    f"{counted.sinks.factor:g} medians of the kept rows, which is somewhat less, stand for it: harvest "
                    "again for the exact norm",
                    stacklevel=2,
                )
                # pyrefly: ignore[missing-attribute]  not None here
                return {site: counted.sinks.factor * self.median_norm(site) for site in counted.sink_sites}
            limits[site] = sum(rows * self.facts(i)["sink_limits"][site] for i, rows in self.segments) / max(
                1, self.rows
            )
        return limits

    def rounding(self, site: str) -> float:
        """Returns the part of the rows' variance that the stored dtype lost: E||x - stored||^2 / E||x - E[x]||^2, 0 for
        float32. A tenth of the wanted FVU is too much."""
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
            f"{self.name} has no rows: in its {showing.count(len(self.segments), 'segment')} every token was left out. "
            + ("Wait for more segments" if growing else "Harvest text with tokens that count into another folder")
        )

    def rows_between(self, name: str, segment: int, start: int, stop: int) -> Shaped[np.ndarray, "R ..."]:
        """Returns rows of one segment: a site's activations float32 [rows, A], or `token`, `position`, `document`
        [rows]."""
        stored = {suffix: part.result() for suffix, part in self.read(name, segment, start, stop).items()}
        if name in ROW_FIELDS:
            return stored[""]
        out = np.empty((len(stored[""]), self.width(name)), np.float32)
        self.codec.decode(stored, out)
        return out

    @functools.cached_property
    def codec(self) -> Codec:
        """The codec that keeps the rows of its sites."""
        return codec(self.manifest.dtype)

    def read(self, name: str, segment: int, start: int, stop: int) -> dict[str, ts.Future]:
        """Begins to read rows in their stored form: the arrays of a site by suffix (`Codec.parts`), of a field by
        ""."""
        suffixes = ("",) if name in ROW_FIELDS else tuple(self.codec.parts(self.width(name)))
        return {suffix: self._array(name, segment, suffix)[start:stop].read() for suffix in suffixes}

    def array_folder(self, name: str, segment: int) -> str:
        """Returns the folder, within the store's, of the array of a site or a row field in a segment."""
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
                    f"{self.place}/{folder} holds {array.dtype.name}, while manifest.json says {expected}: another "
                    "program wrote it. experiments.inspect_store --repair harvests it again"
                )
            self._opened[name, segment, suffix] = array
        return self._opened[name, segment, suffix]

    def batches_per_pass(self, batch_size: int) -> int:
        """Returns the number of batches in one epoch. They have every row; the last are filled up with rows of the same
        epoch, so that less than a batch of rows comes twice; each epoch repeats other rows.

        Raises:
            ValueError: where the store has fewer rows than one batch.
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
        """Returns batches {site: float32 [B, A]} without end, epoch after epoch, each in an order of its own.

        Each epoch has every row (`batches_per_pass`). The rows of a batch come from up to eight places of the epoch.
        They are read ahead, in large runs. In a growing store, an epoch goes over the segments that existed when it
        began.

        Args:
            batch_size: B, rows of a batch.
            sites: the sites; all by default. `token`, `position` and `document` may be named as well.
            seed: decides the order. The batch of a step depends on (seed, step) and, in a growing store, on `passes`.
            start_step: the step whose batch comes first; a late start costs nothing.
            sharding: where given, batches are placed in this sharding, ahead of their use. With several processes each
                reads the rows of its own devices, and all get parts of the same batches.
            passes: for a growing store, `Batches.passes` as they were at `start_step`, to go on in the same order.

        Raises:
            ValueError: for a site that the store lacks, or a batch larger than the store. While iterating: for a
                damaged segment, which it names.
        """
        names = self.checked_names(batch_size, sites, start_step)
        # pyrefly: ignore[bad-argument-type]  `Segments` says what it reads of a store
        return StoreBatches(self, batch_size, names, seed, start_step, sharding, passes)
