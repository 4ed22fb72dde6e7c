"""The Equinox transformer beside this file as a language model: `mishax_lite.modules` taps its modules by path."""

import equinox as eqx

import mishax_lite
import sae
from tests.sae.models.equinox_transformer import Transformer


def adapt(model: Transformer, tokenizer) -> sae.AdaptedModel:
    """Makes a language model of a transformer."""
    params, static = eqx.partition(mishax_lite.modules(model), eqx.is_array)
    D, V = model.head.weight.shape
    F, (N, H, _) = model.blocks[0].mlp.down.weight.shape[0], model.blocks[0].attention.out.shape
    return sae.AdaptedModel(
        name="equinox",
        params=params,
        config=repr(static),
        tokenizer=tokenizer,
        vocab_size=V,
        layers=len(model.blocks),
        kinds=(
            sae.SiteKind("embed", (D,), writes=True, in_layers=False),
            sae.SiteKind(
                "z",
                (N, H),
                path="blocks/{}/attention/mix",
                writes=lambda params, layer: params.blocks[layer].attention.out,
            ),
            sae.SiteKind("attn_out", (D,), path="blocks/{}/attention", writes=True),
            sae.SiteKind("mlp_pre", (F,), path="blocks/{}/mlp/up"),
            sae.SiteKind("mlp_out", (D,), path="blocks/{}/mlp", writes=True),
            sae.SiteKind("resid_post", (D,), path="blocks/{}", writes=True),
        ),
        forward=lambda params, tokens: eqx.combine(params, static)(tokens),
        readout=lambda params, residual: params.head(params.norm(residual)),
        direct=lambda params, vectors: (
            (vectors - vectors.mean(-1, keepdims=True)) * params.norm.gain @ params.head.weight
        ),
    )
