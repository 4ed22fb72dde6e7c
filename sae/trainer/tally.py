"""What a run measures of itself: added up on the device at every step, fetched once in many steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae.trainer.loss import Values

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Tally(NamedTuple):
    """Sums over the batches since the last record: of each measure of a batch, float32, in scaled units.

    Attributes:
      batches: how many batches are in the sums.
      loss: the loss.
      reconstruction: the loss's part from the reconstruction, with all latents.
      penalty: the loss's part from the sparsity terms.
      l0: the mean over the tokens.
      l0_quantiles: [len(QUANTILES)], over the tokens.
      coefficient: lambda.
      total: [A], the mean of what is to be reconstructed.
      squares: the mean squared norm of what is to be reconstructed.
      fired: [Z], the shares of the tokens on which latents fire.
      gradients: the norms of each parameter's gradient.
      measures: what the architecture measures.
    """

    batches: jax.Array
    loss: jax.Array
    reconstruction: jax.Array
    penalty: jax.Array
    l0: jax.Array
    l0_quantiles: jax.Array
    coefficient: jax.Array
    total: jax.Array
    squares: jax.Array
    fired: jax.Array
    gradients: dict[str, jax.Array]
    measures: dict[str, jax.Array]

    @classmethod
    def empty(cls, Z: int, A: int, params: NamedTuple, measures: dict) -> "Tally":
        """Returns sums over no batch, for parameters and measures of these names."""
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        return cls(
            batches=zeros(()),
            loss=zeros(()),
            reconstruction=zeros(()),
            penalty=zeros(()),
            l0=zeros(()),
            l0_quantiles=zeros(len(QUANTILES)),
            coefficient=zeros(()),
            total=zeros(A),
            squares=zeros(()),
            fired=zeros(Z),
            gradients={name: zeros(()) for name, value in params._asdict().items() if value is not None},
            measures={name: zeros(()) for name in measures},
        )

    def add(self, loss: jax.Array, values: Values, y: jax.Array, grads: NamedTuple, coefficient: jax.Array) -> "Tally":
        """Returns the sums with one more batch."""
        encoded = values.encoded
        new = Tally(
            batches=jnp.float32(1),
            loss=loss,
            reconstruction=values.reconstruction,
            penalty=values.penalty,
            l0=encoded.l0.mean(),
            l0_quantiles=jnp.quantile(encoded.l0, jnp.asarray(QUANTILES, jnp.float32)),
            coefficient=coefficient,
            total=y.mean(axis=0),
            squares=jnp.square(y).sum(axis=-1).mean(),
            fired=encoded.fired,
            gradients={name: jnp.linalg.norm(g) for name, g in grads._asdict().items() if g is not None},
            measures=encoded.measures,
        )
        return jax.tree.map(jnp.add, self, new)
