"""The units of training: the scale and the mean of inputs, and how both are folded into the released autoencoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae.crosscoder import Crosscoder
from sae.parts import Part
from sae.registry import Registry
from sae.released import ranked
from sae.store.source import Source

INPUTS: Registry = Registry("treatment of inputs")
register = INPUTS.register


class Units(NamedTuple):
    """The units of a site: activations become (x - centre) / scale.

    Attributes:
        centre: float32 [A].
        scale: float32, a scalar.
    """

    centre: Any
    scale: Any


@register("scaled")
@dataclasses.dataclass(frozen=True)
class Inputs(Part):
    """The scaling of inputs: activations are divided by a constant C so that their mean squared norm is 1 (arXiv
    2408.05147, section 3).

    Attributes:
        centre: whether to subtract the mean first; it goes into the biases of the released autoencoder.
    """

    registry: ClassVar[Registry] = INPUTS

    centre: bool = False

    def units(self, source: Source, site: str, sites: int = 1) -> Units:
        """Returns the units of a site.

        C is sqrt(E||x||^2), or sqrt(E||x - E[x]||^2) where the mean is subtracted, times the square root of the number
        of joined sites, so that the joined activations have a mean squared norm of 1.

        Args:
            source: gives the mean and the mean squared norm.
            site: the site.
            sites: the number of sites that are joined.

        Raises:
            ValueError: for a site that has the same vector at every token.
        """
        squared, mean = source.mean_squared_norm(site), np.asarray(source.mean(site))
        if not self.centre:
            mean = np.zeros_like(mean)
        scale = np.sqrt(max(squared - float(mean @ mean), 0.0))
        if not scale > 0:
            raise ValueError(f"{site} is the same vector at every token of {source.name}: there is nothing to learn")
        return Units(np.asarray(mean, np.float32), np.float32(scale * np.sqrt(sites)))

    def scaled(self, batch: Mapping[str, jax.Array], units: Mapping[str, Units], sites: tuple[str, ...]) -> jax.Array:
        """Returns raw activations [B, A] of several sites scaled and joined along A."""
        parts = [(batch[site] - units[site].centre[None]) / units[site].scale for site in sites]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def fold(self, autoencoder, units: Mapping[str, Units], sites: tuple[str, ...], sites_out: tuple[str, ...]):
        """Returns the autoencoder of raw activations for an autoencoder of scaled ones; a `Crosscoder` for several
        sites.

        b_enc' = C b_enc - mu W_enc, b_dec' = C b_dec + mu, theta' = C theta, with unchanged weights (arXiv 2408.05147,
        section 3, with the mean mu in addition). Its output for x is mu plus C times the trained one's for (x - mu) /
        C. A transcoder has two scales; its latents are in units of the output, so that decoder rows keep their unit
        norm. A crosscoder's latents are too, and its sites have scales of their own.

        Args:
            autoencoder: a released form that reads one site, such as `sae.JumpReLU`; several sites are joined along A.
            units: the units of each site.
            sites: the input sites.
            sites_out: the output sites.
        """
        W_enc, W_dec = autoencoder.W_enc, autoencoder.W_dec
        W_skip = getattr(autoencoder, "W_skip", None)
        centre_in, scale_in = _joined(units, sites, W_enc.shape[0])
        centre_out, scale_out = _joined(units, sites_out, W_dec.shape[1])
        if len(sites) == 1:
            gain = units[sites_out[0]].scale
        else:
            W_dec = W_dec * scale_out[None]
            gain = jnp.linalg.norm(W_dec, axis=-1)
            W_dec = W_dec / gain[:, None]
        # An autoencoder of one site has one scale, so its weights stay as trained, to the bit.
        same = len(sites) == 1 and sites == sites_out
        changed = {"W_dec": W_dec, "b_dec": scale_out * autoencoder.b_dec + centre_out}
        if W_skip is not None:
            changed["W_skip"] = W_skip / scale_in[:, None] * scale_out[None]
            changed["b_dec"] -= jnp.matmul(centre_in, changed["W_skip"], precision="highest")
        if not same:
            changed["W_enc"] = W_enc / scale_in[:, None] * ranked(gain, W_enc)
        folded = dataclasses.replace(autoencoder.shifted(centre_in / scale_in).scaled(gain), **changed)
        return folded if len(sites) == 1 else Crosscoder.of(folded, len(sites))


def _joined(units: Mapping[str, Units], sites: tuple[str, ...], width: int) -> tuple[jax.Array, jax.Array]:
    """Returns the centres and scales of all sites, joined: [A] each."""
    centre = jnp.concatenate([units[site].centre for site in sites])
    scale = jnp.repeat(jnp.stack([units[site].scale for site in sites]), width // len(sites))
    return centre, scale
