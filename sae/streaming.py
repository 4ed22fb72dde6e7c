"""`sae.stream`: the batches of a store that is never written, straight from the model, for those who cannot store."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from sae import filling, harvesting
from sae.ahead import Ahead
from sae.counted import Counted
from sae.language_model import LanguageModel
from sae.store import joining, writing
from sae.store.manifest import Manifest
from sae.store.moments import Moments
from sae.store.order import Pass
from sae.store.source import Batches, Generated, Source
from sae.text import Sequences
from sae.text.pipeline import numbers


def stream(
    model: LanguageModel,
    sequences: Sequences,
    sites: str | Sequence[str],
    *,
    seed: int = 0,
    shuffle_rows: int = harvesting.SHUFFLE_ROWS,
    shuffle_bytes: int = harvesting.SHUFFLE_BYTES,
    counted: Counted | None = None,
    mesh: Mesh | None = None,
) -> "ActivationStream":
    """What `sae.train` reads in place of a store. The arguments are those of `sae.harvest`.

    Each epoch runs the model over the text again, in another order.

    Raises:
      ValueError: as `sae.harvest` does for sites, arguments and text.
    """
    manifest = harvesting.plan(
        model,
        sequences,
        sites,
        seed=seed,
        shuffle_rows=shuffle_rows,
        shuffle_bytes=shuffle_bytes,
        counted=counted,
    )
    return ActivationStream(model, sequences, manifest, mesh)


class ActivationStream(Source):
    """Activations of one or more sites over the same rows, computed when they are asked for. `sae.stream` makes one.

    The statistics are those of the first segment with a row, which is computed for them.

    Attributes:
      manifest: model, tokenizer, sites, units, text, order.
      rows: text tokens of the sequences, sinks among them.

    Raises:
      ValueError: when none of the sequences' tokens counts.
    """

    kind = "stream"
    batch_order = 2  # 1 left out the last rows of each segment, and the last segment where it was shorter

    def __init__(self, model: LanguageModel, sequences: Sequences, manifest: Manifest, mesh: Mesh | None):
        self.manifest = manifest
        self._model, self._sequences, self._mesh = model, sequences, mesh
        self._text = harvesting.text_tokens(sequences, manifest)  # [S] rows of each sequence

    def __repr__(self) -> str:
        return f"ActivationStream({self._sequences.size} at {self.manifest.label})"

    @property
    def name(self) -> str:
        return "the stream"

    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["mean_squared_norm"]

    def mean(self, site: str) -> Float64[np.ndarray, " A"]:
        """E[x], [A] float64, in raw units."""
        self.check_sites([site])
        return np.asarray(self._statistics[site]["mean"])

    def median_norm(self, site: str) -> float:
        """The median of ||x||, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["median_norm"]

    def sink_limits(self) -> dict[str, float]:
        """{site: the norm over which a row is a sink}, of the segment that the statistics are of."""
        return {site: self._statistics[site]["sink_limit"] for site in self.manifest.counted.sink_sites}

    @functools.cached_property
    def _statistics(self) -> dict[str, dict]:
        first = next(i for i in range(self.manifest.segments) if self._rows_of(self.manifest.seed, i))
        filled = next(filling.filled_segments(self._model, self._sequences, self.manifest, [first], mesh=self._mesh))
        moments = {site: Moments.of(x) for site, x in filled.activations.items()}
        writing.check_finite(moments, f"segment {first} of the stream")
        keep, limits = writing.kept_rows(moments, self.manifest), writing.sink_limits(moments, self.manifest)
        return {
            site: sums.statistics(filled.activations[site], keep) | {"sink_limit": limits.get(site)}
            for site, sums in moments.items()
        }

    def _rows_of(self, seed: int, index: int) -> int:
        """Rows of a segment, sinks among them, in the order that a seed gives the sequences."""
        part = numbers(len(self._text), seed, index, self.manifest.sequences_per_segment)
        return int(self._text[part].sum())

    @property
    def rows(self) -> int:
        """Text tokens of the sequences, sinks among them."""
        return int(self._text.sum())

    def batches_per_pass(self, batch_size: int) -> int:
        """Batches in one epoch. They have every row; the last is filled up with rows of the one before it. In the place
        of a sink stands another row of its segment.

        Raises:
          ValueError: when the text has fewer rows than one batch.
        """
        if not 1 <= batch_size <= self.rows:
            raise ValueError(f"batch_size must be from 1 to the stream's {self.rows} rows, got {batch_size}")
        return -(-self.rows // batch_size)

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
        """As `ActivationStore.batches`; to begin late costs one segment. While a segment is used, a thread computes
        the next; it ends when the batches are closed or dropped.

        Raises:
          ValueError: for a site that is missing, or a batch larger than the text.
        """
        names = self.asked(batch_size, sites, start_step)
        return Generated(self._batches(batch_size, names, seed, start_step, sharding))

    def _batches(self, batch_size, names, seed, start_step, sharding) -> Iterator[dict]:
        number, first = divmod(start_step, self.batches_per_pass(batch_size))
        segment, skipped = self._place(self._seed(seed, number), joining.start_of(batch_size, self.rows, first))
        # Two, also where the text makes one segment: the next epoch over it is computed while this one is used.
        buffers = filling.Buffers(self.manifest, filling.BUFFERS)
        make = functools.partial(self._filled, seed, number, segment, buffers)
        with Ahead(make, stop=buffers.close, name="stream") as coming:

            def pieces(count: int, skipped: int) -> Iterator[joining.Piece]:
                """The next segments, the first of them without its first rows."""
                for _ in range(count):
                    manifest, now = next(coming)
                    values = now.activations | now.rows
                    yield {name: values[name] for name in names}, _order(manifest, now)[skipped:]
                    skipped = 0
                    now.release()

            while True:
                some = pieces(self.manifest.segments - segment, skipped)
                for batch in joining.batches_of(some, batch_size, self.rows, first):
                    yield batch if sharding is None else jax.device_put(batch, sharding)
                segment = skipped = first = 0

    def _place(self, seed: int, row: int) -> tuple[int, int]:
        """The segment that has a row of an epoch, and how many rows of the segment come before it."""
        if not row:
            return 0, 0
        segment = before = 0
        while (rows := self._rows_of(seed, segment)) <= row - before:
            segment, before = segment + 1, before + rows
        return segment, row - before

    def _seed(self, seed: int, number: int) -> int:
        """Of an epoch's order, for batches with a seed."""
        return int(np.random.SeedSequence([self.manifest.seed, seed, number]).generate_state(1)[0])

    def _filled(
        self, seed: int, number: int, segment: int, buffers: filling.Buffers, wanted: Callable[[], bool]
    ) -> Iterator[tuple[Manifest, filling.Filled]]:
        """Segments without end, from one of epoch `number` on, epoch after epoch, each in an order of its own."""
        for epoch in itertools.count(number):
            if not wanted():
                return
            manifest = dataclasses.replace(self.manifest, seed=self._seed(seed, epoch))
            for filled in filling.filled_segments(
                self._model,
                self._sequences,
                manifest,
                range(segment if epoch == number else 0, manifest.segments),
                mesh=self._mesh,
                buffers=buffers,
                progress=lambda steps, **_: itertools.takewhile(lambda _: wanted(), steps),
            ):
                yield manifest, filled


def _order(manifest: Manifest, filled: filling.Filled) -> np.ndarray:
    """The rows of a segment in the epoch's order, as many as the text has: other rows stand in the places of sinks, so
    that a place in the stream can be computed from the text alone.

    Raises:
      ValueError: for activations that are not finite, as far as sinks are looked for.
    """
    moments = {site: Moments.of(filled.activations[site]) for site in manifest.counted.sink_sites}
    writing.check_finite(moments, f"segment {filled.index} of the stream")
    rows = len(filled.rows["token"])
    keep = writing.kept_rows(moments, manifest) if moments else np.arange(rows)
    return np.resize(writing.row_order(manifest, filled.index, keep), rows)
