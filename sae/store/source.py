"""The base of all sources of training, such as a store and a stream from the model: sites, and rows of them."""

import abc
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float64

from sae.counted import Counted
from sae.store.manifest import ROW_FIELDS, Manifest, whole
from sae.store.order import Pass


class Batches(Iterator[Mapping[str, np.ndarray | jax.Array]], abc.ABC):
    """Batches {site: [B, A]} without end.

    Attributes:
        passes: the segments that the epochs of a growing store have gone over so far, which a checkpoint keeps; empty
            for a source with a fixed order.
    """

    passes: Sequence[Pass] = ()

    @abc.abstractmethod
    def close(self) -> None:
        """Stops reading or computing ahead."""


class Generated(Batches):
    """The batches of a generator, in a fixed order."""

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray | jax.Array]]):
        self._batches = batches

    def __next__(self) -> Mapping[str, np.ndarray | jax.Array]:
        return next(self._batches)

    def close(self) -> None:
        # pyrefly: ignore[missing-attribute]  a generator
        self._batches.close()


class Source(abc.ABC):
    """A source of training: it has a `manifest` and gives batches of its sites.

    Attributes:
        manifest: model, tokenizer, sites, units, text, order.
        kind: "store", "stream" or "rows".
        batch_order: a number that changes whenever other rows become the batch of a step, so that an older run does not
            go on in another order.
        growing: whether rows are still being added; means, scales and limits of sinks are those of the rows so far.
    """

    manifest: Manifest
    kind: str
    batch_order: int
    growing: bool = False

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The source's name in errors."""

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest.sites)

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Rows of one epoch."""

    @abc.abstractmethod
    def mean_squared_norm(self, site: str) -> float:
        """Returns E||x||^2, in raw units."""

    @abc.abstractmethod
    def mean(self, site: str) -> Float64[np.ndarray, " A"]:
        """Returns E[x], float64 [A], in raw units."""

    @abc.abstractmethod
    def median_norm(self, site: str) -> float:
        """Returns the median of ||x||, in raw units."""

    @abc.abstractmethod
    def sink_limits(self) -> dict[str, float]:
        """Returns {site: the norm, in raw units, over which a token was left out as an attention sink}; empty without
        sinks."""

    @property
    def counted(self) -> Counted:
        """The rule of the tokens that have rows, with the limits of sinks. Evaluation by it leaves out the tokens that
        training left out."""
        return self.manifest.counted.with_limits(self.sink_limits())

    @abc.abstractmethod
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
        """Returns batches {site: [B, A]} without end, from a step on.

        Args:
            batch_size: B, rows of a batch.
            sites: the sites; all by default.
            seed: decides the order.
            start_step: the step whose batch comes first.
            sharding: where batches are placed; None for numpy's arrays.
            passes: for a growing source, `Batches.passes` as they were at `start_step`.
        """

    def width(self, site: str) -> int:
        """Returns A, the length of a row of a site."""
        self.check_sites([site])
        return int(np.prod(self.manifest.sites[site]))

    def check_sites(self, sites: Sequence[str]) -> None:
        """Raises ValueError for a site that the source lacks."""
        for site in sites:
            if site not in self.manifest.sites:
                raise ValueError(f"{self.name} has no site {site!r}; it has {', '.join(self.sites)}")

    @abc.abstractmethod
    def batches_per_pass(self, batch_size: int) -> int:
        """Returns the number of batches in one epoch, which have every row.

        Raises:
            ValueError: for a size that is not possible.
        """

    def checked_names(self, batch_size: int, sites: Sequence[str] | None, start_step: int) -> tuple[str, ...]:
        """Checks the arguments of `batches`, and returns the names of its arrays: sites, all by default, and fields of
        rows.

        Raises:
            ValueError: for a site that the source lacks, a step below 0, or a batch size that is not possible.
        """
        names = tuple(self.sites if sites is None else sites)
        self.check_sites([name for name in names if name not in ROW_FIELDS])
        for name, number in (("batch_size", batch_size), ("start_step", start_step)):
            whole(name, number)
        if start_step < 0:
            raise ValueError(f"start_step counts batches from 0, got {start_step}")
        self.batches_per_pass(batch_size)
        return names
