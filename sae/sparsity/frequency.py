"""Gemma Scope 2's penalty on latents that fire on too many tokens."""

import dataclasses
from typing import ClassVar

import jax

from sae.architectures.base import Encoded
from sae.parts import Number
from sae.sparsity.base import Now, SparsityTerm, register


@register("frequency")
@dataclasses.dataclass(frozen=True)
class Frequency(SparsityTerm):
    """The sum over latents of how far their frequency is above a limit. Relative to lambda, whatever lambda is.

    Attributes:
      frequency_factor: times lambda as of now (of the run's first term).
      frequency_limit: share of the tokens.
    """

    reads_l0: ClassVar[bool] = True
    frequency_factor: Number = 0.1
    frequency_limit: float = 0.1

    def check(self) -> None:
        self._not_negative("frequency_factor")
        self._positive("frequency_limit")

    def penalty(self, encoded: Encoded, state: tuple, now: Now, sizes) -> jax.Array:
        return self.frequency_factor * now.strength * jax.nn.relu(encoded.fired - self.frequency_limit).sum()
