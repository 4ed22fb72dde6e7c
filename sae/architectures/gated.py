"""The gated autoencoder while it trains: one encoder with two scales says whether a latent fires, and how much (arXiv
2404.16014, section 3)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sae import autoencoder
from sae import gated as released
from sae.architectures.base import Architecture, Encoded, counts, register
from sae.initialisation import Initialisation
from sae.parts import Sizes


class Params(NamedTuple):
    """Trained parameters; a pytree. b_dec is subtracted before the encoder, except for transcoders."""

    W_enc: jax.Array  # [A, Z], the encoder of the gates
    b_gate: jax.Array  # [Z]
    r_mag: jax.Array  # [Z]; W_enc exp(r_mag) is the encoder of the magnitudes
    b_mag: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    W_skip: jax.Array | None = None  # always None


@register("gated")
@dataclasses.dataclass(frozen=True)
class Gated(Architecture):
    """Gated latents, for a sparsity term `sae.sparsity.L1`. The released form is a `sae.Gated`, or a JumpReLU
    crosscoder for several sites.

    f = max(m, 0) * 1[g > 0] with g = (x - b_dec) W_enc + b_gate and m = (x - b_dec) W_enc exp(r_mag) + b_mag. The L1
    term sums max(g, 0). No gradient of the reconstruction passes the gates. They learn from the penalty and from a
    second reconstruction, of max(g, 0) by a decoder that is held still, whose error is added to the loss.
    """

    l0_gradient: ClassVar[bool] = False

    def init(self, key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation) -> Params:
        W_enc, W_dec = initialisation.draw(key, dims, sizes)
        zeros = [jnp.zeros((sizes.width,), jnp.float32) for _ in range(3)]
        # pyrefly: ignore[bad-argument-count]  as many as are unpacked
        return Params(W_enc, *zeros, W_dec, jnp.zeros((dims[1],), jnp.float32))

    def encode(self, params: Params, x: jax.Array, state: Any, sizes: Sizes) -> Encoded:
        z = x @ params.W_enc
        if not sizes.transcodes:
            z = z - (params.b_dec @ params.W_enc)[None]  # by itself; see `affine.pre_activations`
        gate = z + params.b_gate[None]
        magnitude = z * jnp.exp(params.r_mag)[None] + params.b_mag[None]
        f = jnp.where(gate > 0, jnp.maximum(magnitude, 0.0), 0.0)
        on = f > 0
        return Encoded(f, *counts(on, z.dtype), gate, jnp.zeros((), z.dtype), magnitude=jnp.maximum(gate, 0.0))

    def auxiliary(
        self, params: Params, encoded: Encoded, x: jax.Array, y: jax.Array, state: Any, dead: jax.Array
    ) -> jax.Array:
        W_dec, b_dec = jax.lax.stop_gradient((params.W_dec, params.b_dec))
        # pyrefly: ignore[unsupported-operation]  not None here
        return jnp.square(encoded.magnitude @ W_dec + b_dec[None] - y).sum(axis=-1).mean()

    def release(self, params: Params, state: Any, sizes: Sizes) -> released.Gated | autoencoder.JumpReLU:
        gated = released.Gated(*params[:-1])
        if not sizes.transcodes:
            gated = gated.shifted(params.b_dec)
        return gated if sizes.sites == 1 else gated.jumprelu()
