"""`sae.stream`: the batches of a store that is never written, straight from the model, for those who cannot store."""

import concurrent.futures
import dataclasses
import functools
import itertools
import threading
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

import gemma
from sae import filling, harvesting
from sae.store import writing
from sae.store.manifest import Manifest
from sae.store.moments import Moments
from sae.store.source import Source
from sae.text import Sequences


def stream(
    model: gemma.Model,
    sequences: Sequences,
    sites: Sequence[str],
    *,
    seed: int = 0,
    shuffle_rows: int = harvesting.SHUFFLE_ROWS,
    shuffle_bytes: int = harvesting.SHUFFLE_BYTES,
    sink_factor: float | None = None,
    sink_sites: Sequence[str] | None = None,
    mesh: Mesh | None = None,
) -> "ActivationStream":
    """What `sae.train` reads in place of a store. The arguments are those of `sae.harvest`.

    Each pass runs the model over the text again, in another order.

    Raises:
      ValueError: as `sae.harvest` does for sites and arguments.
    """
    manifest = harvesting.plan(
        model,
        sequences,
        sites,
        seed=seed,
        shuffle_rows=shuffle_rows,
        shuffle_bytes=shuffle_bytes,
        sink_factor=sink_factor,
        sink_sites=sink_sites,
    )
    return ActivationStream(model, sequences, manifest, mesh)


class ActivationStream(Source):
    """Activations of one or more sites over the same rows, computed when they are asked for. `sae.stream` makes one.

    The statistics are those of one segment, which is computed for them.

    Attributes:
      manifest: model, tokenizer, sites, units, text, order.
    """

    def __init__(self, model: gemma.Model, sequences: Sequences, manifest: Manifest, mesh: Mesh | None):
        self.manifest = manifest
        self._model, self._sequences, self._mesh = model, sequences, mesh

    @property
    def name(self) -> str:
        return "the stream"

    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["mean_squared_norm"]

    def mean(self, site: str) -> np.ndarray:
        """E[x], [A] float64, in raw units."""
        self.check_sites([site])
        return np.asarray(self._statistics[site]["mean"])

    def median_norm(self, site: str) -> float:
        """The median of ||x||, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["median_norm"]

    @functools.cached_property
    def _statistics(self) -> dict[str, dict]:
        filled = next(filling.filled_segments(self._model, self._sequences, self.manifest, [0], mesh=self._mesh))
        moments = {site: Moments.of(x) for site, x in filled.activations.items()}
        keep = writing.kept_rows(moments, self.manifest)
        return {site: sums.statistics(filled.activations[site], keep) for site, sums in moments.items()}

    @functools.cached_property
    def rows(self) -> int:
        """Text tokens of the sequences, sinks among them."""
        return int(harvesting.text_tokens(self._sequences, self.manifest).sum())

    def batches_per_pass(self, batch_size: int) -> int:
        """Batches in one pass: so many from each whole segment as it has rows for on the average. In a segment with
        less, the first rows come again; what is over, and the sequences that make no whole segment, wait for the next
        pass.

        Raises:
          ValueError: when a segment has fewer rows than one batch.
        """
        segments, batches = self._plan(batch_size)
        return segments * batches

    def _plan(self, batch_size: int) -> tuple[int, int]:
        """Segments of a pass, and batches of a segment."""
        segments = max(1, self.manifest.sequences // self.manifest.sequences_per_segment)
        whole = min(self.manifest.sequences_per_segment, self.manifest.sequences)
        rows = self.rows * whole // self.manifest.sequences
        if not 1 <= batch_size <= rows:
            raise ValueError(
                f"batch_size must be from 1 to a segment's {rows} rows, got {batch_size}; shuffle_rows and "
                "shuffle_bytes decide how large a segment is"
            )
        return segments, rows // batch_size

    def batches(
        self,
        batch_size: int,
        sites: Sequence[str] | None = None,
        seed: int = 0,
        start_step: int = 0,
        *,
        sharding: jax.sharding.NamedSharding | None = None,
    ) -> Iterator[dict[str, np.ndarray | jax.Array]]:
        """As `ActivationStore.batches`; to begin late costs one segment. While a segment is used, a thread computes
        the next.

        Raises:
          ValueError: for a site that is not there, or a batch larger than a segment.
        """
        names = self.asked(batch_size, sites, start_step)
        return self._batches(batch_size, names, seed, start_step, sharding)

    def _batches(self, batch_size, names, seed, start_step, sharding) -> Iterator[dict]:
        segments, batches = self._plan(batch_size)
        segment, first = divmod(start_step, batches)
        stopped = threading.Event()
        filled = self._filled(segments, seed, segment, stopped)
        with concurrent.futures.ThreadPoolExecutor(1, "stream") as pool:
            coming = pool.submit(next, filled)
            try:
                while True:
                    manifest, now = coming.result()
                    coming = pool.submit(next, filled)
                    moments = {site: Moments.of(now.activations[site]) for site in manifest.sink_sites}
                    keep = writing.kept_rows(moments, manifest) if moments else np.arange(len(now.rows["token"]))
                    order = np.resize(writing.row_order(manifest, now.index, keep), batches * batch_size)
                    values = now.activations | now.rows
                    for index in range(first, batches):
                        rows = order[index * batch_size : (index + 1) * batch_size]
                        batch = {name: values[name][rows] for name in names}
                        yield batch if sharding is None else jax.device_put(batch, sharding)
                    first = 0
                    now.release()
            finally:
                stopped.set()

    def _filled(
        self, segments: int, seed: int, segment: int, stopped: threading.Event
    ) -> Iterator[tuple[Manifest, filling.Filled]]:
        """Segments without end, from number `segment` of all on, pass after pass, each in an order of its own."""
        first_pass, first = divmod(segment, segments)
        buffers = filling.Buffers(self.manifest)
        for number in itertools.count(first_pass):
            if stopped.is_set():
                return
            words = np.random.SeedSequence([self.manifest.seed, seed, number]).generate_state(1)
            manifest = dataclasses.replace(self.manifest, seed=int(words[0]))
            indices = range(first if number == first_pass else 0, segments)
            for filled in filling.filled_segments(
                self._model,
                self._sequences,
                manifest,
                indices,
                mesh=self._mesh,
                buffers=buffers,
                progress=lambda steps, **_: itertools.takewhile(lambda _: not stopped.is_set(), steps),
            ):
                yield manifest, filled
