"""The base of architectures: parameters, latents, the state from step to step, records, warnings, release."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sae.initialisation import Initialisation
from sae.parts import Part, Sizes
from sae.registry import Registry

ARCHITECTURES: Registry = Registry("architecture")
register = ARCHITECTURES.register

_EVERYWHERE = PartitionSpec()
_SPECS = {
    "W_enc": PartitionSpec(None, "latent"),
    "W_dec": PartitionSpec("latent", None),
    "b_dec": _EVERYWHERE,
    "W_skip": _EVERYWHERE,
}


class Encoded(NamedTuple):
    """A batch of latents, and the numbers that sparsity terms and the history read. A pytree.

    Attributes:
        f: [B, Z], the latents, which the decoder takes.
        l0: [B], the number of active latents; with a gradient where the architecture defines one.
        fired: [Z], the part of the tokens on which each latent is active; with a gradient where `l0` has one.
        z: [B, Z], pre-activations; a latent fires where its pre-activation is above `threshold`.
        threshold: [Z] or a scalar.
        magnitude: [B, Z], the values that an L1 penalty sums; None for `f` itself.
        measures: scalars by name, whose means over batches the history shows.
    """

    f: jax.Array
    l0: jax.Array
    fired: jax.Array
    z: jax.Array
    threshold: jax.Array
    magnitude: jax.Array | None = None
    measures: dict[str, jax.Array] = {}  # noqa: RUF012  never changed in place


class Architecture(Part, abc.ABC):
    """How latents are computed. A frozen dataclass, registered by name in its own file:

        @register("topk")
        @dataclasses.dataclass(frozen=True)
        class TopK(Architecture):
            k: int = 64

    Parameters are a NamedTuple of float32 arrays with `W_enc` [A_in, Z], `W_dec` [Z, A_out], `b_dec` [A_out] and
    `W_skip` [A_in, A_out] or None. Further parameters have a first axis Z, or are scalars. The state is what an
    architecture keeps from step to step beside them (a running threshold): any pytree of arrays, part of checkpoints,
    split over the mesh where the first axis is Z long, and without gradient.

    All methods but `check` and `check_sizes` are called inside compiled programs, where fields of type `Number` are
    traced.
    """

    registry: ClassVar[Registry] = ARCHITECTURES
    l0_gradient: ClassVar[bool] = True  # whether `Encoded.l0` and `.fired` have one, which L0 penalties need

    @abc.abstractmethod
    def init(self, key: jax.Array, dims: tuple[int, int], sizes: Sizes, initialisation: Initialisation) -> NamedTuple:
        """Returns the parameters at the start.

        Args:
            key: a key of the run's seed.
            dims: A_in and A_out.
            sizes: the sizes of the run.
            initialisation: draws W_enc and W_dec.
        """

    def state(self, sizes: Sizes) -> Any:
        """Returns the state at the start; () for none."""
        return ()

    @abc.abstractmethod
    def encode(self, params: NamedTuple, x: jax.Array, state: Any, sizes: Sizes) -> Encoded:
        """Returns the latents of scaled activations [B, A_in], differentiable by `params`."""

    def auxiliary(
        self, params: NamedTuple, encoded: Encoded, x: jax.Array, y: jax.Array, state: Any, dead: jax.Array
    ) -> jax.Array | None:
        """Returns a scalar that is added to the loss, or None.

        Args:
            params: the parameters.
            encoded: the latents of x.
            x: [B, A_in], scaled inputs.
            y: [B, A_out], the values to reconstruct.
            state: the state before the step.
            dead: bool [Z], latents that were silent for `sizes.dead_tokens` tokens.
        """
        return None

    def update(self, state: Any, encoded: Encoded, step: jax.Array, sizes: Sizes) -> Any:
        """Returns the state after a step, from the state before and the step's batch."""
        return state

    def project(self, params: Any) -> Any:
        """Returns the parameters after an update, projected onto their constraint: decoder rows of unit norm."""
        return params._replace(W_dec=unit_rows(params.W_dec))

    def learning_rates(self) -> dict[str, jax.Array | float]:
        """Returns {parameter: peak learning rate} for parameters with a rate of their own."""
        return {}

    def records(self, params: NamedTuple, state: Any, sizes: Sizes) -> dict[str, jax.Array]:
        """Returns scalars by name, of the parameters and the state, which the history shows."""
        return {}

    @abc.abstractmethod
    def release(self, params: NamedTuple, state: Any, sizes: Sizes) -> Any:
        """Returns the autoencoder on scaled activations: a `sae.JumpReLU` or another released form, with `W_enc`
        [A_in, Z], `b_enc` [Z], `W_dec` [Z, A_out], `b_dec` [A_out] and `W_skip`. `b_dec` is no longer subtracted before
        the encoder. `sae.inputs` folds the units of raw activations into it."""

    def spec(self, name: str, shape: tuple[int, ...], sizes: Sizes) -> PartitionSpec:
        """Returns the partition of a parameter's or the state's array on a mesh with the axes `data` and `latent`."""
        if name in _SPECS:
            return _SPECS[name]
        return PartitionSpec(*(["latent"] if shape[:1] == (sizes.width,) else []))


def counts(on: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns the L0 of each token [B], and the part of the tokens on which each latent fires [Z].

    Args:
        on: bool [B, Z], whether a latent fires on a token.
        dtype: the dtype of both results.
    """
    return on.sum(axis=1).astype(dtype), on.mean(axis=0, dtype=dtype)


def unit_rows(W_dec: jax.Array) -> jax.Array:
    """Returns W_dec [Z, A] with each row scaled to norm 1."""
    return W_dec / jnp.linalg.norm(W_dec, axis=-1, keepdims=True)
