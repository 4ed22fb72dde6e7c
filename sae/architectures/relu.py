"""The ReLU autoencoder while it trains (transformer-circuits.pub/2023/monosemantic-features, appendix; arXiv
2309.08600): f = max(z, 0), made sparse by an L1 penalty, `sae.sparsity.L1`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sae import autoencoder
from sae import relu as released
from sae.architectures import affine
from sae.architectures.base import Architecture, Encoded, register
from sae.architectures.jumprelu import pre_activations, released_bias
from sae.initialisation import Initialisation
from sae.parts import Sizes


@register("relu")
@dataclasses.dataclass(frozen=True)
class ReLU(Architecture):
    """Latents above 0, for a sparsity term `sae.sparsity.L1`. Released as a `sae.ReLU`; of several sites, as a
    crosscoder with thresholds of 0.

    Attributes:
      skip: a transcoder has an affine skip.
    """

    l0_gradient: ClassVar[bool] = False
    skip: bool = False

    def check_sizes(self, sizes: Sizes) -> None:
        affine.check_skip("ReLU", self.skip, sizes)

    def init(
        self, key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation
    ) -> affine.Params:
        return affine.begin(key, dims, sizes, initialisation, self.skip)

    def encode(self, params: affine.Params, x: jax.Array, state: Any, sizes: Sizes) -> Encoded:
        z = pre_activations(params, x, sizes)
        on = z > 0
        l0, fired = on.sum(axis=1).astype(z.dtype), on.mean(axis=0, dtype=z.dtype)
        return Encoded(jnp.where(on, z, 0.0), l0, fired, z, jnp.zeros((), z.dtype))

    def release(self, params: affine.Params, state: Any, sizes: Sizes) -> released.ReLU | autoencoder.JumpReLU:
        b_enc = released_bias(params, sizes)
        relu = released.ReLU(params.W_enc, b_enc, params.W_dec, params.b_dec, params.W_skip)
        return relu if sizes.sites == 1 else relu.jumprelu()
