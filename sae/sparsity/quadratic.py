"""Gemma Scope 2's penalty on the distance of the L0 from its target."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sae.architectures.base import Encoded
from sae.sparsity.base import Now, register
from sae.sparsity.lambdas import Aimed


@register("quadratic")
@dataclasses.dataclass(frozen=True)
class Quadratic(Aimed):
    """lambda * (L0 - l0_target)^2 / (2 * l0_target) a token, whose gradient is that of the linear penalty at L0 = 2 *
    l0_target and turns round below the target.

    Attributes:
      coefficient: lambda, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      l0_target: the L0 to aim at.
      controller: how fast lambda follows the L0; 0 for a fixed lambda. See `sae.sparsity.lambdas.Aimed`.
    """

    reads_l0: ClassVar[bool] = True

    def of_tokens(self, l0: jax.Array, strength: jax.Array) -> jax.Array:
        """The penalty of each token, [B] -> [B]."""
        return strength * jnp.square(l0 - self.l0_target) / (2.0 * self.l0_target)

    def penalty(self, encoded: Encoded, state: jax.Array, now: Now, sizes) -> jax.Array:
        return self.of_tokens(encoded.l0, self.strength(state, now.step, sizes)).mean()
