"""The released TopK autoencoder of normalised tokens: each token has its mean taken off and is divided by its deviation
before the encoder, and gets them back after the decoder (OpenAI's, arXiv 2406.04093).

With the mean m over the A values of a token and s their standard deviation (over A - 1 degrees), theirs is z = the k
largest of max((x - m) / (s + 1e-5) W_enc + b_enc, 0) and x^ = (z W_dec + b_dec) s + m, without 1e-5 on the way out.
Here f = s z, in raw units: x^ = f W_dec + (s b_dec + m), so that what a latent adds to an activation is f W_dec, as of
every form. What is in the brackets depends on the token and not on its latents: it is counted as the skip, which
`decode` leaves out.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from sae.autoencoder import Info, Largest
from sae.released import Axes, Released, forms
from sae.topk import check_k, keep_largest

_EPSILON = 1e-5


@forms.register("NormedTopK")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NormedTopK(Released):
    """A TopK autoencoder that normalises each token, on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z]. b_enc: [Z], added after the normalisation. W_dec: [Z, A]. b_dec: [A], in normalised units.
        k: static; how many latents a token has at most, 1 to Z.
        info: static; None where it is not known.
        largest: static; the largest activation of each latent, None where nobody has recorded it.

    Raises:
        ValueError: when made with arrays whose shapes do not belong together, or with another k.

    Example:
        >>> eye = jnp.eye(3)
        >>> normed = NormedTopK(eye, jnp.zeros(3), eye, jnp.zeros(3), k=1)
        >>> x = jnp.float32([1, 2, 6])
        >>> normed.encode(x).round().tolist(), normed(x).round().tolist()
        ([0.0, 0.0, 3.0], [3.0, 3.0, 6.0])
    """

    axes: ClassVar[Axes] = {"W_enc": ("A", "Z"), "b_enc": ("Z",), "W_dec": ("Z", "A"), "b_dec": ("A",)}
    numbers: ClassVar[tuple[str, ...]] = ("k",)
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    k: int = dataclasses.field(metadata={"static": True})
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        check_k(self)

    def encode(self, x: jax.Array) -> jax.Array:
        """Raw activations [B, A] -> latents [B, Z] in raw units, zero but for the k largest above 0.

        Raises:
            ValueError: for activations of another length.
        """
        flat = self.joined(x)
        mean, deviation = _moments(flat)
        normed = (flat - mean) / (deviation + _EPSILON)
        z = jnp.matmul(normed, self.W_enc, precision="highest") + self.b_enc
        return deviation * keep_largest(jnp.maximum(z, 0.0), self.k)

    def decode(self, f: jax.Array) -> jax.Array:
        """Latents [B, Z] -> what they add to raw activations, [B, A], without what the token's mean and deviation
        add."""
        return jnp.matmul(f, self.W_dec, precision="highest")

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [B, A] of [B, A]."""
        flat = self.joined(x)
        mean, deviation = _moments(flat)
        return (self.decode(self.encode(flat)) + deviation * self.b_dec + mean).reshape(jnp.shape(x))

    def shifted(self, shift: jax.Array) -> Self:
        """Raises ValueError: a shift of activations moves their means and deviations."""
        raise ValueError("an autoencoder of normalised tokens has no bias that a shift of activations goes into")

    def scaled(self, gain: jax.Array) -> Self:
        """Returns it with its bias multiplied by a gain, [] or [Z]."""
        return dataclasses.replace(self, b_enc=gain * self.b_enc)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means and deviations [B, 1] of tokens [B, A]."""
    return jnp.mean(x, axis=-1, keepdims=True), jnp.std(x, axis=-1, keepdims=True, ddof=1)
