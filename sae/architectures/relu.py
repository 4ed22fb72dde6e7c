"""The ReLU autoencoder while it trains (transformer-circuits.pub/2023/monosemantic-features, appendix; arXiv
2309.08600): f = max(z, 0), made sparse by an L1 penalty, `sae.sparsity.L1`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sae import autoencoder
from sae import relu as released
from sae.architectures.affine import Affine, Params, pre_activations, released_bias
from sae.architectures.base import Encoded, counts, register
from sae.parts import Sizes


@register("relu")
@dataclasses.dataclass(frozen=True)
class ReLU(Affine):
    """Latents above 0, for a sparsity term `sae.sparsity.L1`. The released form is a `sae.ReLU`, or a crosscoder with
    thresholds of 0 for several sites.

    Attributes:
        skip: whether a transcoder has an affine skip.
    """

    l0_gradient: ClassVar[bool] = False
    skip: bool = False

    def encode(self, params: Params, x: jax.Array, state: Any, sizes: Sizes) -> Encoded:
        z = pre_activations(params, x, sizes)
        on = z > 0
        return Encoded(jnp.where(on, z, 0.0), *counts(on, z.dtype), z, jnp.zeros((), z.dtype))

    def release(self, params: Params, state: Any, sizes: Sizes) -> released.ReLU | autoencoder.JumpReLU:
        b_enc = released_bias(params, sizes)
        relu = released.ReLU(params.W_enc, b_enc, params.W_dec, params.b_dec, params.W_skip)
        return relu if sizes.sites == 1 else relu.jumprelu()
