"""What a store and a stream from the model have in common: sites, and rows of them."""

import abc
from collections.abc import Sequence

import numpy as np

from sae.store.manifest import ROW_FIELDS, Manifest


class Source(abc.ABC):
    """Something with a `manifest` that gives batches of its sites. `name` is what errors call it."""

    manifest: Manifest

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What errors call it."""

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest.sites)

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Tokens of one pass, about."""

    @abc.abstractmethod
    def mean_squared_norm(self, site: str) -> float:
        """E||x||^2, in raw units."""

    @abc.abstractmethod
    def mean(self, site: str) -> np.ndarray:
        """E[x], [A] float64, in raw units."""

    @abc.abstractmethod
    def median_norm(self, site: str) -> float:
        """The median of ||x||, in raw units."""

    @abc.abstractmethod
    def batches(self, batch_size: int, sites: Sequence[str] | None = None, seed: int = 0, start_step: int = 0, **how):
        """Batches {site: [B, A]} without end."""

    def width(self, site: str) -> int:
        """A, the length of a row of a site."""
        self.check_sites([site])
        return int(np.prod(self.manifest.sites[site]))

    def check_sites(self, sites: Sequence[str]) -> None:
        """Raises ValueError unless all of them are there."""
        for site in sites:
            if site not in self.manifest.sites:
                raise ValueError(f"{self.name} has no site {site!r}; it has {', '.join(self.sites)}")

    @abc.abstractmethod
    def batches_per_pass(self, batch_size: int) -> int:
        """Batches in one pass. Raises ValueError for a size that is not possible."""

    def asked(self, batch_size: int, sites: Sequence[str] | None, start_step: int) -> tuple[str, ...]:
        """What batches are to have, checked: the sites, all by default, and fields of rows.

        Raises:
          ValueError: for a site that is not there, a step below 0, or a batch size that is not possible.
        """
        names = tuple(self.sites if sites is None else sites)
        self.check_sites([name for name in names if name not in ROW_FIELDS])
        if start_step < 0:
            raise ValueError(f"start_step counts batches from 0, got {start_step}")
        self.batches_per_pass(batch_size)
        return names
