"""The JumpReLU autoencoder while it trains, with the paper's straight-through gradients.

f = z * 1[z > theta] on activations scaled so that their mean squared norm is 1 (arXiv 2408.05147, section 2.2; the
gradients of the threshold from arXiv 2407.14435, section 3). Axis letters: B tokens, A dim of the activation (of all
sites joined, for a crosscoder), Z latents.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae import autoencoder as released
from sae.architectures.affine import Affine, pre_activations, released_bias
from sae.architectures.base import Encoded, counts, register
from sae.initialisation import Initialisation
from sae.parts import Course, Number, Sizes


class Params(NamedTuple):
    """Trained parameters; a pytree. Unlike in the released autoencoder, b_dec is subtracted before the encoder, except
    for transcoders, whose output is at another site."""

    W_enc: jax.Array  # [A, Z]
    b_enc: jax.Array  # [Z]
    W_dec: jax.Array  # [Z, A], rows of unit norm
    b_dec: jax.Array  # [A]
    threshold: jax.Array  # [Z], theta, or log(theta)
    W_skip: jax.Array | None = None  # [A, A], the dims of the input and the output


@register("jumprelu")
@dataclasses.dataclass(frozen=True)
class JumpReLU(Affine):
    """Latents above thresholds, one for each latent; the defaults are Gemma Scope's. The released form is a
    `sae.JumpReLU`.

    Attributes:
        skip: whether a transcoder has an affine skip.
        log_threshold: whether to train log(theta), as the paper does, or theta itself.
        bandwidth: eps of the straight-through gradients, in scaled units.
        threshold_init: theta at the start, in scaled units.
        threshold_learning_rate: the learning rate of the threshold.
    """

    skip: bool = False
    log_threshold: bool = True
    bandwidth: float = 1e-3
    threshold_init: float = 1e-3
    threshold_learning_rate: Number = 7e-5

    def check(self) -> None:
        self._positive("bandwidth", "threshold_init", "threshold_learning_rate")

    def init(self, key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation) -> Params:
        threshold = jnp.full((sizes.width,), self.threshold_init, jnp.float32)
        shared = super().init(key, dims, sizes, initialisation)
        return Params(threshold=jnp.log(threshold) if self.log_threshold else threshold, **shared._asdict())

    def theta(self, params: Params) -> jax.Array:
        """Returns the thresholds theta [Z]."""
        return jnp.exp(params.threshold) if self.log_threshold else params.threshold

    def encode(self, params: Params, x: jax.Array, state: tuple, sizes: Sizes) -> Encoded:
        z, theta = pre_activations(params, x, sizes), self.theta(params)
        f, l0, fired = activate(z, theta, self.bandwidth)
        window = (jnp.abs(z - theta[None]) < self.bandwidth / 2).mean(dtype=jnp.float32)
        return Encoded(f, l0, fired, z, theta, measures={"window": jax.lax.stop_gradient(window)})

    def project(self, params: Params) -> Params:
        params = super().project(params)
        if self.log_threshold:
            return params
        return params._replace(threshold=jnp.maximum(params.threshold, 0.0))

    def learning_rates(self) -> dict[str, jax.Array | float]:
        return {"threshold": self.threshold_learning_rate}

    def records(self, params: Params, state: tuple, sizes: Sizes) -> dict[str, jax.Array]:
        theta = self.theta(params)
        # log(0) is no number: a theta of 0 counts as moved by a factor of a thousand.
        moved = jnp.abs(jnp.log(jnp.maximum(theta / self.threshold_init, 1e-3)))
        return {"threshold_mean": theta.mean(), "threshold_moved": moved.mean()}

    def warnings(self, course: Course) -> dict[str, str]:
        last, messages = course.last, {}
        if last["threshold_moved"] < 0.01:
            messages["thresholds"] = (
                f"the thresholds have moved by {last['threshold_moved']:.2%} on average since the start: with a "
                f"learning rate of {self.threshold_learning_rate:g} they cannot adapt in {course.sizes.steps} steps. "
                "Raise threshold_learning_rate, or use the recipe short_run"
            )
        if last["window"] < 1e-6:
            messages["window"] = (
                f"no pre-activations lie within the bandwidth {self.bandwidth:g} of their thresholds, so these get no "
                "gradient: raise bandwidth"
            )
        return messages

    def release(self, params: Params, state: tuple, sizes: Sizes) -> released.JumpReLU:
        b_enc = released_bias(params, sizes)
        return released.JumpReLU(params.W_enc, b_enc, params.W_dec, params.b_dec, self.theta(params), params.W_skip)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def activate(z: jax.Array, threshold: jax.Array, bandwidth: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns latents f = z * 1[z > theta] [B, Z], ||f||_0 [B], and the part of the tokens on which each latent is
    active [Z], for pre-activations z [B, Z].

    With eps the bandwidth, on the window |z - theta| < eps/2 the threshold has the gradient -(theta/eps) through f and
    -(1/eps) through each 1[z > theta] that is counted. z has the hard mask's gradient through f, and none through the
    counts.
    """
    on = z > threshold[None]
    return jnp.where(on, z, 0.0), *counts(on, z.dtype)


def _activate_fwd(z, threshold, bandwidth):
    return activate(z, threshold, bandwidth), (z, threshold)


def _activate_bwd(bandwidth, saved, cotangents):
    z, threshold = saved[0], saved[1][None]
    to_f, to_l0, to_fired = cotangents
    counted = to_l0[:, None] + (to_fired / len(z))[None]
    window = jnp.abs(z - threshold) < bandwidth / 2
    to_threshold = jnp.where(window, to_f * threshold + counted, 0.0).sum(axis=0) * (-1.0 / bandwidth)
    return jnp.where(z > threshold, to_f, 0.0), to_threshold


activate.defvjp(_activate_fwd, _activate_bwd)
