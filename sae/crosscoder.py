"""The crosscoder: one set of latents for several sites at once, such as the residual stream after several layers.

f = z * 1[z > theta] with z = sum_l x_l W_enc_l + b_enc, and x^_l = f W_dec_l + b_dec_l. Axis letters: B any leading
axes, L sites, A width of the activation at each, Z latents.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sae import showing
from sae.autoencoder import Info, JumpReLU, Largest, check_largest, with_axes_joined

_NAMES, _RANKS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), (3, 1, 3, 2, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crosscoder:
    """A JumpReLU crosscoder on raw activations; a pytree.

    Attributes:
      W_enc: [L, A, Z]. b_enc: [Z]. W_dec: [Z, L, A]; of each latent, the rows of all sites together have unit norm.
      b_dec: [L, A]. threshold: [Z], theta, at least 0.
      info: static; `info.site` has the sites in their order. None where it is not known.
      largest: static; the largest activation of each latent, None where nobody has recorded it.

    Raises:
      ValueError: when made with arrays whose shapes do not belong together.
    """

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        arrays = [getattr(self, name) for name in _NAMES]
        if not all(hasattr(array, "shape") for array in arrays):
            return  # a transformation's placeholders
        if any(array.ndim != rank for array, rank in zip(arrays, _RANKS, strict=True)):
            return  # under vmap or stacked: the leading axes are somebody else's
        L, A, Z = self.W_enc.shape
        want = [(L, A, Z), (Z,), (Z, L, A), (L, A), (Z,)]
        if (got := [tuple(array.shape) for array in arrays]) != want:
            raise ValueError(
                f"these arrays make no crosscoder: expected {dict(zip(_NAMES, want, strict=True))}, "
                f"got {dict(zip(_NAMES, got, strict=True))}"
            )
        check_largest(self.largest, Z)

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

    @property
    def width(self) -> int:
        """Z, the number of latents."""
        return self.W_enc.shape[-1]

    def __repr__(self) -> str:
        return showing.autoencoder(self, _NAMES, _RANKS)

    def encode(self, x: jax.Array) -> jax.Array:
        """Raw activations [B, L, A] of all sites -> latents [B, Z]; [B, L, N, H] where A is the heads joined.

        Raises:
          ValueError: for activations of other lengths.
        """
        x = with_axes_joined(x, self.W_enc.shape[-3:-1], self.info)
        z = jnp.einsum("...LA,LAZ->...Z", x, self.W_enc, precision="highest") + self.b_enc
        return jnp.where(z > self.threshold, z, 0.0)

    def decode(self, f: jax.Array) -> jax.Array:
        """Latents [B, Z] -> raw activations [B, L, A] of all sites."""
        return jnp.einsum("...Z,ZLA->...LA", f, self.W_dec, precision="highest") + self.b_dec

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [B, L, A] of [B, L, A]. Heads that were joined are apart again."""
        flat = with_axes_joined(x, self.W_enc.shape[-3:-1], self.info)
        out = self.decode(self.encode(flat))
        return out.reshape(jnp.shape(x)) if out.shape == flat.shape else out
