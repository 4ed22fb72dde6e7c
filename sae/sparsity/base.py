"""What every sparsity term does: a penalty of a batch, what it keeps from step to step, warnings."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sae.architectures.base import Encoded
from sae.parts import Part, Sizes
from sae.registry import Registry

TERMS: Registry = Registry("sparsity term")
register = TERMS.register


class Now(NamedTuple):
    """What terms see of the moment, beside the batch. A pytree.

    Attributes:
      step: how many updates were made before.
      strength: lambda of the run's first term, as of now; other terms may be relative to it.
      dead: bool [Z], latents that were silent for `sizes.dead_tokens` tokens.
    """

    step: jax.Array
    strength: jax.Array
    dead: jax.Array


class SparsityTerm(Part, abc.ABC):
    """A term of the loss. A run has a tuple of them; the first one's `strength` is lambda, which the history shows.

    The state is any pytree of arrays, () for none. `penalty` is differentiated by what `encoded` holds.
    """

    registry: ClassVar[Registry] = TERMS
    reads_l0: ClassVar[bool] = False  # whether it is differentiated by `encoded.l0` or `encoded.fired`

    def init(self, sizes: Sizes) -> Any:
        """Returns what it keeps from step to step, at the start."""
        return ()

    def strength(self, state: Any, step: jax.Array, sizes: Sizes) -> jax.Array:
        """Returns lambda as of a step, for a term that may be the first."""
        return jnp.float32(0.0)

    @abc.abstractmethod
    def penalty(self, encoded: Encoded, state: Any, now: Now, sizes: Sizes) -> jax.Array:
        """Returns the term, a scalar that is added to the loss of a batch."""

    def update(self, state: Any, encoded: Encoded, step: jax.Array, sizes: Sizes) -> Any:
        """Returns what it keeps after a step, from what it kept before and the step's batch."""
        return state

    def warm_from(self, steps: int) -> int:
        """Returns the step from which it has its full strength, in a run of so many steps."""
        return 0
