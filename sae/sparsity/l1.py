"""The L1 penalty of ReLU and gated autoencoders (transformer-circuits.pub/2023/monosemantic-features; arXiv
2404.16014)."""

import dataclasses

import jax

from sae.architectures.base import Encoded
from sae.parts import Number
from sae.sparsity.base import Now, register
from sae.sparsity.lambdas import Warmed


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
        magnitude = encoded.f if encoded.magnitude is None else encoded.magnitude
        return self.strength(state, now.step, sizes) * magnitude.sum(axis=1).mean()
