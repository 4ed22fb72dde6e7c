"""From trained parameters in scaled units to an autoencoder of raw activations."""

import jax
import jax.numpy as jnp

from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.recipes import BANDS, TrainConfig
from sae.trainer.objective import Params
from sae.trainer.schedules import with_theta
from sae.trainer.units import Units


def release(params: Params, config: TrainConfig, units: dict[str, Units]) -> JumpReLU | Crosscoder:
    """The autoencoder of raw activations, without `info`; jit and shard it as its caller likes.

    Scales and centres are folded into the parameters: b_enc' = C b_enc - (mu + C b_dec) W_enc, b_dec' = C b_dec + mu,
    theta' = C theta, weights as they are (arXiv 2408.05147, section 3, with the mean mu in addition). What it makes of
    x is C times what the trained one makes of (x - mu) / C, plus mu. A transcoder has two scales; its latents are in
    units of what comes out, so that decoder rows keep their unit norm. So are a crosscoder's, whose sites have scales
    of their own. Matryoshka's bands are sorted, so that prefixes are prefixes.
    """
    params = with_theta(params, config)
    sites = len(config.sites)
    with jax.default_matmul_precision("highest"):
        bias = params.b_dec if not config.transcodes else 0.0
        centre_in, scale_in = _joined(units, config.sites, params.W_enc.shape[0])
        centre_out, scale_out = _joined(units, config.sites_out, params.W_dec.shape[1])
        W_dec, W_skip = params.W_dec, params.W_skip
        if sites == 1:
            gain = units[config.sites_out[0]].scale
        else:
            W_dec = W_dec * scale_out
            gain = jnp.linalg.norm(W_dec, axis=-1)
            W_dec = W_dec / gain[:, None]
        # An autoencoder of one site has one scale, and weights to the bit as they were trained.
        W_enc = params.W_enc if sites == 1 and not config.transcodes else params.W_enc / scale_in[:, None] * gain
        b_enc = gain * (params.b_enc - (centre_in / scale_in + bias) @ params.W_enc)
        b_dec = scale_out * params.b_dec + centre_out
        if W_skip is not None:
            W_skip = W_skip / scale_in[:, None] * scale_out
            b_dec = b_dec - centre_in @ W_skip
        threshold = gain * params.threshold
    if config.matryoshka:
        order = jnp.arange(config.width).reshape(-1, BANDS).T.reshape(-1)
        W_enc, b_enc, W_dec, threshold = W_enc[:, order], b_enc[order], W_dec[order], threshold[order]
    if sites == 1:
        return JumpReLU(W_enc, b_enc, W_dec, b_dec, threshold, W_skip)
    Z = config.width
    return Crosscoder(
        W_enc.reshape(sites, -1, Z), b_enc, W_dec.reshape(Z, sites, -1), b_dec.reshape(sites, -1), threshold
    )


def _joined(units: dict[str, Units], sites: tuple[str, ...], width: int) -> tuple[jax.Array, jax.Array]:
    """Centres and scales of the sites for each dimension of them all, [A] each."""
    centre = jnp.concatenate([units[site].centre for site in sites])
    scale = jnp.repeat(jnp.stack([units[site].scale for site in sites]), width // len(sites))
    return centre, scale
