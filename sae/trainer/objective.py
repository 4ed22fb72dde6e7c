"""The loss of a JumpReLU autoencoder while it trains, with the paper's straight-through gradients.

Per token ||y - y^||^2 + penalty(||f||_0), on activations scaled so that their mean squared norm is 1 (arXiv 2408.05147,
section 2.2; the gradients of the threshold from arXiv 2407.14435, section 3). y is x itself but for transcoders. Axis
letters: B tokens, A width of the activation (of all sites joined, for a crosscoder), Z latents.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae.recipes import BANDS, TrainConfig


class Params(NamedTuple):
    """Trained parameters; a pytree. Unlike the released autoencoder, b_dec is subtracted before the encoder, but for
    transcoders, whose output lives elsewhere."""

    W_enc: jax.Array  # [A, Z]
    b_enc: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    threshold: jax.Array  # [Z], theta itself in this module
    W_skip: jax.Array | None = None  # [A, A], of the width that goes in and the one that comes out


class Pressure(NamedTuple):
    """How hard the loss presses, now: float32 scalars, and which latents are dead [Z] (only for `revival`)."""

    coefficient: jax.Array
    l0_target: jax.Array
    frequency: jax.Array
    dead: jax.Array | None = None


class Parts(NamedTuple):
    """What the loss is made of, and what came up on the way. Means over the batch where not said otherwise."""

    reconstruction: jax.Array  # of ||y - y^||^2, with all latents
    penalty: jax.Array  # of the sparsity penalty, and what frequent and dead latents add
    l0: jax.Array  # [B]
    fired: jax.Array  # [Z], the share of tokens on which each latent is active
    window: jax.Array  # [], the share of pre-activations that have a straight-through gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def activate(z: jax.Array, threshold: jax.Array, bandwidth: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pre-activations [B, Z] -> latents f = z * 1[z > theta] [B, Z]; ||f||_0 [B]; the share of tokens on which each
    latent is active [Z].

    With eps the bandwidth, on the window |z - theta| < eps/2 the threshold has the gradient -(theta/eps) through f and
    -(1/eps) through each 1[z > theta] that is counted. z has the hard mask's through f, and none through the counts.
    """
    on = z > threshold
    return jnp.where(on, z, 0.0), on.sum(axis=1).astype(z.dtype), on.mean(axis=0, dtype=z.dtype)


def _activate_fwd(z, threshold, bandwidth):
    return activate(z, threshold, bandwidth), (z, threshold)


def _activate_bwd(bandwidth, saved, cotangents):
    z, threshold = saved
    to_f, to_l0, to_fired = cotangents
    counted = to_l0[:, None] + to_fired / len(z)
    window = jnp.abs(z - threshold) < bandwidth / 2
    to_threshold = jnp.where(window, to_f * threshold + counted, 0.0).sum(axis=0) * (-1.0 / bandwidth)
    return jnp.where(z > threshold, to_f, 0.0), to_threshold


activate.defvjp(_activate_fwd, _activate_bwd)


def penalty(l0: jax.Array, config: TrainConfig, pressure: Pressure) -> jax.Array:
    """The sparsity penalty of each token, [B] -> [B]: lambda * l0 (Gemma Scope), or lambda * (l0 - target)^2 /
    (2 * target) (Gemma Scope 2), whose gradient is that of the linear penalty at l0 = 2 * target and turns round below
    the target."""
    if config.penalty == "linear":
        return pressure.coefficient * l0
    return pressure.coefficient * jnp.square(l0 - pressure.l0_target) / (2.0 * pressure.l0_target)


def encode(params: Params, x: jax.Array, config: TrainConfig) -> jax.Array:
    """Scaled activations [B, A] -> pre-activations z = (x - b_dec) W_enc + b_enc [B, Z]."""
    # b_dec by itself, so that its gradient is a product with one row and not with the whole batch: a sixth of a step.
    bias = params.b_enc if config.transcodes else params.b_enc - params.b_dec @ params.W_enc
    return x @ params.W_enc + bias


def errors(params: Params, f: jax.Array, x: jax.Array, y: jax.Array, config: TrainConfig) -> tuple[jax.Array, ...]:
    """Mean squared errors of the reconstruction from all latents, and from each Matryoshka prefix of them."""
    base = params.b_dec if params.W_skip is None else x @ params.W_skip + params.b_dec

    def error(partial):
        return jnp.square(partial + base - y).sum(axis=-1).mean()

    if not config.matryoshka:
        return (error(f @ params.W_dec),)
    # Latent z belongs to band z % BANDS while it trains, so that each part of a mesh has as many of each band;
    # `release` sorts them, and prefixes become prefixes.
    f = f.reshape(len(f), -1, BANDS)
    W_dec = params.W_dec.reshape(-1, BANDS, y.shape[-1])
    ends = [int(p * BANDS) for p in config.matryoshka] + [BANDS]
    partial, found = 0.0, []
    for start, end in zip([0, *ends], ends, strict=False):
        partial += jnp.einsum("Bzk,zkA->BA", f[:, :, start:end], W_dec[:, start:end])
        found.append(error(partial))
    return (found[-1], *found[:-1])


def loss(
    params: Params, x: jax.Array, y: jax.Array, config: TrainConfig, pressure: Pressure
) -> tuple[jax.Array, Parts]:
    """The mean loss over a batch, and its parts.

    The errors of Matryoshka prefixes and of the whole are averaged, so that lambda keeps its meaning. Frequent latents
    add `pressure.frequency` times the sum over latents of how far their frequency is above the limit; dead ones
    `revival` times their mean distance from firing, summed over latents.

    Args:
      params: as trained, float32, with theta itself.
      x: what goes in [B, A], scaled; y: what is to come out.
      config: static.
      pressure: the coefficients as of now.
    """
    # In full float32 by default, also where an accelerator's default is less: a window of width eps has to be met.
    with jax.default_matmul_precision(config.precision):
        z = encode(params, x, config)
        f, l0, fired = activate(z, params.threshold, config.bandwidth)
        found = errors(params, f, x, y, config)
    sparsity = penalty(l0, config, pressure).mean()
    if config.frequency_coefficient != 0:
        sparsity += pressure.frequency * jax.nn.relu(fired - config.frequency_limit).sum()
    if config.revival:
        distance = jax.nn.relu(params.threshold - z).mean(axis=0)
        sparsity += config.revival * jnp.where(pressure.dead, distance, 0.0).sum()
    window = (jnp.abs(z - params.threshold) < config.bandwidth / 2).mean(dtype=jnp.float32)
    total = sum(found) / len(found) + sparsity
    return total, Parts(found[0], sparsity, l0, fired, jax.lax.stop_gradient(window))
