"""The released ReLU autoencoder, as an L1 penalty trains it (transformer-circuits.pub/2023/monosemantic-features).

f = max(z, 0) with z = x W_enc + b_enc, and x^ = f W_dec + b_dec. Axis letters: B any leading axes, A dim of the
activation, Z latents.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae.autoencoder import Info, JumpReLU, Largest
from sae.released import AnyArray, Axes, Independent, forms, plus


@forms.register("ReLU")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ReLU(Independent):
    """A ReLU autoencoder on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z].
        b_enc: [Z].
        W_dec: [Z, A].
        b_dec: [A].
        W_skip: [A, A], the affine skip of some transcoders, or None.
        info: static; the model and the sites, or None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> eye = jnp.eye(2)
        >>> sae.ReLU(eye, jnp.zeros(2), eye, jnp.ones(2))(jnp.float32([-1, 3])).tolist()
        [1.0, 4.0]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("A", "Z"),
        "b_enc": ("Z",),
        "W_dec": ("Z", "A'"),
        "b_dec": ("A'",),
        "W_skip": ("A", "A'"),
    }
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    W_skip: jax.Array | None = None
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z], at least 0, of raw activations [B, A].

        Raises:
            ValueError: for activations of another length.
        """
        z = plus(jnp.matmul(self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        return jnp.maximum(z, 0.0)

    def jumprelu(self) -> JumpReLU:
        """Returns the same function as a JumpReLU with thresholds of 0, for formats that hold nothing else."""
        arrays = self.arrays() | {"threshold": jnp.zeros(self.width)}
        return JumpReLU(**arrays, info=self.info, largest=self.largest)
