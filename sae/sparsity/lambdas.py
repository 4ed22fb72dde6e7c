"""Lambda: how it warms up, how a controller moves it until the L0 is its target, and what is said of an L0 off it."""

import dataclasses
import math
from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp

from sae.architectures.base import Encoded
from sae.parts import Course, Number, Sizes, Steps, steps_of
from sae.sparsity.base import SparsityTerm

FAR = 1.2  # times the target, or less than the target by that: an L0 that a run must not end with unsaid
_FURTHEST = math.log(1000.0)
_FASTEST = 0.05
SHORTEST = "or use the recipe short_run, whose warm-ups are shares of the run"


@dataclasses.dataclass(frozen=True)
class Warmed(SparsityTerm):
    """A term whose coefficient grows linearly from zero.

    Attributes:
      coefficient: lambda, in scaled units.
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
    """

    coefficient: Number = 6e-4
    coefficient_warmup: Steps = 10_000

    def check(self) -> None:
        self._not_negative("coefficient", "coefficient_warmup")

    def warm_from(self, steps: int) -> int:
        return steps_of(self.coefficient_warmup, steps)

    def warmth(self, step: jax.Array, sizes: Sizes) -> jax.Array:
        """How much of lambda there is: from 0, linearly, to 1."""
        warmup = self.warm_from(sizes.steps)
        if warmup == 0:
            return jnp.float32(1.0)
        return jnp.minimum(1.0, jnp.float32(step) / warmup)

    def strength(self, state: tuple, step: jax.Array, sizes: Sizes) -> jax.Array:
        return self.coefficient * self.warmth(step, sizes)

    def beforehand(self, sizes: Sizes) -> dict[str, str]:
        warmup = self.warm_from(sizes.steps)
        if warmup < sizes.steps:
            return {}
        return {
            "coefficient_warmup": f"lambda is warmed up over {warmup} steps, and the run has {sizes.steps}: it never "
            f"has its full strength. Lower coefficient_warmup, {SHORTEST}"
        }

    def warnings(self, course: Course) -> dict[str, str]:
        l0, width = course.last["l0"], course.sizes.width
        if course.ended and l0 < 0.5:
            return {
                "l0": f"L0 is {l0:.2g}: on most tokens no latent fires. Lower coefficient, now {self.coefficient:g}"
            }
        if course.ended and l0 > 0.5 * width:
            return {"l0": f"L0 is {l0:.3g} of {width} latents, which is not sparse. Raise coefficient, or train on"}
        return {}


@dataclasses.dataclass(frozen=True)
class Aimed(Warmed):
    """A term with a target L0, whose lambda a controller moves. Its state is the logarithm of what lambda is multiplied
    by.

    Attributes:
      l0_target: the L0 to aim at.
      controller: how fast lambda follows the L0, once it is warm: its logarithm grows by controller * log(L0 /
        l0_target) a step; 0 for a lambda that does not follow. A Fraction: in such a share of the run it grows by
        log(L0 / l0_target), and by a twentieth of that a step at most.
    """

    aim: ClassVar[str | None] = "l0_target"
    l0_target: Number = 50.0
    controller: float | Fraction = 0.0

    def check(self) -> None:
        super().check()
        self._positive("l0_target")
        self._not_negative("controller")

    def check_sizes(self, sizes: Sizes) -> None:
        if self.l0_target > sizes.width:
            raise ValueError(
                f"{type(self).__name__}: l0_target must lie between 0 and the width {sizes.width}, got {self.l0_target}"
            )

    def rate(self, steps: int) -> float:
        """The controller's, per step."""
        if isinstance(self.controller, Fraction):
            return min(_FASTEST, float(1 / (self.controller * steps))) if self.controller else 0.0
        return self.controller

    def init(self, sizes: Sizes) -> jax.Array:
        return jnp.float32(0.0)

    def strength(self, state: jax.Array, step: jax.Array, sizes: Sizes) -> jax.Array:
        return self.coefficient * (self.warmth(step, sizes) * jnp.exp(state))

    def update(self, state: jax.Array, encoded: Encoded, step: jax.Array, sizes: Sizes) -> jax.Array:
        return self.followed(state, encoded.l0.mean(), step, sizes)

    def followed(self, state: jax.Array, l0: jax.Array, step: jax.Array, sizes: Sizes) -> jax.Array:
        """The state after a batch with a mean L0.

        It waits until lambda is warm. The distance is cut at a factor of e, and what has added up at a factor of a
        thousand either way, so that thresholds that are slow to follow do not meet a lambda that has run away.
        """
        if self.rate(sizes.steps) == 0:
            return state
        off = jnp.clip(jnp.log(jnp.maximum(l0, 1e-3) / self.l0_target), -1.0, 1.0)
        after = state + jnp.where(step >= self.warm_from(sizes.steps), self.rate(sizes.steps) * off, 0.0)
        return jnp.clip(after, -_FURTHEST, _FURTHEST)

    def warnings(self, course: Course) -> dict[str, str]:
        l0, target, records = course.last["l0"], self.l0_target, course.records
        off = l0 / target
        stopped = len(records) >= 3 and abs(off - records[-3]["l0"] / target) < 0.02
        far = not 1 / FAR <= off <= FAR
        if not (course.ended and far) and not (stopped and abs(off - 1) > 0.1):
            return {}
        advice = "raise coefficient" if off > 1 else "lower coefficient"
        if self.controller:
            advice += " or controller" if off > 1 else " or raise controller"
        if target < 1:
            advice = "give a target of at least 1, as fewer latents than one a token reconstruct nothing"
        elif not stopped:
            advice = f"train for more steps than {course.sizes.steps}, or {advice}"
        still = ", and it has stopped moving" if stopped else ""
        times = f"{off:,.0f}" if off >= 10 else f"{off:.2g}"
        return {
            "l0": f"L0 is {l0:.3g}, {target:g} was asked for{still}: {times} times the target. To come closer, {advice}"
        }


@dataclasses.dataclass(frozen=True)
class Following(Aimed):
    """A term whose lambda always follows the L0: without a controller the target would mean nothing to it.

    Attributes:
      coefficient_warmup: lambda grows linearly over so many steps, or over such a share of the run.
      controller: how fast lambda follows; see `Aimed`.
    """

    instead: ClassVar[str] = ""  # what to take for a fixed lambda, in words
    coefficient_warmup: Steps = Fraction(1, 4)
    controller: float | Fraction = Fraction(1, 24)

    def check(self) -> None:
        super().check()
        if self.controller == 0:
            raise ValueError(
                f"{type(self).__name__}: a fixed lambda takes no notice of l0_target: set controller (0.01, say), or "
                f"take {self.instead}"
            )
