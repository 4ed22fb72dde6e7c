"""The tanh penalty with which Anthropic trains JumpReLU autoencoders (transformer-circuits.pub/2025/january-update,
"Dictionary Learning Optimization Techniques")."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sae.architectures.base import Encoded
from sae.parts import Number
from sae.sparsity.base import Now, register
from sae.sparsity.lambdas import Following, Warmed


@register("tanh")
@dataclasses.dataclass(frozen=True)
class Tanh(Warmed):
    """lambda times the sum of tanh(scale f) over a token's latents, a smooth L0. With a `JumpReLU` its gradient goes to
    all parameters: to z where a latent fires, and to thresholds in their window.

    There, activations have a mean squared norm of A, here of 1. Their scale 4 is 4 sqrt(A) here (101 for A = 640),
    their window 2 a bandwidth of 2 / sqrt(A), their first threshold 0.1 a threshold_init of 0.1 / sqrt(A), and their
    lambda is divided by A. Decoder rows, by whose norm f is multiplied there, have norm 1 here. `Revival` with a
    coefficient of 3e-6 / sqrt(A) is their pre-activation loss, for dead latents alone. Their lambda grows over the
    whole run: coefficient_warmup=Fraction(1).

    Their window is for activations of many dimensions. With A = 192 it is as wide as most latents are large: from a
    lambda of 0.01, thresholds overshot in 100 steps, and fell back so slowly that after 450 the L0 was 12 where 20 and
    40 were asked for. With the bandwidth and the first lambda of `sae.short_run`, both were met.

    Attributes:
      coefficient: lambda, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      scale: what latents are multiplied by in the tanh, in scaled units.
    """

    coefficient: Number = 0.01
    scale: Number = 100.0

    def check(self) -> None:
        super().check()
        self._positive("scale")

    def penalty(self, encoded: Encoded, state: tuple, now: Now, sizes) -> jax.Array:
        return self.strength(state, now.step, sizes) * smooth_l0(encoded, self.scale)


@register("controlled_tanh")
@dataclasses.dataclass(frozen=True)
class ControlledTanh(Following):
    """The same penalty, with a lambda that a controller moves until the L0 is the target.

    Attributes:
      coefficient: lambda at the start, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      l0_target: the L0 to aim at.
      controller: how fast lambda follows; see `sae.sparsity.lambdas.Aimed`.
      scale: what latents are multiplied by in the tanh, in scaled units.
    """

    instead: ClassVar[str] = "sae.sparsity.Tanh"
    coefficient: Number = 0.01
    scale: Number = 100.0

    def check(self) -> None:
        super().check()
        self._positive("scale")

    def penalty(self, encoded: Encoded, state: jax.Array, now: Now, sizes) -> jax.Array:
        return self.strength(state, now.step, sizes) * smooth_l0(encoded, self.scale)


def smooth_l0(encoded: Encoded, scale: jax.Array | float) -> jax.Array:
    """The mean over tokens of the sum of tanh(scale f): a scalar."""
    return jnp.tanh(scale * encoded.f).sum(axis=1).mean()
