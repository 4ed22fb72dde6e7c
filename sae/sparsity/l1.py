"""The L1 penalty of ReLU and gated autoencoders (transformer-circuits.pub/2023/monosemantic-features; arXiv
2404.16014)."""

import dataclasses
from typing import ClassVar

import jax

from sae.architectures.base import Encoded
from sae.parts import Number
from sae.sparsity.base import Now, register
from sae.sparsity.lambdas import Following, Warmed


@register("l1")
@dataclasses.dataclass(frozen=True)
class L1(Warmed):
    """lambda times the sum of a token's latents, or of what the architecture has in their place: the gates of a gated
    autoencoder. Decoder rows have unit norm, so that latents cannot shrink at their cost.

    Attributes:
      coefficient: lambda, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
    """

    coefficient: Number = 0.1

    def penalty(self, encoded: Encoded, state: tuple, now: Now, sizes) -> jax.Array:
        return self.strength(state, now.step, sizes) * summed(encoded)


@register("controlled_l1")
@dataclasses.dataclass(frozen=True)
class ControlledL1(Following):
    """The same penalty, with a lambda that a controller moves until the L0 is the target.

    Attributes:
      coefficient: lambda at the start, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      l0_target: the L0 to aim at.
      controller: how fast lambda follows; see `sae.sparsity.lambdas.Aimed`.
    """

    instead: ClassVar[str] = "sae.sparsity.L1"
    coefficient: Number = 0.1

    def penalty(self, encoded: Encoded, state: jax.Array, now: Now, sizes) -> jax.Array:
        return self.strength(state, now.step, sizes) * summed(encoded)


def summed(encoded: Encoded) -> jax.Array:
    """The mean over tokens of what an L1 penalty sums: a scalar."""
    magnitude = encoded.f if encoded.magnitude is None else encoded.magnitude
    return magnitude.sum(axis=1).mean()
