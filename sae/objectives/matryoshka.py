"""Matryoshka prefixes: the first latents reconstruct on their own as well (arXiv 2503.17547)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sae.objectives.base import Objective, base, register
from sae.parts import Sizes

BANDS = 32  # prefixes are whole numbers of 32nds of the latents


@register("matryoshka")
@dataclasses.dataclass(frozen=True)
class Matryoshka(Objective):
    """The mean of the errors of several prefixes of the latents and of all of them.

    Latent z belongs to band z % BANDS while it trains, so that each part of a mesh has as many of each band; `release`
    sorts them, and prefixes become prefixes.

    Attributes:
      matryoshka: prefixes of the latents, as rising fractions k/32 of the width.
      precision: of matrix products on accelerators; see `Reconstruction`.
    """

    matryoshka: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 4, 1 / 2)
    precision: str = "highest"

    def check(self) -> None:
        super().check()
        if bad := [p for p in self.matryoshka if not 0 < p < 1 or p * BANDS != int(p * BANDS)]:
            raise ValueError(
                f"Matryoshka: matryoshka takes fractions k/{BANDS} of the width, k from 1 to {BANDS - 1}; got {bad[0]}"
            )
        if list(self.matryoshka) != sorted(set(self.matryoshka)):
            raise ValueError(f"Matryoshka: matryoshka wants rising fractions, got {self.matryoshka}")

    def check_sizes(self, sizes: Sizes) -> None:
        if self.matryoshka and sizes.width % BANDS:
            raise ValueError(f"Matryoshka: the width must be a multiple of {BANDS}, got {sizes.width}")

    def errors(self, params: Any, f: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        start_from = base(params, x)
        f = f.reshape(len(f), -1, BANDS)
        W_dec = params.W_dec.reshape(-1, BANDS, y.shape[-1])
        ends = [int(p * BANDS) for p in self.matryoshka] + [BANDS]
        partial, errors = 0.0, []
        for start, end in zip([0, *ends], ends, strict=False):
            partial += jnp.einsum("Bzk,zkA->BA", f[:, :, start:end], W_dec[:, start:end])
            errors.append(jnp.square(partial + start_from - y).sum(axis=-1).mean())
        return (errors[-1], *errors[:-1])

    def release(self, autoencoder: Any) -> Any:
        order = jnp.arange(autoencoder.width).reshape(-1, BANDS).T.reshape(-1)
        return autoencoder.reordered(order)
