"""The TopK autoencoder while it trains: a token keeps its k largest latents (arXiv 2406.04093, section 2.3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sae import topk as released
from sae.architectures.affine import KeepsLargest, Params, pre_activations, released_bias
from sae.architectures.base import Encoded, counts, register
from sae.parts import Number, Sizes


@register("topk")
@dataclasses.dataclass(frozen=True)
class TopK(KeepsLargest):
    """The k largest latents of a token, where they are above 0. It needs no sparsity term: give the run `sparsity=()`.
    The released form is a `sae.TopK`.

    AuxK revives dead latents: they explain the error that the others leave (arXiv 2406.04093, appendix A.2). Unlike
    there, decoder rows are kept at unit norm by projection.

    Attributes:
        k: the number of latents of a token.
        skip: whether a transcoder has an affine skip.
        aux_k: the number of dead latents of a token that explain the error of the others.
        aux_coefficient: the coefficient of AuxK; 0 turns it off.
    """

    k: int = 64
    skip: bool = False
    aux_k: int = 512
    aux_coefficient: Number = 1 / 32

    def check_sizes(self, sizes: Sizes) -> None:
        super().check_sizes(sizes)
        if sizes.sites > 1:
            raise ValueError("TopK: a crosscoder has a threshold for each latent: take BatchTopK, or one site")

    def encode(self, params: Params, x: jax.Array, state: Any, sizes: Sizes) -> Encoded:
        z = pre_activations(params, x, sizes)
        largest = released.keep_largest(jnp.maximum(jax.lax.stop_gradient(z), 0.0), self.k)
        on = largest > 0
        # The smallest latent that is kept differs between tokens: the history and revival take its mean.
        smallest = jnp.where(on, largest, jnp.inf).min(axis=1)
        threshold = jnp.where(jnp.isfinite(smallest), smallest, 0.0).mean()
        return Encoded(jnp.where(on, z, 0.0), *counts(on, z.dtype), z, threshold)

    def release(self, params: Params, state: Any, sizes: Sizes) -> released.TopK:
        b_enc = released_bias(params, sizes)
        return released.TopK(params.W_enc, b_enc, params.W_dec, params.b_dec, self.k, params.W_skip)
