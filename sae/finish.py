"""The finish of a run: measures of the released autoencoders on the batches after the last step.

Measures from earlier steps would be of other weights.
"""

import abc
import dataclasses
import functools
from fractions import Fraction
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mishax_lite.compiling import jit_program
from sae.autoencoder import Largest, bare
from sae.parts import Part, Sizes, Steps, steps_of
from sae.registry import Registry

FINISHES: Registry = Registry("finish")
register = FINISHES.register

T = TypeVar("T")


class Finish(Part, abc.ABC):
    """A part that sees batches after the last step, and changes the released autoencoder."""

    registry: ClassVar[Registry] = FINISHES

    @abc.abstractmethod
    def batches(self, sizes: Sizes) -> int:
        """Returns the number of batches that it sees."""

    @abc.abstractmethod
    def begin(self, autoencoder) -> Any:
        """Returns its state before the first batch."""

    @abc.abstractmethod
    def see(self, kept: Any, autoencoder, values: tuple[Any, ...], mesh: Mesh) -> Any:
        """Returns its state after a batch.

        Args:
            kept: the state before the batch.
            autoencoder: on raw activations, on the mesh.
            values: raw activations [B, A] of each input site, on the mesh.
            mesh: the run's mesh.
        """

    @abc.abstractmethod
    def end(self, kept: Any, autoencoder: T, sizes: Sizes) -> T:
        """Returns the autoencoder with the measures."""


@register("largest")
@dataclasses.dataclass(frozen=True)
class LargestActivations(Finish):
    """A finish that records the largest activation of each latent, the measure for steering.

    Attributes:
        largest_batches: the number of batches, or a part of the run's. A tenth of them is a fiftieth of the run's work,
            as each takes one product.
        largest_tokens: the most tokens.
    """

    largest_batches: Steps = Fraction(1, 10)
    largest_tokens: int = 2**18

    def check(self) -> None:
        self._positive("largest_batches", "largest_tokens")

    def batches(self, sizes: Sizes) -> int:
        wanted = steps_of(self.largest_batches, sizes.steps)
        return max(1, min(wanted, self.largest_tokens // sizes.batch_size))

    def begin(self, autoencoder) -> np.ndarray:
        return np.zeros(autoencoder.width, np.float32)

    def see(self, kept: Any, autoencoder, values: tuple[Any, ...], mesh: Mesh) -> jax.Array:
        peaks = _peaks(mesh)(bare(autoencoder), values, kept)
        if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
            peaks.block_until_ready()  # collectives in flight starve each other there
        return peaks

    def end(self, kept: jax.Array, autoencoder: Any, sizes: Sizes) -> Any:
        largest = Largest(np.asarray(kept), self.batches(sizes) * sizes.batch_size)
        return dataclasses.replace(autoencoder, largest=largest)


@functools.lru_cache(maxsize=64)
def _peaks(mesh: Mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())

    def peaks(autoencoder, values, so_far):
        x = values[0] if len(values) == 1 else jnp.stack(values, axis=-2)
        return jnp.maximum(so_far, autoencoder.encode(x).max(axis=0))

    return jit_program(peaks, program="other", out_shardings=everywhere)
