"""The state of a run: how it begins, one step of it, and how it lies on a mesh."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae.recipes import MOST_TOKENS, TrainConfig
from sae.trainer import objective, schedules
from sae.trainer.diagnostics import Tally
from sae.trainer.objective import Params, Pressure
from sae.trainer.schedules import Knobs, unit_rows, with_theta
from sae.trainer.units import Units, scaled

if TYPE_CHECKING:
    import chex

_LATENT = PartitionSpec("latent")
# How parameters lie on a mesh with the axes `data` and `latent`; what is not named here is on every device.
_PARAM_SPECS = Params(
    W_enc=PartitionSpec(None, "latent"),
    b_enc=_LATENT,
    W_dec=PartitionSpec("latent", None),
    b_dec=PartitionSpec(),
    threshold=_LATENT,
    W_skip=PartitionSpec(),
)


class State(NamedTuple):
    """A pytree; all of it float32 but for counters, also where JAX has 64 bits by default.

    `params.threshold` is theta, or log(theta) where the config says so. `step` counts the updates made. `factor` is the
    logarithm of what the controller multiplies lambda by; `silent` [Z] the tokens since each latent fired last; `tally`
    what is added up between two records of the history.
    """

    params: Params
    optimizer: "chex.ArrayTree"
    step: jax.Array
    factor: jax.Array
    silent: jax.Array
    tally: Tally


def initial(config: TrainConfig, A_in: int, A_out: int, key: jax.Array | None = None) -> State:
    """W_dec He-uniform with rows then of unit norm, W_enc its transpose, biases zero (arXiv 2408.05147, section 3). For
    transcoders, whose widths may differ, W_enc is drawn in the same way on its own, and the skip begins at zero. The
    key is that of the config's seed by default."""
    key = jax.random.fold_in(jax.random.key(config.seed) if key is None else key, 0)

    def rows(key, A):
        he_uniform = jax.nn.initializers.he_uniform(in_axis=-1, out_axis=-2)
        return unit_rows(he_uniform(key, (config.width, A), jnp.float32))

    W_dec = rows(key, A_out)
    W_enc = rows(jax.random.fold_in(key, 1), A_in).T if config.transcodes else W_dec.T
    threshold = jnp.full((config.width,), config.threshold_init, jnp.float32)
    params = Params(
        W_enc=config.encoder_init * W_enc,
        b_enc=jnp.zeros((config.width,), jnp.float32),
        W_dec=W_dec,
        b_dec=jnp.zeros((A_out,), jnp.float32),
        threshold=jnp.log(threshold) if config.log_threshold else threshold,
        W_skip=jnp.zeros((A_in, A_out), jnp.float32) if config.skip else None,
    )
    silent = jnp.zeros((config.width,), jnp.int32)
    tally = Tally.empty(config.width, A_out, params)
    return State(params, schedules.moments(config).init(params), jnp.int32(0), jnp.float32(0), silent, tally)


def step(
    state: State,
    batch: dict[str, jax.Array],
    units: dict[str, Units],
    knobs: Knobs,
    *,
    config: TrainConfig,
) -> State:
    """One update.

    Args:
      state: before it.
      batch: raw activations [B, A] of the config's sites.
      units: their scales and centres.
      knobs: the numbers of the config that are not compiled in.
      config: everything else; static.

    Returns:
      The state after it; the metrics of the batch, as of before the update, are in its tally.
    """
    config = config.resolve()
    x, y = scaled(batch, units, config.sites), None
    y = scaled(batch, units, config.sites_out) if config.transcodes else x
    warm = schedules.warmth(config, state.step) * jnp.exp(state.factor)
    pressure = Pressure(
        coefficient=knobs.coefficient * warm,
        l0_target=knobs.l0_target,
        frequency=knobs.frequency_coefficient * warm,
        dead=state.silent >= config.dead_tokens if config.revival else None,
    )
    (loss, parts), grads = jax.value_and_grad(
        lambda p: objective.loss(with_theta(p, config), x, y, config, pressure), has_aux=True
    )(state.params)
    params, optimizer = schedules.update(grads, state.optimizer, state.params, state.step, config, knobs)
    silent = jnp.where(parts.fired > 0, 0, jnp.minimum(state.silent + len(x), MOST_TOKENS))
    factor = schedules.logarithmic_factor(state.factor, parts.l0.mean(), state.step, config, knobs)
    tally = state.tally.add(loss, parts, y, grads, pressure.coefficient)
    return State(params, optimizer, state.step + 1, factor, silent, tally)


def shardings(state: State, mesh: Mesh) -> State:
    """The sharding of every array of a state (or of its shapes): latents over `latent`, the rest everywhere."""

    def of(node):
        if isinstance(node, Params):
            present = zip(node, _PARAM_SPECS, strict=True)
            return Params(*(None if leaf is None else NamedSharding(mesh, spec) for leaf, spec in present))
        return NamedSharding(mesh, PartitionSpec())

    placed = jax.tree.map(of, state, is_leaf=lambda node: isinstance(node, Params))
    latent = NamedSharding(mesh, _LATENT)
    gradients = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), placed.tally.gradients)
    return placed._replace(silent=latent, tally=placed.tally._replace(fired=latent, gradients=gradients))


def shape_of(config: TrainConfig) -> TrainConfig:
    """The config without what the compiled step does not depend on: runs of one shape share it.

    Sites are renamed by their place, so that runs on different sites share it too. What may be derived is a number.
    """
    config = config.resolve()
    sites = tuple(f"in_{i}" for i in range(len(config.sites)))
    return dataclasses.replace(
        config,
        site=sites if len(sites) > 1 else sites[0],
        site_out="out" if config.transcodes else None,
        l0_target=None if config.l0_target is None else 1.0,
        frequency_coefficient=1.0 if config.frequency_coefficient else 0.0,
        **dict.fromkeys(("learning_rate", "threshold_learning_rate", "coefficient"), 1.0),
        **dict.fromkeys(("seed", "data_seed"), 0),
    )


def renamed(values: dict, config: TrainConfig) -> dict:
    """What is kept by the sites of a config, by the names that its shape has for them."""
    shape = shape_of(config)
    names = dict(zip(config.sites + config.sites_out, shape.sites + shape.sites_out, strict=True))
    return {names[site]: values[site] for site in names}
