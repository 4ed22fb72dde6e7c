"""What architectures share whose latents come of z = (x - b_dec) W_enc + b_enc alone: parameters, their start, and the
loss that lets dead latents explain what the others leave over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae.initialisation import Initialisation
from sae.objectives.base import base
from sae.parts import Sizes
from sae.topk import keep_largest


class Params(NamedTuple):
    """Trained parameters; a pytree. b_dec is subtracted before the encoder, but for transcoders."""

    W_enc: jax.Array  # [A, Z]
    b_enc: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    W_skip: jax.Array | None = None  # [A, A], of the width that goes in and the one that comes out


def begin(
    key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation, skip: bool = False
) -> Params:
    """Returns the parameters at the start; biases and the skip are zero."""
    W_enc, W_dec = initialisation.draw(key, dims, sizes)
    zeros = jnp.zeros((sizes.width,), jnp.float32), jnp.zeros((dims[1],), jnp.float32)
    return Params(W_enc, zeros[0], W_dec, zeros[1], jnp.zeros(dims, jnp.float32) if skip else None)


def check_skip(name: str, skip: bool, sizes: Sizes) -> None:
    """Raises ValueError for a skip in an autoencoder."""
    if skip and not sizes.transcodes:
        raise ValueError(f"{name}: skip is for transcoders; an autoencoder could pass its input through it")


def explained_by_dead(
    params: NamedTuple, f: jax.Array, z: jax.Array, x: jax.Array, y: jax.Array, dead: jax.Array, k: int
) -> jax.Array:
    """Returns AuxK, a scalar: ||e - e^||^2 a token (arXiv 2406.04093, appendix A.2), where e = y - y^ is held still and
    e^ is made of the k largest dead latents; 0 where no latent is dead.

    Args:
      params: with `W_dec`, `b_dec` and `W_skip`. f: latents [B, Z]. z: pre-activations [B, Z].
      x: what goes in [B, A]. y: what is to come out [B, A]. dead: bool [Z].
      k: at most so many dead latents a token.
    """

    def explained() -> jax.Array:
        error = jax.lax.stop_gradient(y - f @ params.W_dec - base(params, x))
        positive = jnp.where(dead, jnp.maximum(z, 0.0), 0.0)
        kept = keep_largest(jax.lax.stop_gradient(positive), min(k, z.shape[-1])) > 0
        return jnp.square(error - jnp.where(kept, z, 0.0) @ params.W_dec).sum(axis=-1).mean()

    # Most steps of most runs have no dead latent, and the product with W_dec is a fifth of a step.
    return jax.lax.cond(dead.any(), explained, lambda: jnp.zeros((), z.dtype))
