"""`sae.stream`: batches straight from the model, without a store, for those who lack the disk."""

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
    """Returns a source for `sae.train` that computes its batches, in place of a store.

    Each epoch runs the model over the text again, in another order.

    Args:
        model: with its tokenizer.
        sequences: the token sequences, from `sae.text.cut`.
        sites: names such as `layer_3/resid_post`, or one name.
        seed: as for `sae.harvest`.
        shuffle_rows: as for `sae.harvest`.
        shuffle_bytes: as for `sae.harvest`.
        counted: as for `sae.harvest`.
        mesh: as for `sae.harvest`.

    Returns:
        The source. Nothing is computed before it is read.

    Raises:
        ValueError: as `sae.harvest` does for sites, arguments and text.

    Example:
        >>> source = sae.stream(model, sequences, "layer_1/resid_post")
        >>> batches = source.batches(64)
        >>> next(batches)["layer_1/resid_post"].shape
        (64, 192)
        >>> batches.close()
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
    """Activations of one or more sites over the same rows, computed when they are read. `sae.stream` makes one.

    The statistics are those of the first segment with a row, which is computed for this purpose.

    Attributes:
        manifest: model, tokenizer, sites, units, text, order.
        rows: the number of tokens that count, sinks among them.

    Raises:
        ValueError: where none of the sequences' tokens counts.
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
        """Returns E||x||^2, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["mean_squared_norm"]

    def mean(self, site: str) -> Float64[np.ndarray, " A"]:
        """Returns E[x], float64 [A], in raw units."""
        self.check_sites([site])
        return np.asarray(self._statistics[site]["mean"])

    def median_norm(self, site: str) -> float:
        """Returns the median of ||x||, in raw units."""
        self.check_sites([site])
        return self._statistics[site]["median_norm"]

    def sink_limits(self) -> dict[str, float]:
        """Returns {site: the norm over which a row is a sink}, from the segment of the statistics."""
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
        """Returns the number of rows of a segment, with sinks, in the order that a seed gives the sequences."""
        part = numbers(len(self._text), seed, index, self.manifest.sequences_per_segment)
        return int(self._text[part].sum())

    @property
    def rows(self) -> int:
        """The number of tokens that count, sinks among them."""
        return int(self._text.sum())

    def batches_per_pass(self, batch_size: int) -> int:
        """Returns the number of batches in one epoch. They have every row; the last is filled up with rows of the batch
        before it. Another row of its segment stands in the place of a sink.

        Raises:
            ValueError: where the text has fewer rows than one batch.
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
        """Returns batches as `ActivationStore.batches` does. A late start costs one segment. While a segment is used, a
        thread computes the next; it ends when the batches are closed or dropped.

        Raises:
            ValueError: for a site that is missing, or a batch larger than the text.
        """
        names = self.checked_names(batch_size, sites, start_step)
        return Generated(self._batches(batch_size, names, seed, start_step, sharding))

    def _batches(self, batch_size, names, seed, start_step, sharding) -> Iterator[dict]:
        number, first = divmod(start_step, self.batches_per_pass(batch_size))
        segment, skipped = self._place(self._seed(seed, number), joining.start_of(batch_size, self.rows, first))
        # Two buffers, also for a text of one segment: the next epoch over it is computed while this one is used.
        buffers = filling.Buffers(self.manifest, filling.BUFFERS)
        make = functools.partial(self._filled, seed, number, segment, buffers)
        with Ahead(make, stop=buffers.close, name="stream") as coming:

            def pieces(count: int, skipped: int) -> Iterator[joining.Piece]:
                """Yields the next segments, the first of them without its first rows."""
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
        """Returns the segment with a row of an epoch, and the number of rows of the segment before that row."""
        if not row:
            return 0, 0
        segment = before = 0
        while (rows := self._rows_of(seed, segment)) <= row - before:
            segment, before = segment + 1, before + rows
        return segment, row - before

    def _seed(self, seed: int, number: int) -> int:
        """Returns the seed of an epoch's order, for batches with a seed."""
        return int(np.random.SeedSequence([self.manifest.seed, seed, number]).generate_state(1)[0])

    def _filled(
        self, seed: int, number: int, segment: int, buffers: filling.Buffers, wanted: Callable[[], bool]
    ) -> Iterator[tuple[Manifest, filling.Filled]]:
        """Yields segments without end, from one of epoch `number` on; each epoch has an order of its own."""
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
    """Returns the order of a segment's rows in the epoch. Other rows stand in the places of sinks, so that a place in
    the stream can be computed from the text alone.

    Raises:
        ValueError: for activations that are not finite at the sites where sinks are looked for.
    """
    moments = {site: Moments.of(filled.activations[site]) for site in manifest.counted.sink_sites}
    writing.check_finite(moments, f"segment {filled.index} of the stream")
    rows = len(filled.rows["token"])
    keep = writing.kept_rows(moments, manifest) if moments else np.arange(rows)
    return np.resize(writing.row_order(manifest, filled.index, keep), rows)
