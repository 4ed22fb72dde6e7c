"""The error of the reconstruction from all latents."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sae.objectives.base import Objective, base, register


@register("reconstruction")
@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    """||y - y^||^2 a token (arXiv 2408.05147, section 2.2).

    Attributes:
      precision: of matrix products on accelerators: "highest" is full float32, in which a window of width bandwidth is
        met; "default" the accelerator's fastest.
    """

    precision: str = "highest"

    def errors(self, params: Any, f: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        return (jnp.square(f @ params.W_dec + base(params, x) - y).sum(axis=-1).mean(),)
