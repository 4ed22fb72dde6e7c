"""Scaled units: what training divides activations by and subtracts from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae.store.source import Source


class Units(NamedTuple):
    """Of a site: activations become (x - centre) / scale; centre [A], scale a scalar, both float32."""

    centre: jax.Array
    scale: jax.Array


def units_of(source: Source, site: str, centre: bool, sites: int = 1) -> Units:
    """C = sqrt(E||x||^2), or sqrt(E||x - E[x]||^2) where the mean is subtracted; times the square root of the number of
    sites that are joined, so that what is joined has a mean squared norm of 1.

    Raises:
      ValueError: for a site that has the same vector everywhere.
    """
    squared, mean = source.mean_squared_norm(site), np.asarray(source.mean(site))
    if not centre:
        mean = np.zeros_like(mean)
    scale = np.sqrt(max(squared - float(mean @ mean), 0.0))
    if not scale > 0:
        raise ValueError(f"{site} is the same vector at every token of {source.name}: there is nothing to learn")
    return Units(np.asarray(mean, np.float32), np.float32(scale * np.sqrt(sites)))


def scaled(batch: dict[str, jax.Array], units: dict[str, Units], sites: tuple[str, ...]) -> jax.Array:
    """Raw activations [B, A] of some sites -> scaled ones, joined: [B, A of them all]."""
    parts = [(batch[site] - units[site].centre) / units[site].scale for site in sites]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
