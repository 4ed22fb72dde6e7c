"""What a run measures about itself: added up on the device at every step, fetched once in many."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae.recipes import TrainConfig
from sae.trainer.objective import Params, Parts

if TYPE_CHECKING:
    from sae.trainer.state import State

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSITY_EDGES = tuple(10.0**power for power in np.arange(-5, 0.5, 0.5))  # of firing frequencies


class Tally(NamedTuple):
    """Sums over the batches since the last record; float32. Scaled units, where there are units.

    `total` [A] and `squares` are of what is to be reconstructed, `fired` [Z] of shares of the tokens, `gradients` of
    the gradients' norms, one for each parameter.
    """

    batches: jax.Array
    loss: jax.Array
    reconstruction: jax.Array
    penalty: jax.Array
    l0: jax.Array
    l0_quantiles: jax.Array
    window: jax.Array
    coefficient: jax.Array
    total: jax.Array
    squares: jax.Array
    fired: jax.Array
    gradients: Params

    @classmethod
    def empty(cls, Z: int, A: int, params: Params) -> "Tally":
        zeros = jnp.zeros
        return cls(
            *(zeros(()) for _ in range(5)),
            *(zeros(len(QUANTILES)), zeros(()), zeros(()), zeros(A), zeros(()), zeros(Z)),
            jax.tree.map(lambda _: zeros(()), params),
        )

    def add(self, loss: jax.Array, parts: Parts, y: jax.Array, grads: Params, coefficient: jax.Array) -> "Tally":
        new = Tally(
            batches=jnp.float32(1),
            loss=loss,
            reconstruction=parts.reconstruction,
            penalty=parts.penalty,
            l0=parts.l0.mean(),
            l0_quantiles=jnp.quantile(parts.l0, jnp.asarray(QUANTILES)),
            window=parts.window,
            coefficient=coefficient,
            total=y.mean(axis=0),
            squares=jnp.square(y).sum(axis=-1).mean(),
            fired=parts.fired,
            gradients=jax.tree.map(jnp.linalg.norm, grads),
        )
        return jax.tree.map(jnp.add, self, new)


def summary(state: "State", config: TrainConfig) -> dict[str, jax.Array]:
    """The record of the batches in a state's tally; scalars, and arrays of a few numbers."""
    tally = state.tally
    n = jnp.maximum(tally.batches, 1.0)
    mean = jax.tree.map(lambda total: total / n, tally)
    theta = jnp.exp(state.params.threshold) if config.log_threshold else state.params.threshold
    # log(0) is no number: a theta that came down to zero counts as moved by a factor of a thousand.
    moved = jnp.abs(jnp.log(jnp.maximum(theta / config.threshold_init, 1e-3)))
    edges = jnp.asarray(DENSITY_EDGES)
    bins = jnp.searchsorted(edges, mean.fired, side="right")
    names = ("loss", "reconstruction", "penalty", "l0", "window", "coefficient")
    return {
        **{name: getattr(mean, name) for name in names},
        "fvu": mean.reconstruction / (mean.squares - jnp.square(mean.total).sum()),
        "l0_quantiles": mean.l0_quantiles,
        "dead": (state.silent >= config.dead_tokens).sum(),
        "density": jnp.zeros(len(DENSITY_EDGES) + 1, jnp.int32).at[bins].add(1),
        "threshold_mean": theta.mean(),
        "threshold_moved": moved.mean(),
        "gradients": {name: norm for name, norm in mean.gradients._asdict().items() if norm is not None},
    }


def emptied(state: "State") -> "State":
    """The state with nothing in its tally."""
    return state._replace(tally=jax.tree.map(jnp.zeros_like, state.tally))


def complaints(config: TrainConfig, records: list[dict]) -> list[str]:
    """What is wrong with a run, in words, from its records so far (those of one config); empty when nothing is.

    Nothing is said before a fifth of the run is over, and nothing of L0 and dead latents before lambda has its full
    strength.
    """
    if not records or records[-1]["step"] < config.steps // 5:
        return []
    last, found = records[-1], []
    if last["threshold_moved"] < 0.01:
        found.append(
            f"the thresholds have moved by {last['threshold_moved']:.2%} on average since the start: with a learning "
            f"rate of {config.threshold_learning_rate:g} they cannot adapt in {config.steps} steps. Raise "
            "threshold_learning_rate, or use the recipe short_run"
        )
    if last["window"] < 1e-6:
        found.append(
            f"no pre-activations lie within the bandwidth {config.bandwidth:g} of their thresholds, so these get no "
            "gradient: raise bandwidth"
        )
    if config.coefficient_warmup >= config.steps:
        found.append(
            f"lambda is warmed up over {config.coefficient_warmup} steps, and the run has {config.steps}: it never has "
            "its full strength. Lower coefficient_warmup, or use the recipe short_run"
        )
    if last["step"] < config.coefficient_warmup:
        return found
    if config.l0_target is not None and len(records) >= 3:
        off, before = last["l0"] / config.l0_target, records[-3]["l0"] / config.l0_target
        if abs(off - 1) > 0.1 and abs(off - before) < 0.02:
            found.append(
                f"L0 is {last['l0']:.3g}, {config.l0_target:g} was asked for, and it has stopped moving: raise "
                "coefficient or controller"
            )
    if last["dead"] > 0.1 * config.width:
        found.append(
            f"{last['dead']} of {config.width} latents ({last['dead'] / config.width:.0%}) are dead, silent for "
            f"{config.dead_tokens:,} tokens: raise revival, lower the learning rate or the width"
        )
    return found
