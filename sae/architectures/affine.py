"""The base of architectures whose latents depend on z = (x - b_dec) W_enc + b_enc alone: parameters, their start, and
the loss by which dead latents explain the error of the others."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sae.architectures.base import Architecture, Encoded
from sae.initialisation import Initialisation
from sae.objectives.base import base
from sae.parts import Number, Sizes
from sae.topk import keep_largest


class Params(NamedTuple):
    """Trained parameters; a pytree. b_dec is subtracted before the encoder, except for transcoders."""

    W_enc: jax.Array  # [A, Z]
    b_enc: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    W_skip: jax.Array | None = None  # [A, A], the dims of the input and the output


class Affine(Architecture):
    """An architecture with these parameters alone; one with more adds them in `init`.

    Attributes:
        skip: whether a transcoder has an affine skip; a subclass without this field has none.
    """

    skip: bool = False

    def check_sizes(self, sizes: Sizes) -> None:
        if self.skip and not sizes.transcodes:
            name = type(self).__name__
            raise ValueError(f"{name}: skip is for transcoders, as an autoencoder could pass its input through it")

    def init(self, key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation) -> NamedTuple:
        W_enc, W_dec = initialisation.draw(key, dims, sizes)
        zeros = jnp.zeros((sizes.width,), jnp.float32), jnp.zeros((dims[1],), jnp.float32)
        return Params(W_enc, zeros[0], W_dec, zeros[1], jnp.zeros(dims, jnp.float32) if self.skip else None)


class KeepsLargest(Affine):
    """An architecture that keeps k latents of a token, and revives dead latents by AuxK.

    Attributes:
        k: the number of latents of a token.
        aux_k: the number of dead latents of a token that explain the error of the others.
        aux_coefficient: the coefficient of AuxK; 0 turns it off.
    """

    l0_gradient: ClassVar[bool] = False
    aim: ClassVar[str | None] = "k"
    k: float
    aux_k: int
    aux_coefficient: Number

    def check(self) -> None:
        self._positive("k", "aux_k")
        self._not_negative("aux_coefficient")

    def check_sizes(self, sizes: Sizes) -> None:
        super().check_sizes(sizes)
        if self.k > sizes.width:
            raise ValueError(f"{type(self).__name__}: k is at most the width {sizes.width}, got {self.k}")

    def auxiliary(
        self, params: Params, encoded: Encoded, x: jax.Array, y: jax.Array, state: Any, dead: jax.Array
    ) -> jax.Array:
        return self.aux_coefficient * explained_by_dead(params, encoded.f, encoded.z, x, y, dead, self.aux_k)


def pre_activations(params, x: jax.Array, sizes: Sizes) -> jax.Array:
    """Returns z = (x - b_dec) W_enc + b_enc [B, Z] for scaled activations x [B, A]; for transcoders x is not
    shifted."""
    # b_dec by itself, so that its gradient is a product with one row and not with the whole batch: a sixth of a step.
    return x @ params.W_enc + released_bias(params, sizes)[None]


def released_bias(params, sizes: Sizes) -> jax.Array:
    """Returns b_enc [Z] of an encoder before which b_dec is not subtracted."""
    return params.b_enc if sizes.transcodes else params.b_enc - params.b_dec @ params.W_enc


def explained_by_dead(
    params: Any, f: jax.Array, z: jax.Array, x: jax.Array, y: jax.Array, dead: jax.Array, k: int
) -> jax.Array:
    """Returns AuxK, a scalar: ||e - e^||^2 per token (arXiv 2406.04093, appendix A.2), where e = y - y^ is held still
    and e^ is the reconstruction from the k largest dead latents; 0 where no latent is dead.

    Args:
        params: with `W_dec`, `b_dec` and `W_skip`.
        f: latents [B, Z].
        z: pre-activations [B, Z].
        x: scaled inputs [B, A].
        y: the values to reconstruct [B, A].
        dead: bool [Z].
        k: the most dead latents of a token.
    """

    def explained() -> jax.Array:
        error = jax.lax.stop_gradient(y - f @ params.W_dec - base(params, x))
        positive = jnp.where(dead, jnp.maximum(z, 0.0), 0.0)
        # Most steps with dead latents have fewer than k of them, and the search for the k largest is a quarter of a
        # step.
        kept = jax.lax.cond(
            dead.sum() <= k,
            lambda positive: positive > 0,
            lambda positive: keep_largest(positive, min(k, z.shape[-1])) > 0,
            jax.lax.stop_gradient(positive),
        )
        return jnp.square(error - jnp.where(kept, z, 0.0) @ params.W_dec).sum(axis=-1).mean()

    # Most steps of most runs have no dead latent, and the product with W_dec is a fifth of a step.
    return jax.lax.cond(dead.any(), explained, lambda: jnp.zeros((), z.dtype))
