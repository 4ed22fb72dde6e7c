"""What a run measures about itself: added up on the device at every step, fetched once in many."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae.trainer.loss import Values

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Tally(NamedTuple):
    """Sums over the batches since the last record; float32. Scaled units, where there are units.

    `total` [A] and `squares` are of what is to be reconstructed, `fired` [Z] of shares of the tokens, `gradients` of
    the gradients' norms, one for each parameter, and `measures` of the architecture's.
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
        """The sums with those of one more batch."""
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
