"""A pull on latents that are dead, towards firing."""

import dataclasses

import jax
import jax.numpy as jnp

from sae.architectures.base import Encoded
from sae.parts import Number, Sizes
from sae.released import ranked
from sae.sparsity.base import Now, SparsityTerm, register
from sae.sparsity.lambdas import SHORTEST


@register("revival")
@dataclasses.dataclass(frozen=True)
class Revival(SparsityTerm):
    """The mean distance of dead latents from firing, summed over latents.

    Attributes:
      revival: its coefficient, in scaled units.
    """

    revival: Number = 1e-3

    def check(self) -> None:
        self._not_negative("revival")

    def beforehand(self, sizes: Sizes) -> dict[str, str]:
        if sizes.dead_tokens < sizes.tokens or not self.revival:
            return {}
        return {
            "revival": f"latents are pulled back once they were silent for {sizes.dead_tokens:,} tokens, and the run "
            f"has {sizes.tokens:,}: none ever is. Lower dead_tokens, {SHORTEST}"
        }

    def penalty(self, encoded: Encoded, state: tuple, now: Now, sizes: Sizes) -> jax.Array:
        distance = jax.nn.relu(ranked(encoded.threshold, encoded.z) - encoded.z).mean(axis=0)
        return self.revival * jnp.where(now.dead, distance, 0.0).sum()
