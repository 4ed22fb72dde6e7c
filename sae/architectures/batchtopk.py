"""The BatchTopK autoencoder while it trains: the k B largest latents of a batch are kept, and one threshold is released
(arXiv 2412.06410)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae import autoencoder as released
from sae.architectures.affine import KeepsLargest, Params, pre_activations, released_bias
from sae.architectures.base import Encoded, counts, register
from sae.parts import Number, Sizes


class Running(NamedTuple):
    """A running mean of the smallest latent that is kept: `total / weight`."""

    total: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean, in which the last batches weigh most; 0 before the first batch."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1.0)


@register("batchtopk")
@dataclasses.dataclass(frozen=True)
class BatchTopK(KeepsLargest):
    """The k B largest latents of a batch of B tokens, where they are above 0. It needs no sparsity term: give the run
    `sparsity=()`. The released form is a `sae.JumpReLU` with one threshold for all latents: the mean, over the last
    batches, of the smallest latent that was kept (arXiv 2412.06410, section 3), so that tokens no longer depend on each
    other.

    With the objective `sae.objectives.Matryoshka` it is the Matryoshka BatchTopK autoencoder of arXiv 2503.17547, whose
    prefixes share one choice of latents. AuxK revives dead latents; see `TopK`.

    Attributes:
        k: the mean number of latents of a token.
        skip: whether a transcoder has an affine skip.
        decay: the decay of the threshold's running mean: the factor by which a batch weighs less than the next.
        aux_k: the number of dead latents of a token that explain the error of the others.
        aux_coefficient: the coefficient of AuxK; 0 turns it off.
    """

    k: Number = 64.0
    skip: bool = False
    decay: float = 0.99
    aux_k: int = 512
    aux_coefficient: Number = 1 / 32

    def check(self) -> None:
        super().check()
        self._not_negative("decay")
        if self.decay >= 1:
            raise ValueError(f"BatchTopK: decay is below 1, got {self.decay}")

    def check_sizes(self, sizes: Sizes) -> None:
        super().check_sizes(sizes)
        if sizes.width * sizes.batch_size >= 2**31:
            raise ValueError(
                f"BatchTopK: {sizes.batch_size:,} tokens have {sizes.width * sizes.batch_size:,} latents, and at most "
                f"{2**31 - 1:,} can be counted: lower batch_size"
            )

    def state(self, sizes: Sizes) -> Running:
        return Running(jnp.float32(0.0), jnp.float32(0.0))

    def update(self, state: Running, encoded: Encoded, step: jax.Array, sizes: Sizes) -> Running:
        new = 1.0 - self.decay
        return Running(self.decay * state.total + new * encoded.threshold, self.decay * state.weight + new)

    def encode(self, params: Params, x: jax.Array, state: Running, sizes: Sizes) -> Encoded:
        z = pre_activations(params, x, sizes)
        positive = jnp.maximum(jax.lax.stop_gradient(z), 0.0)
        smallest = nth_largest(positive, jnp.maximum(1, jnp.round(self.k * len(x)).astype(jnp.int32)))
        on = (positive >= smallest) & (positive > 0)
        return Encoded(jnp.where(on, z, 0.0), *counts(on, z.dtype), z, smallest)

    def records(self, params: Params, state: Running, sizes: Sizes) -> dict[str, jax.Array]:
        return {"threshold_mean": state.mean}

    def release(self, params: Params, state: Running, sizes: Sizes) -> released.JumpReLU:
        b_enc, threshold = released_bias(params, sizes), jnp.full((sizes.width,), state.mean)
        return released.JumpReLU(params.W_enc, b_enc, params.W_dec, params.b_dec, threshold, params.W_skip)


def nth_largest(values: jax.Array, n: jax.Array) -> jax.Array:
    """Returns the n-th largest of float32 values of any shape, all at least 0; 0 for an n above their number.

    It bisects over the bits of the answer, 31 times a comparison and a count: n may be traced, nothing is sorted, and
    values that are split over a mesh stay split.

    Example:
        >>> float(nth_largest(jnp.float32([[3, 0, 1], [2, 5, 2]]), 3))
        2.0
    """
    # The bits of numbers that are at least 0 have the order of the numbers.
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def add_bit(i, answer):
        candidate = answer | jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
        return jnp.where((bits >= candidate).sum(dtype=jnp.int32) >= n, candidate, answer)

    return jax.lax.bitcast_convert_type(
        jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), add_bit, jnp.int32(0)), jnp.float32
    )
