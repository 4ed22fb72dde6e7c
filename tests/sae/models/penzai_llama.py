"""Penzai's Llama-like transformer as a language model: taps are layers of Penzai's own kind, put between its layers."""

import dataclasses

from penzai import pz
from penzai.models.transformer.variants.llamalike_common import LlamalikeTransformerConfig

import mishax_lite
import sae

HEADS = ("head_groups", "query_heads")


@pz.pytree_dataclass
class Tap(pz.nn.Layer):
    """A layer that names what passes through it."""

    name: str = dataclasses.field(metadata={"pytree_node": False})
    axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value, **_):
        axes = ("batch", *self.axes)
        return pz.nx.wrap(mishax_lite.tap(self.name, value.unwrap(*axes)), *axes)


def tapped(block, layer: int):
    """A block with taps between its layers."""
    tap = lambda kind, *axes: Tap(f"layer_{layer}/{kind}", axes or ("seq", "embedding"))  # noqa: E731
    chain = pz.nn.Sequential
    (norm_1, attention), (norm_2, mlp) = (residual.delta.sublayers for residual in block.sublayers)
    mix, project = attention.attn_value_to_output.sublayers
    attention = dataclasses.replace(
        attention,
        query_key_to_attn=chain([attention.query_key_to_attn, tap("attn_pattern", *HEADS, "seq", "kv_seq")]),
        attn_value_to_output=chain([mix, tap("attn_z", "seq", *HEADS, "projection"), project]),
    )
    first = pz.nn.Residual(chain([norm_1, attention, tap("attn_out")]))
    second = pz.nn.Residual(chain([norm_2, mlp, tap("mlp_out")]))
    return chain([first, tap("resid_mid"), second, tap("resid_post")])


def adapt(transformer, config: LlamalikeTransformerConfig, tokenizer) -> sae.AdaptedModel:
    """Makes a language model of a transformer with several head groups, untied embeddings and no softcap."""
    embed, *blocks, norm, head = transformer.body.sublayers
    body = [embed, Tap("embed", ("seq", "embedding")), *map(tapped, blocks, range(len(blocks))), norm, head]
    model, variables = pz.unbind_params(dataclasses.replace(transformer, body=pz.nn.Sequential(body)), freeze=True)
    last, _ = pz.unbind_params(pz.nn.Sequential([norm, head]))

    def forward(params, tokens):
        logits = pz.bind_variables(model, params.values())(pz.nx.wrap(tokens, "batch", "seq"))
        return logits.unwrap("batch", "seq", "vocabulary")

    def readout(params, residual):
        logits = pz.bind_variables(last, params.values(), allow_unused=True)(pz.nx.wrap(residual, "rows", "embedding"))
        return logits.unwrap("rows", "vocabulary")

    def weights(params, of, *axes):
        return params[f"transformer/{of}.weights"].value.unwrap(*axes)

    def z_out(params, layer):
        return weights(params, f"block_{layer}/attention/output", *HEADS, "projection", "embedding")

    def direct(params, vectors):
        scaled = vectors * weights(params, "final_norm/scale", "embedding")
        return scaled @ weights(params, "lm_head", "embedding", "vocabulary")

    D, heads = config.embedding_dim, (config.num_kv_heads, config.query_head_multiplier)
    return sae.AdaptedModel(
        name="penzai-llama",
        params={variable.label: variable for variable in variables},
        config=repr(config),
        tokenizer=tokenizer,
        vocab_size=config.vocab_size,
        layers=len(blocks),
        kinds=(
            sae.SiteKind("embed", (D,), writes=True, in_layers=False),
            sae.SiteKind("attn_pattern", heads, per_token=False, frozen=True),
            sae.SiteKind("attn_z", (*heads, config.projection_dim), writes=z_out),
            *(sae.SiteKind(kind, (D,), writes=True) for kind in ("attn_out", "resid_mid", "mlp_out", "resid_post")),
        ),
        forward=forward,
        readout=readout,
        direct=direct,
    )
