"""The penalty lambda * L0 of Gemma Scope (arXiv 2408.05147, section 2.2): with a fixed lambda, or one that follows."""

import dataclasses
from typing import ClassVar

import jax

from sae.architectures.base import Encoded
from sae.sparsity.base import Now, register
from sae.sparsity.lambdas import Following, Warmed


@register("linear")
@dataclasses.dataclass(frozen=True)
class Linear(Warmed):
    """lambda * L0 a token, with a fixed lambda.

    Attributes:
      coefficient: lambda, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
    """

    reads_l0: ClassVar[bool] = True

    def penalty(self, encoded: Encoded, state: tuple, now: Now, sizes) -> jax.Array:
        return (self.strength(state, now.step, sizes) * encoded.l0).mean()


@register("controlled")
@dataclasses.dataclass(frozen=True)
class Controlled(Following):
    """lambda * L0 a token, with a lambda that a controller moves until the L0 is the target.

    Attributes:
      coefficient: lambda at the start, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      l0_target: the L0 to aim at.
      controller: how fast lambda follows; see `sae.sparsity.lambdas.Aimed`.
    """

    reads_l0: ClassVar[bool] = True
    instead: ClassVar[str] = "sae.sparsity.Quadratic"

    def penalty(self, encoded: Encoded, state: jax.Array, now: Now, sizes) -> jax.Array:
        return (self.strength(state, now.step, sizes) * encoded.l0).mean()
