"""The record of a run, made on the device from its state and from its tally since the record before."""

import jax
import jax.numpy as jnp
import numpy as np

from sae.parts import Sizes
from sae.trainer.loss import Parts
from sae.trainer.state import State
from sae.trainer.tally import QUANTILES

__all__ = ["DENSITY_EDGES", "QUANTILES", "emptied", "summary"]

DENSITY_EDGES = tuple(10.0**power for power in np.arange(-5, 0.5, 0.5))  # of firing frequencies


def summary(state: State, parts: Parts, sizes: Sizes) -> dict[str, jax.Array]:
    """Returns the record of the batches in a state's tally: scalars, and arrays of a few numbers.

    `batches` is the number of batches over which the others are means.

    `dead` counts the latents that were silent for the last `dead_tokens` tokens: as many as the run says, or half of
    all that the run has seen, while these are fewer. In a run shorter than that number no latent would ever count, and
    nearly all latents fire in the first steps, before lambda is warm.
    """
    tally = state.tally
    n = jnp.maximum(tally.batches, 1.0)
    mean = jax.tree.map(lambda total: total / n, tally)
    edges = jnp.asarray(DENSITY_EDGES, jnp.float32)
    bins = jnp.searchsorted(edges, mean.fired, side="right")
    # Compares steps, since tokens would overflow.
    half = jnp.minimum((state.step + 1) // 2, -(-sizes.dead_tokens // sizes.batch_size)) * sizes.batch_size
    over = jnp.clip(half, 1, sizes.dead_tokens)
    return {
        "batches": tally.batches.astype(jnp.int32),
        **{name: getattr(mean, name) for name in ("loss", "reconstruction", "penalty", "l0", "coefficient")},
        "fvu": mean.reconstruction / (mean.squares - jnp.square(mean.total).sum()),
        "l0_quantiles": mean.l0_quantiles,
        "dead": (state.silent >= over).sum(),
        "dead_tokens": over,
        "density": jnp.zeros(len(DENSITY_EDGES) + 1, jnp.int32).at[bins].add(1),
        "gradients": mean.gradients,
        **mean.measures,
        **parts.autoencoder.records(state.params, state.kept, sizes),
    }


def emptied(state: State) -> State:
    """Returns the state with an empty tally."""
    return state._replace(tally=jax.tree.map(jnp.zeros_like, state.tally))
