"""How the weights of an autoencoder begin."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sae.parts import Part, Sizes
from sae.registry import Registry

INITIALISATIONS: Registry = Registry("initialisation")
register = INITIALISATIONS.register


@register("tied")
@dataclasses.dataclass(frozen=True)
class Initialisation(Part):
    """Tied weights: W_dec is He-uniform, its rows scaled to unit norm, and W_enc is its transpose (arXiv 2408.05147,
    section 3). For transcoders, whose dims may differ, W_enc is drawn separately in the same way.

    Attributes:
        encoder_init: the norm of each latent's encoder at the start, where its decoder's is 1.
    """

    registry: ClassVar[Registry] = INITIALISATIONS

    encoder_init: float = 1.0

    def check(self) -> None:
        self._positive("encoder_init")

    def draw(self, key: jax.Array, dims: tuple[int, int], sizes: Sizes) -> tuple[jax.Array, jax.Array]:
        """Returns W_enc [A_in, Z] and W_dec [Z, A_out], float32."""

        def rows(key, A):
            he_uniform = jax.nn.initializers.he_uniform(in_axis=-1, out_axis=-2)
            W = he_uniform(key, (sizes.width, A), jnp.float32)
            return W / jnp.linalg.norm(W, axis=-1, keepdims=True)

        W_dec = rows(key, dims[1])
        W_enc = rows(jax.random.fold_in(key, 1), dims[0]).T if sizes.transcodes else W_dec.T
        return self.encoder_init * W_enc, W_dec
