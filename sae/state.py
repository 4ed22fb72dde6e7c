"""The state of a training run: how it begins, one step of it, how it lies on a mesh, and what comes out at the end."""

import dataclasses
import functools
import json
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae import objective
from sae.autoencoder import Info, JumpReLU
from sae.objective import Params
from sae.recipes import TrainConfig

# How parameters lie on a mesh with the axes `data` and `latent`; what is not named here is on every device.
_PARAM_SPECS = Params(
    W_enc=PartitionSpec(None, "latent"),
    b_enc=PartitionSpec("latent"),
    W_dec=PartitionSpec("latent", None),
    b_dec=PartitionSpec(),
    threshold=PartitionSpec("latent"),
)


class State(NamedTuple):
    """A pytree; all of it float32 but for counters.

    `params.threshold` is theta, or log(theta) where the config says so. `step` counts the updates made.
    """

    params: Params
    optimizer: chex.ArrayTree
    step: jax.Array


class Targets(NamedTuple):
    """What may differ between runs that share one compiled step."""

    coefficient: jax.Array
    l0_target: jax.Array | None


def targets(config: TrainConfig) -> Targets:
    l0_target = None if config.l0_target is None else jnp.float32(config.l0_target)
    return Targets(jnp.float32(config.coefficient), l0_target)


def learning_rate_schedule(config: TrainConfig, peak: float) -> optax.Schedule:
    """Cosine warm-up from a tenth of the peak, then constant, then (if asked for) linear decay to zero at the end."""

    def schedule(step):
        warm = jnp.clip(step / max(config.learning_rate_warmup, 1), 0.0, 1.0)
        rate = peak * (0.1 + 0.9 * 0.5 * (1.0 - jnp.cos(jnp.pi * warm)))
        if config.learning_rate_decay:
            rate *= jnp.clip((config.steps - step) / config.learning_rate_decay, 0.0, 1.0)
        return rate

    return schedule


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with beta1 = 0, beta2 = 0.999 and eps = 1e-8 (RMSProp with bias correction is that, without a stored first
    moment), and a learning rate of its own for the threshold."""

    def scale(updates, step):
        rate = learning_rate_schedule(config, config.learning_rate)(step)
        scaled = jax.tree.map(lambda u: -rate * u, updates)
        threshold_rate = learning_rate_schedule(config, config.threshold_learning_rate)(step)
        return scaled._replace(threshold=-threshold_rate * updates.threshold)

    moments = optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True)

    def update(grads, state, params=None):
        updates, rms = moments.update(grads, state[0], params)
        return scale(updates, state[1]), (rms, state[1] + 1)

    return optax.GradientTransformation(lambda params: (moments.init(params), jnp.int32(0)), update)


def initial(config: TrainConfig, activation_width: int) -> State:
    """W_dec He-uniform with rows then of unit norm, W_enc its transpose, biases zero (arXiv 2408.05147, section 3)."""
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    W_dec = jax.nn.initializers.he_uniform(in_axis=-1, out_axis=-2)(key, (config.width, activation_width))
    W_dec = unit_rows(W_dec)
    threshold = jnp.full((config.width,), config.threshold_init, jnp.float32)
    params = Params(
        W_enc=W_dec.T,
        b_enc=jnp.zeros((config.width,)),
        W_dec=W_dec,
        b_dec=jnp.zeros((activation_width,)),
        threshold=jnp.log(threshold) if config.log_threshold else threshold,
    )
    return State(params, optimizer(config).init(params), jnp.int32(0))


def unit_rows(W_dec: jax.Array) -> jax.Array:
    """[Z, A] with each row scaled to norm 1."""
    return W_dec / jnp.linalg.norm(W_dec, axis=-1, keepdims=True)


def with_theta(params: Params, config: TrainConfig) -> Params:
    """The parameters with theta itself in `threshold`."""
    return params._replace(threshold=jnp.exp(params.threshold)) if config.log_threshold else params


def step(
    state: State, x: jax.Array, scale: jax.Array, goal: Targets, *, config: TrainConfig
) -> tuple[State, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before it.
      x: raw activations [B, A].
      scale: C, what they are divided by.
      goal: the coefficient and the target L0.
      config: everything else; static.

    Returns:
      The state after it and the metrics of the batch before it, as device scalars.
    """
    warm = jnp.minimum(1.0, state.step / max(config.coefficient_warmup, 1)) if config.coefficient_warmup else 1.0

    def loss_of(params):
        return objective.loss(
            with_theta(params, config), x / scale, config.bandwidth, goal.coefficient * warm, goal.l0_target
        )

    (loss, parts), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    W_dec = state.params.W_dec
    along = jnp.einsum("ZA,ZA->Z", grads.W_dec, W_dec)
    grads = grads._replace(W_dec=grads.W_dec - along[:, None] * W_dec)
    updates, opt_state = optimizer(config).update(grads, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    params = params._replace(W_dec=unit_rows(params.W_dec))
    if not config.log_threshold:
        params = params._replace(threshold=jnp.maximum(params.threshold, 0.0))
    theta = with_theta(params, config).threshold
    metrics = {"loss": loss, **parts, "threshold_mean": theta.mean()}
    return State(params, opt_state, state.step + 1), metrics


def shardings(state: State, mesh: Mesh) -> State:
    """The sharding of every array of a state (or of its shapes): latents over `latent`, the rest everywhere."""

    def of(tree):
        if isinstance(tree, Params):
            return Params(*(NamedSharding(mesh, spec) for spec in _PARAM_SPECS))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(of, state, is_leaf=lambda node: isinstance(node, Params))


@functools.lru_cache(maxsize=64)
def compiled_step(config: TrainConfig, activation_width: int, mesh: Mesh):
    """`step`, jitted for a mesh. The batch lies over `data`; the state's buffers are reused."""
    placed = shardings(jax.eval_shape(lambda: initial(config, activation_width)), mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        functools.partial(step, config=config),
        in_shardings=(placed, NamedSharding(mesh, PartitionSpec("data")), everywhere, everywhere),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
    )


def fold(params: Params, config: TrainConfig, scale: float, info: Info) -> JumpReLU:
    """The trained parameters as an autoencoder of raw activations.

    b_enc' = C b_enc - C (b_dec W_enc), b_dec' = C b_dec, theta' = C theta, weights as they are (arXiv 2408.05147,
    section 3): what the released one makes of x is C times what the trained one makes of x / C.
    """
    params = with_theta(params, config)
    return JumpReLU(
        W_enc=params.W_enc,
        b_enc=scale * (params.b_enc - params.b_dec @ params.W_enc),
        W_dec=params.W_dec,
        b_dec=scale * params.b_dec,
        threshold=scale * params.threshold,
        info=info,
    )


def training_facts(config: TrainConfig, scale: float, **more) -> str:
    """What `Info.training` says, as JSON."""
    return json.dumps({"config": dataclasses.asdict(config), "scale": scale, **more}, sort_keys=True)
