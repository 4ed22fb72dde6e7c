"""The crosscoder: one set of latents for several sites at once, such as the residual stream after several layers.

f = z * 1[z > theta] with z = sum_l x_l W_enc_l + b_enc, and x^_l = f W_dec_l + b_dec_l. Axis letters: B any leading
axes, L sites, A width of the activation at each, Z latents.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sae.autoencoder import Info


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crosscoder:
    """A JumpReLU crosscoder on raw activations; a pytree.

    Attributes:
      W_enc: [L, A, Z]. b_enc: [Z]. W_dec: [Z, L, A]; of each latent, the rows of all sites together have unit norm.
      b_dec: [L, A]. threshold: [Z], theta, at least 0.
      info: static; `info.site` has the sites in their order. None where it is not known.

    Raises:
      ValueError: when made with arrays whose shapes do not belong together.
    """

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        arrays = [getattr(self, name) for name in names]
        if not all(hasattr(array, "shape") for array in arrays):
            return  # a transformation's placeholders
        if any(array.ndim != rank for array, rank in zip(arrays, (3, 1, 3, 2, 1), strict=True)):
            return  # under vmap or stacked: the leading axes are somebody else's
        L, A, Z = self.W_enc.shape
        want = [(L, A, Z), (Z,), (Z, L, A), (L, A), (Z,)]
        if (got := [tuple(array.shape) for array in arrays]) != want:
            raise ValueError(
                f"these arrays make no crosscoder: expected {dict(zip(names, want, strict=True))}, "
                f"got {dict(zip(names, got, strict=True))}"
            )

    @property
    def width(self) -> int:
        """Z, the number of latents."""
        return self.W_enc.shape[-1]

    def encode(self, x: jax.Array) -> jax.Array:
        """Raw activations [B, L, A] of all sites -> latents [B, Z]."""
        z = jnp.einsum("...LA,LAZ->...Z", x, self.W_enc, precision="highest") + self.b_enc
        return jnp.where(z > self.threshold, z, 0.0)

    def decode(self, f: jax.Array) -> jax.Array:
        """Latents [B, Z] -> raw activations [B, L, A] of all sites."""
        return jnp.einsum("...Z,ZLA->...LA", f, self.W_dec, precision="highest") + self.b_dec

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [B, L, A] of [B, L, A]."""
        return self.decode(self.encode(x))
