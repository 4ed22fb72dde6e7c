"""What every objective does: errors of a batch, and the order of the latents in what is released."""

import abc
from typing import Any, ClassVar, TypeVar

import jax

from sae.parts import Part
from sae.registry import Registry

OBJECTIVES: Registry = Registry("objective")
register = OBJECTIVES.register
PRECISIONS = ("highest", "high", "default")

T = TypeVar("T")


class Objective(Part, abc.ABC):
    """Which reconstructions of a batch are compared with what is to come out.

    Attributes:
      precision: of the matrix products of the loss, on accelerators.
    """

    registry: ClassVar[Registry] = OBJECTIVES
    precision: str

    def check(self) -> None:
        self._one_of("precision", PRECISIONS)

    @abc.abstractmethod
    def errors(self, params: Any, f: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        """Returns mean squared errors of a batch, scalars: first that of the reconstruction from all latents. The loss
        has their mean, so that lambda keeps its meaning however many there are.

        Args:
          params: of the architecture, with `W_dec`, `b_dec` and `W_skip`.
          f: latents [B, Z]. x: what goes in [B, A_in], scaled. y: what is to come out [B, A_out].
        """

    def release(self, autoencoder: T) -> T:
        """Returns a released autoencoder with its latents in the order that users see."""
        return autoencoder


def base(params: Any, x: jax.Array) -> jax.Array:
    """What a reconstruction is without any latent: [1, A] or [B, A]."""
    b_dec = params.b_dec[None]
    return b_dec if params.W_skip is None else x @ params.W_skip + b_dec
