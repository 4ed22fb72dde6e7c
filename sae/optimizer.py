"""The optimizer: an optax chain with schedules of learning rates, which keeps decoder rows at unit norm."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sae.architectures.base import Architecture
from sae.parts import Course, Number, Part, Sizes, Steps, steps_of
from sae.registry import Registry
from sae.sparsity.lambdas import SHORTEST

OPTIMIZERS: Registry = Registry("optimizer")
register = OPTIMIZERS.register


@register("adam")
@dataclasses.dataclass(frozen=True)
class Adam(Part):
    """Adam; the defaults are Gemma Scope's (arXiv 2408.05147, section 3).

    Attributes:
        learning_rate: the rate of all parameters for which the architecture has no rate of its own.
        learning_rate_warmup: steps, or a part of the run, in which the rate grows from a tenth (cosine).
        learning_rate_decay: last steps, or last part of the run, in which the rate falls linearly to 0.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        decoder_rate_factor: the factor on the learning rate of W_dec and b_dec.
    """

    registry: ClassVar[Registry] = OPTIMIZERS

    learning_rate: Number = 7e-5
    learning_rate_warmup: Steps = 1000
    learning_rate_decay: Steps = 0
    beta1: float = 0.0
    beta2: float = 0.999
    decoder_rate_factor: float = 1.0

    def check(self) -> None:
        self._positive("learning_rate", "decoder_rate_factor")
        self._not_negative("learning_rate_warmup", "learning_rate_decay")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Adam: {name} must be from 0 to below 1, got {getattr(self, name)}")

    def warmup_steps(self, steps: int) -> int:
        """Returns the steps of the learning rate's warm-up in a run of `steps` steps."""
        return steps_of(self.learning_rate_warmup, steps, least=1)

    def decay_steps(self, steps: int) -> int:
        """Returns the steps of the learning rate's decay in a run of `steps` steps."""
        return steps_of(self.learning_rate_decay, steps)

    def schedule(self, peak: jax.Array | float, steps: int) -> optax.Schedule:
        """Returns the learning rate by step: cosine warm-up from a tenth of the peak, then constant, then linear decay
        to 0 where `learning_rate_decay` is set."""
        warmup, decay = self.warmup_steps(steps), self.decay_steps(steps)

        def rate(step):
            # float32, as an integer divided is float64 where JAX has 64 bits by default.
            warm = jnp.clip(jnp.float32(step) / max(warmup, 1), 0.0, 1.0)
            rate = peak * (0.1 + 0.9 * 0.5 * (1.0 - jnp.cos(jnp.pi * warm)))
            if decay != 0:
                rate *= jnp.clip(jnp.float32(steps - step) / decay, 0.0, 1.0)
            return rate

        return rate

    def moments(self) -> optax.GradientTransformation:
        """Returns Adam's scaling with eps = 1e-8, before the learning rate. With Gemma Scope's beta1 of 0 it is RMSProp
        with bias correction, which stores no first moment."""
        if self.beta1:
            adam = optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=1e-8)
        else:
            adam = optax.scale_by_rms(decay=self.beta2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            # optax takes a Python float to the power of its count, an int32, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                return adam.update(updates, state, params)

        return optax.GradientTransformation(adam.init, update)

    def chain(self, step: jax.Array, architecture: Architecture, sizes: Sizes) -> optax.GradientTransformation:
        """Returns the whole transformation at a step. Its state is that of `moments` in a chain of three."""
        peaks = architecture.learning_rates()

        def descend(updates: Any, params: Any = None) -> Any:
            common: Any = self.schedule(self.learning_rate, sizes.steps)(step)
            rates: dict[str, Any] = {name: self.schedule(peak, sizes.steps)(step) for name, peak in peaks.items()}
            scaled = {
                name: None if update is None else -rates.get(name, common) * update
                for name, update in updates._asdict().items()
            }
            if self.decoder_rate_factor != 1.0:
                # pyrefly: ignore[unsupported-operation]  not None here
                scaled |= {name: self.decoder_rate_factor * scaled[name] for name in ("W_dec", "b_dec")}
            return type(updates)(**scaled)

        return optax.chain(across_decoder_rows(), self.moments(), optax.stateless(descend))

    def init(self, params: NamedTuple, architecture: Architecture, sizes: Sizes) -> optax.OptState:
        """Returns the state at the start."""
        return self.chain(jnp.int32(0), architecture, sizes).init(params)

    def update(
        self,
        grads: NamedTuple,
        state: optax.OptState,
        params: NamedTuple,
        step: jax.Array,
        architecture: Architecture,
        sizes: Sizes,
    ) -> tuple[NamedTuple, optax.OptState]:
        """Returns the parameters after an update, projected by the architecture, and the state."""
        updates, state = self.chain(step, architecture, sizes).update(grads, state, params)
        # The projection is no last transformation: applied as an update it would be rounded once more.
        return architecture.project(optax.apply_updates(params, updates)), state

    def beforehand(self, sizes: Sizes) -> dict[str, str]:
        steps = sizes.steps
        warmup, decay = self.warmup_steps(steps), self.decay_steps(steps)
        if warmup >= steps:
            return {
                "learning_rate_warmup": f"the learning rate is warmed up over {warmup} steps, and the run has {steps}: "
                f"it never reaches {self.learning_rate:g}. Lower learning_rate_warmup, {SHORTEST}"
            }
        if decay and warmup + decay > steps:
            return {
                "learning_rate_decay": f"the learning rate is warmed up over {warmup} steps and decays over the last "
                f"{decay}, and the run has {steps}: it never reaches {self.learning_rate:g}. Lower "
                f"learning_rate_decay, {SHORTEST}"
            }
        return {}

    def warnings(self, course: Course) -> dict[str, str]:
        """Returns a warning of an FVU that is above 1 or has risen, which a wrong learning rate causes."""
        last, first, steps = course.last, course.first, course.sizes.steps
        if last["fvu"] > 1 and (course.ended or last["fvu"] > 1.1 * first["fvu"]):
            advice = f"lower the learning rate, now {self.learning_rate:g}"
            if last["fvu"] <= 1.1 * first["fvu"]:
                advice = f"train for more steps than {steps}, or use the recipe short_run"
            return {
                "fvu": f"the FVU is {last['fvu']:.3g}, {first['fvu']:.3g} at the start: the reconstruction is worse "
                f"than the mean activation. {advice.capitalize()}"
            }
        warm = [r for r in course.records[:-1] if r["step"] >= course.warm]
        best = min(warm, key=lambda r: r["fvu"], default=last)
        # Fewer active latents explain a larger error; with as many active latents, training diverges.
        if last["fvu"] > 2 * best["fvu"] + 0.05 and last["l0"] >= 0.8 * best["l0"]:
            return {
                "fvu": f"the FVU has risen from {best['fvu']:.3g} at step {best['step']} to {last['fvu']:.3g} with as "
                f"many active latents: training diverges. Lower the learning rate, now {self.learning_rate:g}"
            }
        return {}


def across_decoder_rows() -> optax.GradientTransformation:
    """Returns a transformation that removes the part of W_dec's gradient along its rows, whose norm is fixed (arXiv
    2408.05147, section 3)."""

    def remove(updates: Any, params: Any = None) -> Any:
        along = jnp.einsum("ZA,ZA->Z", updates.W_dec, params.W_dec)
        return updates._replace(W_dec=updates.W_dec - along[:, None] * params.W_dec)

    return optax.stateless(remove)
