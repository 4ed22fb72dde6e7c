"""Gemma 2's forward pass as somebody without hooks would write it: by hand, with every site put into a dict.

The yardstick for `capture_cost.py`. Parameters are the model's own, operations stand in the order of
`gemma/transformer.py` and `gemma/layers.py`, and nothing here knows of Flax or of taps. A test of equality against the
real model keeps the copy honest: `capture_cost.check_equal`.
"""

import jax
import jax.numpy as jnp

from gemma.configs import LOCAL, Config

MASKED = -2.3819763e38
"""What a masked score becomes, as in `gemma/layers.py`."""


def forward(config: Config, params: dict, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """float32 logits [B, T, V] of tokens [B, T], and the value of every site of `gemma.sites.names(config)`."""
    c = config
    sites = {}
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    distance = positions[:, :, None] - positions[:, None, :]
    local_mask = mask & (jnp.abs(distance) < c.window)
    embedding = params["embedder"]["input_embedding"]
    x = embedding[tokens].astype(jnp.float32) * jnp.sqrt(c.d_model).astype(jnp.float32)
    sites["embed"] = x
    for i, kind in enumerate(c.layer_kinds):
        p, at = params[f"layer_{i}"], f"layer_{i}/"

        sites[at + "resid_pre"] = x
        sites[at + "attn_in"] = attn_in = rms_norm(x, p["pre_attention_norm"]["scale"])
        q = jnp.einsum("BTD,NDH->BTNH", attn_in, p["attn"]["q_einsum"]["w"].astype(x.dtype))
        k, v = jnp.einsum("BSD,CKDH->CBSKH", attn_in, p["attn"]["kv_einsum"]["w"].astype(x.dtype))
        sites[at + "q"] = q = rope(q, positions, c.rope_base) * jnp.asarray(c.query_scale, x.dtype)
        sites[at + "k"] = k = rope(k, positions, c.rope_base)
        sites[at + "v"] = v

        N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
        grouped = q.reshape(B, T, K, N // K, H)
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k).reshape(B, N, T, -1)
        sites[at + "attn_scores"] = scores
        capped = softcap(scores.astype(jnp.float32), c.attn_softcap)
        masked = jnp.where((local_mask if kind == LOCAL else mask)[:, None], capped, MASKED)
        sites[at + "attn_pattern"] = pattern = jax.nn.softmax(masked, axis=-1).astype(x.dtype)
        weights = pattern.reshape(B, K, N // K, T, -1)
        z = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)
        sites[at + "attn_z"] = z
        attn_out = jnp.einsum("BTNH,NHD->BTD", z, p["attn"]["attn_vec_einsum"]["w"].astype(x.dtype))
        sites[at + "attn_out"] = attn_out = rms_norm(attn_out, p["post_attention_norm"]["scale"])
        sites[at + "resid_mid"] = x = x + attn_out

        sites[at + "mlp_in"] = mlp_in = rms_norm(x, p["pre_ffw_norm"]["scale"])
        gating, linear = p["mlp"]["gating_einsum"].astype(x.dtype), p["mlp"]["linear"].astype(x.dtype)
        sites[at + "mlp_gate"] = gate = jnp.einsum("BTD,DF->BTF", mlp_in, gating[0])
        sites[at + "mlp_up"] = up = jnp.einsum("BTD,DF->BTF", mlp_in, gating[1])
        sites[at + "mlp_hidden"] = hidden = jax.nn.gelu(gate, approximate=True) * up
        mlp_out = jnp.einsum("BTF,FD->BTD", hidden, linear)
        sites[at + "mlp_out"] = mlp_out = rms_norm(mlp_out, p["post_ffw_norm"]["scale"])
        sites[at + "resid_post"] = x = x + mlp_out

    sites["final_norm"] = x = rms_norm(x, params["final_norm"]["scale"])
    logits = jnp.einsum("BTD,VD->BTV", x, embedding.astype(x.dtype), preferred_element_type=jnp.float32)
    sites["logits"] = logits = softcap(logits, c.final_softcap)
    return logits, sites


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    return jnp.tanh(x / cap) * cap


def rope(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    half = x.shape[-1] // 2
    timescale = base ** (jnp.arange(half, dtype=jnp.float32) / half)
    radians = positions[:, :, None, None].astype(jnp.float32) / timescale
    sin, cos = jnp.sin(radians), jnp.cos(radians)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
