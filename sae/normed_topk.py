"""The released TopK autoencoder of normalised tokens (OpenAI's, arXiv 2406.04093). A token's mean is subtracted and the
token is divided by its deviation before the encoder; both steps are undone after the decoder.

With the mean m over the A values of a token and s their standard deviation (over A - 1 degrees), OpenAI has z = the k
largest of max((x - m) / (s + 1e-5) W_enc + b_enc, 0) and x^ = (z W_dec + b_dec) s + m, without 1e-5 on the way out.
Here f = s z, in raw units: x^ = f W_dec + (s b_dec + m), so that a latent adds f W_dec to an activation, as in every
form. The sum in brackets depends on the token and not on its latents: it counts as the skip, which `decode` leaves out.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae.autoencoder import Info, Largest
from sae.released import AnyArray, Axes, Released, forms, ranked
from sae.topk import check_k, keep_largest

_EPSILON = 1e-5


@forms.register("NormedTopK")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NormedTopK(Released):
    """A TopK autoencoder that normalises each token, on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z].
        b_enc: [Z], added after the normalisation.
        W_dec: [Z, A].
        b_dec: [A], in normalised units.
        k: static; the most latents that a token has, 1 to Z.
        info: static; the model and the sites, or None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together, and for another k.

    Example:
        >>> eye = jnp.eye(3)
        >>> normed = sae.NormedTopK(eye, jnp.zeros(3), eye, jnp.zeros(3), k=1)
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

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z], in raw units, of raw activations [B, A]: all but the k largest above 0 are 0.

        Raises:
            ValueError: for activations of another length.
        """
        flat = self.joined(x)
        mean, deviation = _moments(flat)
        normed = (flat - mean) / (deviation + _EPSILON)
        z = jnp.matmul(normed, self.W_enc, precision="highest") + ranked(self.b_enc, flat)
        return deviation * keep_largest(jnp.maximum(z, 0.0), self.k)

    def decode(self, f: Float[AnyArray, "*B Z"]) -> Float[jax.Array, "*B A"]:
        """Returns what latents [B, Z] add to raw activations, [B, A]; the token's mean and deviation add the rest."""
        return jnp.matmul(f, self.W_dec, precision="highest")

    def __call__(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "..."]:
        """Returns the reconstruction [B, A] of raw activations [B, A]."""
        flat = self.joined(x)
        mean, deviation = _moments(flat)
        return (self.decode(self.encode(flat)) + deviation * ranked(self.b_dec, flat) + mean).reshape(jnp.shape(x))

    def shifted(self, shift: Float[AnyArray, " A"]) -> Self:
        """Raises ValueError: a shift of activations moves their means and deviations."""
        raise ValueError("an autoencoder of normalised tokens has no bias that a shift of activations goes into")

    def scaled(self, gain: Float[AnyArray, ""] | Float[AnyArray, " Z"]) -> Self:
        """Returns the autoencoder with its bias multiplied by a gain, [] or [Z]."""
        return dataclasses.replace(self, b_enc=gain * self.b_enc)


def _moments(x: AnyArray) -> tuple[jax.Array, jax.Array]:
    """Returns the means and deviations [B, 1] of tokens [B, A]."""
    return jnp.mean(x, axis=-1, keepdims=True), jnp.std(x, axis=-1, keepdims=True, ddof=1)
