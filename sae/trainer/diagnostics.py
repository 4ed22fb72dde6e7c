"""What a run measures about itself: added up on the device at every step, fetched once in many."""

import functools
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
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
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
            l0_quantiles=jnp.quantile(parts.l0, jnp.asarray(QUANTILES, jnp.float32)),
            window=parts.window,
            coefficient=coefficient,
            total=y.mean(axis=0),
            squares=jnp.square(y).sum(axis=-1).mean(),
            fired=parts.fired,
            gradients=jax.tree.map(jnp.linalg.norm, grads),
        )
        return jax.tree.map(jnp.add, self, new)


def summary(state: "State", config: TrainConfig) -> dict[str, jax.Array]:
    """The record of the batches in a state's tally; scalars, and arrays of a few numbers.

    `dead` counts the latents that were silent for the last `dead_tokens` tokens: as many as the config says, or half of
    all that the run has seen, while these are fewer. In a run shorter than the config's number none would ever count,
    and nearly all latents fire in the first steps, before lambda is warm.
    """
    config = config.resolve()
    tally = state.tally
    n = jnp.maximum(tally.batches, 1.0)
    mean = jax.tree.map(lambda total: total / n, tally)
    theta = jnp.exp(state.params.threshold) if config.log_threshold else state.params.threshold
    # log(0) is no number: a theta that came down to zero counts as moved by a factor of a thousand.
    moved = jnp.abs(jnp.log(jnp.maximum(theta / config.threshold_init, 1e-3)))
    edges = jnp.asarray(DENSITY_EDGES, jnp.float32)
    bins = jnp.searchsorted(edges, mean.fired, side="right")
    # Steps are compared, and not tokens, which would overflow.
    half = jnp.minimum((state.step + 1) // 2, -(-config.dead_tokens // config.batch_size)) * config.batch_size
    over = jnp.clip(half, 1, config.dead_tokens)
    names = ("loss", "reconstruction", "penalty", "l0", "window", "coefficient")
    return {
        **{name: getattr(mean, name) for name in names},
        "fvu": mean.reconstruction / (mean.squares - jnp.square(mean.total).sum()),
        "l0_quantiles": mean.l0_quantiles,
        "dead": (state.silent >= over).sum(),
        "dead_tokens": over,
        "density": jnp.zeros(len(DENSITY_EDGES) + 1, jnp.int32).at[bins].add(1),
        "threshold_mean": theta.mean(),
        "threshold_moved": moved.mean(),
        "gradients": {name: norm for name, norm in mean.gradients._asdict().items() if norm is not None},
    }


def emptied(state: "State") -> "State":
    """The state with nothing in its tally."""
    return state._replace(tally=jax.tree.map(jnp.zeros_like, state.tally))
