"""The crosscoder: one set of latents for several sites at once, such as the residual stream after several layers.

f = z * 1[z > theta] with z = sum_l x_l W_enc_l + b_enc, and x^_l = f W_dec_l + b_dec_l. Axis letters: B any leading
axes, L sites, A dim of the activation at each, Z latents.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae import showing
from sae.autoencoder import Info, JumpReLU, Largest
from sae.released import AnyArray, Axes, Independent, above, forms, plus


@forms.register("Crosscoder")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Crosscoder(Independent):
    """A JumpReLU crosscoder on raw activations; a pytree.

    Attributes:
        W_enc: [L, A, Z].
        b_enc: [Z].
        W_dec: [Z, L, A]. The rows of a latent at all sites together have unit norm.
        b_dec: [L, A].
        threshold: [Z], theta, at least 0.
        info: static; `info.site` has the sites in their order. None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> W_enc, W_dec = jnp.ones((2, 1, 1)), jnp.ones((1, 2, 1))  # 2 sites, 1 latent
        >>> crosscoder = sae.Crosscoder(W_enc, jnp.zeros(1), W_dec, jnp.zeros((2, 1)), jnp.zeros(1))
        >>> crosscoder(jnp.float32([[3], [5]])).tolist()
        [[8.0], [8.0]]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("L", "A", "Z"),
        "b_enc": ("Z",),
        "W_dec": ("Z", "L", "A"),
        "b_dec": ("L", "A"),
        "threshold": ("Z",),
    }
    noun: ClassVar[str] = "crosscoder"
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    @classmethod
    def of(cls, joined: JumpReLU, sites: int) -> "Crosscoder":
        """Returns the crosscoder of an autoencoder whose activations are those of several sites, one after another.

        Raises:
            ValueError: for an autoencoder that is no JumpReLU.
        """
        if not isinstance(joined, JumpReLU):
            raise ValueError(f"a crosscoder is made of a JumpReLU, got {showing.kind(joined)}: train it on one site")
        Z = joined.width
        W_enc, W_dec = joined.W_enc.reshape(sites, -1, Z), joined.W_dec.reshape(Z, sites, -1)
        return cls(W_enc, joined.b_enc, W_dec, joined.b_dec.reshape(sites, -1), joined.threshold)

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z] of raw activations [B, L, A] at all sites, or [B, L, N, H] where A joins heads.

        Raises:
            ValueError: for activations of other lengths.
        """
        z = plus(jnp.einsum("...LA,LAZ->...Z", self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        return above(z, self.threshold)

    def decode(self, f: Float[AnyArray, "*B Z"]) -> Float[jax.Array, "*B L A"]:
        """Returns raw activations [B, L, A] at all sites, of latents [B, Z]."""
        return plus(jnp.einsum("...Z,ZLA->...LA", f, self.W_dec, precision="highest"), self.b_dec)
