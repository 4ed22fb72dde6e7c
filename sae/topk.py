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
        W_enc: [A, Z]. b_enc: [Z]. W_dec: [Z, A]. b_dec: [A].
        k: static; how many latents a token has at most, 1 to Z.
        W_skip: [A, A], the affine skip of some transcoders, or None.
        info: static; None where it is not known.
        largest: static; the largest activation of each latent, None where nobody has recorded it.

    Raises:
        ValueError: when made with arrays whose shapes do not belong together, or with another k.

    Example:
        >>> eye = jnp.eye(3)
        >>> TopK(eye, jnp.zeros(3), eye, jnp.zeros(3), k=1).encode(jnp.float32([1, 3, 2])).tolist()
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
        """Raw activations [B, A] -> latents [B, Z], zero but for the k largest above 0.

        Raises:
            ValueError: for activations of another length.
        """
        z = plus(jnp.matmul(self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        return keep_largest(jnp.maximum(z, 0.0), self.k)


def check_k(autoencoder: Any) -> None:
    """Raises ValueError for a form with k, a whole number from 1 to its width, where that or its arrays' shapes are
    otherwise."""
    check_fields(autoencoder, ("k",))
    autoencoder.check_shapes()
    width = autoencoder.width if getattr(autoencoder.W_enc, "shape", ()) else autoencoder.k
    if not 1 <= autoencoder.k <= width:
        raise ValueError(f"{type(autoencoder).__name__}: k is from 1 to the width, {width:,}, got {autoencoder.k}")


def keep_largest(f: jax.Array, k: int) -> jax.Array:
    """Latents [B, Z] with all but the k largest set to zero; of equal ones the first are kept."""
    values, latents = jax.lax.top_k(f, k)
    return jnp.put_along_axis(jnp.zeros_like(f), latents, values, axis=-1, inplace=False)
