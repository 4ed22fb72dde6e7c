"""What changes with the step: learning rates, lambda; and the optimiser that they drive. All but `knobs` take configs
with a number in every field (`TrainConfig.resolve`)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sae.recipes import TrainConfig
from sae.trainer.objective import Params

_FURTHEST = math.log(1000.0)


class Knobs(NamedTuple):
    """Numbers that runs with one compiled step may differ in; float32 scalars, named as in `TrainConfig`."""

    coefficient: jax.Array
    l0_target: jax.Array  # 1 where there is none, and then without effect
    frequency_coefficient: jax.Array
    learning_rate: jax.Array
    threshold_learning_rate: jax.Array


def knobs(config: TrainConfig) -> Knobs:
    config = config.resolve()
    values = [getattr(config, name) for name in Knobs._fields]
    return Knobs(*(jnp.float32(1.0 if value is None else value) for value in values))


def learning_rate(config: TrainConfig, peak: jax.Array, step: jax.Array) -> jax.Array:
    """Cosine warm-up from a tenth of the peak, then constant, then (if asked for) linear decay to zero at the end."""
    # float32, as an integer divided is float64 where JAX has 64 bits by default.
    warm = jnp.clip(jnp.float32(step) / max(config.learning_rate_warmup, 1), 0.0, 1.0)
    rate = peak * (0.1 + 0.9 * 0.5 * (1.0 - jnp.cos(jnp.pi * warm)))
    if config.learning_rate_decay != 0:
        rate *= jnp.clip(jnp.float32(config.steps - step) / config.learning_rate_decay, 0.0, 1.0)
    return rate


def warmth(config: TrainConfig, step: jax.Array) -> jax.Array:
    """How much of lambda there is: from 0, linearly, to 1."""
    if config.coefficient_warmup == 0:
        return jnp.float32(1.0)
    return jnp.minimum(1.0, jnp.float32(step) / config.coefficient_warmup)


def moments(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with eps = 1e-8, before the learning rate. With Gemma Scope's beta1 of 0, RMSProp with bias correction is
    that, without a stored first moment."""
    if config.beta1:
        return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=1e-8)
    return optax.scale_by_rms(decay=config.beta2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)


def update(
    grads: Params, state: optax.OptState, params: Params, step: jax.Array, config: TrainConfig, knobs: Knobs
) -> tuple[Params, optax.OptState]:
    """The parameters after an update, and the optimiser's state. The decoder's rows have unit norm before and after:
    the part of their gradient that is along them is removed first (arXiv 2408.05147, section 3), and theta is never
    negative."""
    along = jnp.einsum("ZA,ZA->Z", grads.W_dec, params.W_dec)
    grads = grads._replace(W_dec=grads.W_dec - along[:, None] * params.W_dec)
    updates, state = moments(config).update(grads, state, params)
    rate = learning_rate(config, knobs.learning_rate, step)
    updates = jax.tree.map(lambda u: -rate * u, updates)._replace(
        threshold=-learning_rate(config, knobs.threshold_learning_rate, step) * updates.threshold
    )
    if config.decoder_rate_factor != 1.0:
        decoder = {name: config.decoder_rate_factor * getattr(updates, name) for name in ("W_dec", "b_dec")}
        updates = updates._replace(**decoder)
    params = optax.apply_updates(params, updates)
    params = params._replace(W_dec=unit_rows(params.W_dec))
    if not config.log_threshold:
        params = params._replace(threshold=jnp.maximum(params.threshold, 0.0))
    return params, state


def unit_rows(W_dec: jax.Array) -> jax.Array:
    """[Z, A] with each row scaled to norm 1."""
    return W_dec / jnp.linalg.norm(W_dec, axis=-1, keepdims=True)


def with_theta(params: Params, config: TrainConfig) -> Params:
    """The parameters with theta itself in `threshold`."""
    return params._replace(threshold=jnp.exp(params.threshold)) if config.log_threshold else params


def logarithmic_factor(
    current: jax.Array, l0: jax.Array, step: jax.Array, config: TrainConfig, knobs: Knobs
) -> jax.Array:
    """The controller: the logarithm of what lambda is multiplied by, after a batch with a mean L0.

    It waits until lambda is warm. The distance is cut at a factor of e, and what has added up at a factor of a thousand
    either way, so that thresholds that are slow to follow do not meet a lambda that has run away.
    """
    if config.controller == 0:
        return current
    off = jnp.clip(jnp.log(jnp.maximum(l0, 1e-3) / knobs.l0_target), -1.0, 1.0)
    after = current + jnp.where(step >= config.coefficient_warmup, config.controller * off, 0.0)
    return jnp.clip(after, -_FURTHEST, _FURTHEST)
