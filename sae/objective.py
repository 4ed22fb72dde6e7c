"""The loss of a JumpReLU autoencoder while it trains, with the paper's straight-through gradients.

Per token ||x - x^||^2 + penalty(||f||_0), on inputs scaled so that E||x||^2 = 1 (arXiv 2408.05147, section 2.2; the
gradients of the threshold from arXiv 2407.14435, section 3). Axis letters: B tokens, A width, Z latents.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Params(NamedTuple):
    """Trained parameters; a pytree. Unlike the released autoencoder, b_dec is subtracted before the encoder."""

    W_enc: jax.Array  # [A, Z]
    b_enc: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    threshold: jax.Array  # [Z]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def jump_relu(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """z * 1[z > threshold] on [B, Z]. The gradient of z is the hard mask's; the threshold's is -(theta/eps) on the
    window |z - theta| < eps/2, eps being the bandwidth."""
    return jnp.where(z > threshold, z, 0.0)


def _jump_relu_fwd(z, threshold, bandwidth):
    return jump_relu(z, threshold, bandwidth), (z, threshold)


def _jump_relu_bwd(bandwidth, saved, cotangent):
    z, threshold = saved
    window = jnp.abs(z - threshold) < bandwidth / 2
    to_threshold = jnp.where(window, cotangent, 0.0).sum(axis=0) * (-threshold / bandwidth)
    return jnp.where(z > threshold, cotangent, 0.0), to_threshold


jump_relu.defvjp(_jump_relu_fwd, _jump_relu_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def count_active(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """||f||_0: how many of [B, Z] are above their threshold, [B] as float. The threshold's gradient is -(1/eps) on the
    window; z gets none."""
    return (z > threshold).sum(axis=-1).astype(z.dtype)


def _count_active_fwd(z, threshold, bandwidth):
    return count_active(z, threshold, bandwidth), (z, threshold)


def _count_active_bwd(bandwidth, saved, cotangent):
    z, threshold = saved
    window = jnp.abs(z - threshold) < bandwidth / 2
    to_threshold = jnp.where(window, cotangent[:, None], 0.0).sum(axis=0) * (-1.0 / bandwidth)
    return jnp.zeros_like(z), to_threshold


count_active.defvjp(_count_active_fwd, _count_active_bwd)


def penalty(l0: jax.Array, coefficient: jax.Array, target: jax.Array | None) -> jax.Array:
    """The sparsity penalty of each token, [B] -> [B].

    Without a target, lambda * l0 (Gemma Scope). With one, lambda * (l0 - target)^2 / (2 * target) (Gemma Scope 2),
    whose gradient is that of the linear penalty at l0 = 2 * target and turns round below the target.
    """
    if target is None:
        return coefficient * l0
    return coefficient * jnp.square(l0 - target) / (2.0 * target)


def forward(params: Params, x: jax.Array, bandwidth: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scaled activations [B, A] -> reconstruction [B, A], latents [B, Z], active latents per token [B]."""
    # In full float32, also where an accelerator's default is less: a window of width eps has to be met.
    with jax.default_matmul_precision("highest"):
        z = (x - params.b_dec) @ params.W_enc + params.b_enc
        f = jump_relu(z, params.threshold, bandwidth)
        return f @ params.W_dec + params.b_dec, f, count_active(z, params.threshold, bandwidth)


def loss(
    params: Params, x: jax.Array, bandwidth: float, coefficient: jax.Array, target: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss over a batch, and its parts.

    Args:
      params: as trained, float32.
      x: activations [B, A], scaled so that their mean squared norm is 1.
      bandwidth: eps, the width of the window of the straight-through gradients, in scaled units.
      coefficient: lambda, now.
      target: the L0 to aim at, or None for the linear penalty.

    Returns:
      The loss and {"reconstruction", "penalty", "l0"}, all means over the batch.
    """
    reconstruction, _, l0 = forward(params, x, bandwidth)
    error = jnp.square(reconstruction - x).sum(axis=-1).mean()
    sparsity = penalty(l0, coefficient, target).mean()
    return error + sparsity, {"reconstruction": error, "penalty": sparsity, "l0": l0.mean()}
