"""The BatchTopK autoencoder while it trains: the k B largest latents of a batch are kept, and one threshold is released
(arXiv 2412.06410)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae import autoencoder as released
from sae.architectures.affine import KeepsLargest, Params, pre_activations, released_bias
from sae.architectures.base import Encoded, counts, register
from sae.parts import Course, Number, Sizes

_WINDOW = 20  # the running mean is over the last twentieth of the steps so far, until `decay` makes it shorter
_OFF = 0.1  # the share of k by which the L0 of the released threshold may differ from k unsaid


class Running(NamedTuple):
    """Means over the last batches; float32 scalars, 0 before the first batch.

    Attributes:
        threshold: the smallest latent that is kept, in scaled units.
        l0: the L0 that the mean threshold gives.
    """

    threshold: jax.Array
    l0: jax.Array


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
        decay: the decay of the threshold's running mean: the factor by which a batch weighs less than the next. In the
            first 20 decay / (1 - decay) steps (1,980 by default) the mean is over the last twentieth of the steps so
            far; a mean with this decay would go back to batches before the threshold settled.
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
        step = jnp.float32(step)
        decay = jnp.minimum(self.decay, step / (step + _WINDOW))
        threshold = decay * state.threshold + (1.0 - decay) * encoded.threshold
        l0 = (encoded.z > threshold).sum(axis=1).mean(dtype=jnp.float32)
        return Running(threshold, decay * state.l0 + (1.0 - decay) * l0)

    def encode(self, params: Params, x: jax.Array, state: Running, sizes: Sizes) -> Encoded:
        z = pre_activations(params, x, sizes)
        positive = jnp.maximum(jax.lax.stop_gradient(z), 0.0)
        smallest = nth_largest(positive, jnp.maximum(1, jnp.round(self.k * len(x)).astype(jnp.int32)))
        on = (positive >= smallest) & (positive > 0)
        return Encoded(jnp.where(on, z, 0.0), *counts(on, z.dtype), z, smallest)

    def records(self, params: Params, state: Running, sizes: Sizes) -> dict[str, jax.Array]:
        return {"threshold_mean": state.threshold, "l0_released": state.l0}

    def warnings(self, course: Course) -> dict[str, str]:
        """Returns a warning of a released threshold that gives the last batches another L0 than k."""
        l0 = course.last.get("l0_released", self.k)
        if not course.ended or abs(l0 / self.k - 1.0) <= _OFF:
            return {}
        return {
            "l0": f"the released threshold gives an L0 of {l0:.3g} in the last batches, and k is {self.k:g}: it is a "
            f"mean over batches that differ too much. Train for more steps than {course.sizes.steps}, or let the "
            "learning rate fall at the end (learning_rate_decay)"
        }

    def release(self, params: Params, state: Running, sizes: Sizes) -> released.JumpReLU:
        b_enc, threshold = released_bias(params, sizes), jnp.full((sizes.width,), state.threshold)
        return released.JumpReLU(params.W_enc, b_enc, params.W_dec, params.b_dec, threshold, params.W_skip)


def nth_largest(values: jax.Array, n: jax.Array) -> jax.Array:
    """Returns the n-th largest of float32 values of any shape, all at least 0; 0 for an n above their number.

    It bisects over the bits of the answer, 31 times a comparison and a count: n may be traced, nothing is sorted, and
    values that are split over a mesh stay split.

    Example:
        >>> float(nth_largest(jnp.float32([[3, 0, 1], [2, 5, 2]]), 3))
        2.0
    """
    # The bits of numbers that are at least 0 are in the order of the numbers.
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def add_bit(i, answer):
        candidate = answer | jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
        return jnp.where((bits >= candidate).sum(dtype=jnp.int32) >= n, candidate, answer)

    answer = jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), add_bit, jnp.int32(0))
    return jax.lax.bitcast_convert_type(answer, jnp.float32)
