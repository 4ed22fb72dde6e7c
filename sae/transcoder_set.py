"""The set of transcoders: one transcoder for each layer, whose latents read and write that layer alone.

f_l = z * 1[z > theta_l] with z = x_l W_enc_l + b_enc_l, and y^_l = f_l W_dec_l + b_dec_l (+ x_l W_skip_l), as in
arXiv 2406.11944 and, with the skip, arXiv 2501.18823. Axis letters: B any leading axes, L layers, A dim of the
activation, Zl latents of a layer.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from sae.autoencoder import JumpReLU
from sae.cross_layer import OfLayers
from sae.released import AnyArray, Axes, forms, plus


@forms.register("TranscoderSet")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TranscoderSet(OfLayers):
    """JumpReLU transcoders of several layers, on raw activations; a pytree. It has L * Zl latents, the first layer's
    first.

    Attributes:
        W_enc: [L, A, Zl].
        b_enc: [L, Zl].
        W_dec: [L, Zl, A].
        b_dec: [L, A].
        threshold: [L, Zl], theta, at least 0.
        W_skip: [L, A, A], from each layer's input to its output, or None.
        info: static; `info.site` and `info.site_out` have the sites in the order of the layers.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> one, zero = jnp.ones((2, 1, 1)), jnp.zeros((2, 1))
        >>> sae.TranscoderSet(one, zero, 2 * one, zero, zero)(jnp.float32([[3], [5]])).tolist()
        [[6.0], [10.0]]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("L", "A", "Zl"),
        "b_enc": ("L", "Zl"),
        "W_dec": ("L", "Zl", "A'"),
        "b_dec": ("L", "A'"),
        "threshold": ("L", "Zl"),
        "W_skip": ("L", "A", "A'"),
    }
    noun: ClassVar[str] = "set of transcoders"

    def decode(self, f: Float[AnyArray, "*B Z"]) -> Float[jax.Array, "*B L A"]:
        """Returns the outputs [B, L, A] at all layers, without the skip, of latents [B, L * Zl]."""
        of_layers = f.reshape(*f.shape[:-1], *self.W_dec.shape[:2])
        return plus(jnp.einsum("...LZ,LZA->...LA", of_layers, self.W_dec, precision="highest"), self.b_dec)

    def rows(self, latents: Integer[AnyArray, " K"]) -> Float[AnyArray, "K L A"]:
        """Returns what latents [K] write to each layer, [K, L, A]: zeros at all layers but their own."""
        L, width, A = self.W_dec.shape
        one_hot = jax.nn.one_hot(latents // width, L, dtype=self.W_dec.dtype)
        return one_hot[:, :, None] * self.W_dec.reshape(-1, A)[latents][:, None]

    def layer(self, index: int) -> JumpReLU:
        """Returns the transcoder of one layer.

        Args:
            index: the layer's place in the set, 0 to L - 1.

        Raises:
            ValueError: for another index.

        Example:
            >>> one, zero = jnp.ones((2, 1, 1)), jnp.zeros((2, 1))
            >>> sae.TranscoderSet(one, zero, 2 * one, zero, zero).layer(1)(jnp.float32([5])).tolist()
            [10.0]
        """
        if not 0 <= index < self.site_count:
            raise ValueError(f"the layers of this set are 0 to {self.site_count - 1}, got {index}")
        info = self.info
        if info is not None:
            info = dataclasses.replace(info, site=info.site[index], site_out=info.site_out[index])
        arrays: dict[str, Any] = {name: array[index] for name, array in self.arrays().items()}
        return JumpReLU(**arrays, info=info)
