"""Which tokens count: text, without the attention sinks that training left out, as `Info.training` records them."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import gemma
from sae.autoencoder import Info
from sae.capturing import activations_at
from sae.text import is_text

# ((site, the largest norm of a token that is no sink there), …)
Sinks = tuple[tuple[str, float], ...]


def sinks_of(info: Info | None) -> Sinks:
    """The sinks that an autoencoder's training left out; none where it does not say so."""
    if info is None:
        return ()
    recorded = json.loads(info.training).get("left_out", {}).get("sink_norms", {})
    return tuple(sorted((site, float(norm)) for site, norm in recorded.items()))


def counted(model: gemma.Model, tokens: np.ndarray, sinks: Sinks) -> np.ndarray:
    """[B, T] bool for tokens [B, T]. With sinks to find, the model is run as deep as they are."""
    text = is_text(tokens, model.tokenizer.special_ids)
    if not sinks:
        return text
    captured = activations_at(model, jnp.asarray(tokens), tuple(site for site, _ in sinks))
    norms = jax.device_get({site: jnp.linalg.norm(captured[site], axis=-1) for site, _ in sinks})
    for site, largest in sinks:
        text = text & (norms[site] <= largest)
    return text
