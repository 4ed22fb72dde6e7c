"""The released TopK autoencoder: the k largest activations of a token are kept (arXiv 2406.04093).

f = the k largest of max(z, 0) with z = x W_enc + b_enc, and x^ = f W_dec + b_dec. Axis letters: B any leading axes, A
dim of the activation, Z latents.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae.autoencoder import Info, Largest
from sae.fields import check_fields
from sae.released import AnyArray, Axes, Released, forms, plus


@forms.register("TopK")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TopK(Released):
    """A TopK autoencoder on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z].
        b_enc: [Z].
        W_dec: [Z, A].
        b_dec: [A].
        k: static; the most latents that a token has, 1 to Z.
        W_skip: [A, A], the affine skip of some transcoders, or None.
        info: static; the model and the sites, or None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together, and for another k.

    Example:
        >>> eye = jnp.eye(3)
        >>> sae.TopK(eye, jnp.zeros(3), eye, jnp.zeros(3), k=1).encode(jnp.float32([1, 3, 2])).tolist()
        [0.0, 3.0, 0.0]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("A", "Z"),
        "b_enc": ("Z",),
        "W_dec": ("Z", "A'"),
        "b_dec": ("A'",),
        "W_skip": ("A", "A'"),
    }
    numbers: ClassVar[tuple[str, ...]] = ("k",)
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    k: int = dataclasses.field(metadata={"static": True})
    W_skip: jax.Array | None = None
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        check_k(self)

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z] of raw activations [B, A]: all but the k largest above 0 are 0.

        Raises:
            ValueError: for activations of another length.
        """
        z = plus(jnp.matmul(self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        return keep_largest(jnp.maximum(z, 0.0), self.k)


def check_k(autoencoder: Any) -> None:
    """Raises ValueError for a k that is no whole number from 1 to the width, and for shapes that do not belong
    together."""
    check_fields(autoencoder, ("k",))
    autoencoder.check_shapes()
    width = autoencoder.width if getattr(autoencoder.W_enc, "shape", ()) else autoencoder.k
    if not 1 <= autoencoder.k <= width:
        raise ValueError(f"{type(autoencoder).__name__}: k is from 1 to the width, {width:,}, got {autoencoder.k}")


def keep_largest(f: jax.Array, k: int) -> jax.Array:
    """Returns latents [B, Z] with all but the k largest set to 0; of equal ones the first are kept."""
    values, latents = jax.lax.top_k(f, k)
    return jnp.put_along_axis(jnp.zeros_like(f), latents, values, axis=-1, inplace=False)
