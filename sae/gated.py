"""The released gated autoencoder: one encoder with two scales says whether a latent fires, and how much (arXiv
2404.16014).

f = max(m, 0) * 1[g > 0] with g = x W_enc + b_gate and m = x (W_enc exp(r_mag)) + b_mag, and x^ = f W_dec + b_dec. Axis
letters: B any leading axes, A dim of the activation, Z latents.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae.autoencoder import Info, JumpReLU, Largest
from sae.released import AnyArray, Axes, Independent, above, forms, plus, ranked


@forms.register("Gated")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Gated(Independent):
    """A gated autoencoder on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z].
        b_gate: [Z], the bias of the gates.
        r_mag: [Z], the logarithm of the magnitudes' scale.
        b_mag: [Z], the bias of the magnitudes.
        W_dec: [Z, A].
        b_dec: [A].
        info: static; the model and the sites, or None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> eye, zero = jnp.eye(2), jnp.zeros(2)
        >>> gated = sae.Gated(eye, jnp.float32([-2, 0]), jnp.log(jnp.float32([1, 2])), zero, eye, zero)
        >>> gated.encode(jnp.float32([[1, 1], [3, -1]])).tolist()
        [[0.0, 2.0], [3.0, 0.0]]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("A", "Z"),
        "b_gate": ("Z",),
        "r_mag": ("Z",),
        "b_mag": ("Z",),
        "W_dec": ("Z", "A'"),
        "b_dec": ("A'",),
    }
    W_enc: jax.Array
    b_gate: jax.Array
    r_mag: jax.Array
    b_mag: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z] of raw activations [B, A]: 0 where the gate is shut.

        Raises:
            ValueError: for activations of another length.
        """
        z = jnp.matmul(self.joined(x), self.W_enc, precision="highest")
        magnitude = plus(z * ranked(jnp.exp(self.r_mag), z), self.b_mag)
        return above(plus(z, self.b_gate), 0.0, jnp.maximum(magnitude, 0.0))

    def shifted(self, shift: Float[AnyArray, " A"]) -> "Gated":
        """Returns the autoencoder whose latents are the same where a shift [A] was added to activations."""
        z = jnp.matmul(shift, self.W_enc, precision="highest")
        return dataclasses.replace(self, b_gate=self.b_gate - z, b_mag=self.b_mag - z * jnp.exp(self.r_mag))

    def scaled(self, gain: Float[AnyArray, ""] | Float[AnyArray, " Z"]) -> "Gated":
        """Returns the autoencoder with both biases multiplied by a gain, [] or [Z]."""
        return dataclasses.replace(self, b_gate=gain * self.b_gate, b_mag=gain * self.b_mag)

    def jumprelu(self) -> JumpReLU:
        """Returns the same function as a JumpReLU, for formats that hold nothing else; equal up to rounding at the
        thresholds.

        In units of the magnitude u = z exp(r_mag) + b_mag the gate opens at b_mag - exp(r_mag) b_gate (arXiv
        2404.16014, appendix).
        """
        scale = jnp.exp(self.r_mag)
        return JumpReLU(
            self.W_enc * scale[None],
            self.b_mag,
            self.W_dec,
            self.b_dec,
            jnp.maximum(self.b_mag - scale * self.b_gate, 0.0),
            info=self.info,
            largest=self.largest,
        )
