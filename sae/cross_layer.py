"""The cross-layer transcoder: latents of each layer that write to that layer and to all later ones.

f_l = z * 1[z > theta_l] with z = x_l W_enc_l + b_enc_l, and y^_t = sum over l <= t of f_l W_dec_l,t + b_dec_t (+ x_t
W_skip_t), as in transformer-circuits.pub/2025/attribution-graphs. A crosscoder whose latents read one layer each has
the same form. Axis letters: B any leading axes, L layers, A dim of the activation, Zl latents of a layer.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from sae.autoencoder import Info, Largest
from sae.released import AnyArray, Axes, Released, above, forms, plus


@dataclasses.dataclass(frozen=True, repr=False)
class OfLayers(Released):
    """The base of cross-layer transcoders and sets of transcoders: JumpReLU latents that read one layer each.

    `W_enc` is [L, A, Zl], `b_enc` and `threshold` are [L, Zl]. The first layer's latents come first.
    """

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    W_skip: jax.Array | None = None
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    @property
    def width(self) -> int:
        """L * Zl, the latents of all layers."""
        return self.W_enc.shape[-3] * self.W_enc.shape[-1]

    @property
    def thresholds(self) -> Float[AnyArray, " Z"]:
        """[L * Zl], theta."""
        return self.threshold.reshape(-1)

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, L * Zl] of raw activations [B, L, A] at all layers.

        Raises:
            ValueError: for activations of other lengths.
        """
        z = plus(jnp.einsum("...LA,LAZ->...LZ", self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        f = above(z, self.threshold)
        return f.reshape(*f.shape[:-2], -1)

    def __call__(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "..."]:
        """Returns the outputs [B, L, A] at all layers, of inputs [B, L, A]."""
        flat = self.joined(x)
        out = self.decode(self.encode(flat))
        if self.W_skip is not None:
            out = out + jnp.einsum("...LA,LAC->...LC", flat, self.W_skip, precision="highest")
        return out.reshape(jnp.shape(x)) if out.shape == flat.shape else out

    def reordered(self, order: Integer[AnyArray, " Z"]) -> Self:
        """Raises ValueError: a latent belongs to its layer."""
        raise ValueError(f"the latents of a {self.noun} belong to their layers, and have no other order")


@forms.register("CrossLayerTranscoder")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class CrossLayerTranscoder(OfLayers):
    """A JumpReLU cross-layer transcoder on raw activations; a pytree. It has L * Zl latents, the first layer's first.

    Attributes:
        W_enc: [L, A, Zl].
        b_enc: [L, Zl].
        W_dec: [L, Zl, L, A]: the layer that a latent reads, the latent, the layer that it writes to. Zeros where that
            is an earlier layer.
        b_dec: [L, A].
        threshold: [L, Zl], theta, at least 0.
        W_skip: [L, A, A], from each layer's input to the same layer's output, or None.
        info: static; `info.site` and `info.site_out` have the sites in the order of the layers.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> W_dec = jnp.zeros((2, 1, 2, 1)).at[0, 0].set(1.0)  # the first layer's latent writes to both
        >>> one, zero = jnp.ones((2, 1, 1)), jnp.zeros((2, 1))
        >>> sae.CrossLayerTranscoder(one, zero, W_dec, zero, zero)(jnp.float32([[3], [5]])).tolist()
        [[3.0], [3.0]]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("L", "A", "Zl"),
        "b_enc": ("L", "Zl"),
        "W_dec": ("L", "Zl", "L", "A'"),
        "b_dec": ("L", "A'"),
        "threshold": ("L", "Zl"),
        "W_skip": ("L", "A", "A'"),
    }
    noun: ClassVar[str] = "cross-layer transcoder"

    def decode(self, f: Float[AnyArray, "*B Z"]) -> Float[jax.Array, "*B L A"]:
        """Returns the outputs [B, L, A] at all layers, without the skip, of latents [B, L * Zl]."""
        of_layers = f.reshape(*f.shape[:-1], *self.W_dec.shape[:2])
        return plus(jnp.einsum("...LZ,LZTA->...TA", of_layers, self.W_dec, precision="highest"), self.b_dec)

    def rows(self, latents: Integer[AnyArray, " K"]) -> Float[AnyArray, "K L A"]:
        """Returns what latents [K] write to each layer, [K, L, A]."""
        return self.W_dec.reshape(-1, *self.W_dec.shape[-2:])[latents]
