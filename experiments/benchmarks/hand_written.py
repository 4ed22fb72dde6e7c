"""Gemma 2's forward pass as one would write it without hooks: copied, with every site put into a dict.

Two copies, both with the model's own parameters and its operations in their order. `Transformer` is the copy of
`gemma/transformer.py` and `gemma/layers.py` that one would make to get at the values: it keeps Flax, whose modules take
most of the time of tracing. `forward` does without Flax, which nobody would copy 300 lines for, and so is the harder
mark. `capture_cost.check_equal` keeps both honest.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma.attention import MASKED, softcap
from gemma.configs import LOCAL, Config
from gemma.layers import Embedder, Weight, product, products, rope

Sites = dict[str, jax.Array]


class Attention(nn.Module):
    """The copy of `gemma.layers.Attention`; adds its sites to a dict under names that begin with `at`."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array, sites: Sites, at: str) -> jax.Array:
        c = self.config
        D = x.shape[-1]
        N, K, H = c.num_heads, c.num_kv_heads, c.head_dim

        q = product("BTD,NDH->BTNH", x, Weight((N, D, H), name="q_einsum")(x.dtype))
        k, v = products("BSD,KDH->BSKH", x, Weight((2, K, D, H), name="kv_einsum")(x.dtype))
        sites[at + "q"] = q = rope(q, positions, c.rope_base) * jnp.asarray(c.query_scale, x.dtype)
        sites[at + "k"] = k = rope(k, positions, c.rope_base)
        sites[at + "v"] = v
        sites.update(attend(c, at, q, k, v, mask))
        w = Weight((N, H, D), name="attn_vec_einsum")(x.dtype)
        return product("BTNH,NHD->BTD", sites[at + "attn_z"], w)


class RMSNorm(nn.Module):
    """The copy of `gemma.layers.RMSNorm`; adds its scale and, where `normed` names it, the value after the division."""

    @nn.compact
    def __call__(self, x: jax.Array, sites: Sites, scale: str, normed: str | None = None) -> jax.Array:
        params = {"scale": self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))}
        return rms_norm(x, params, sites, scale, normed)


class FeedForward(nn.Module):
    """The copy of `gemma.layers.FeedForward`."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, sites: Sites, at: str) -> jax.Array:
        D, F = self.config.d_model, self.config.d_ff
        gating = self.param("gating_einsum", nn.initializers.normal(0.02), (2, D, F))
        linear = self.param("linear", nn.initializers.normal(0.02), (F, D))
        return feed_forward(x, gating, linear, sites, at)


class Block(nn.Module):
    """The copy of `gemma.transformer.Block`."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array, sites: Sites, at: str) -> jax.Array:
        sites[at + "resid_pre"] = x
        sites[at + "attn_in"] = attn_in = RMSNorm(name="pre_attention_norm")(x, sites, at + "pre_attn_scale")
        attn_out = Attention(self.config, name="attn")(attn_in, positions, mask, sites, at)
        sites[at + "attn_out"] = attn_out = RMSNorm(name="post_attention_norm")(attn_out, sites, at + "post_attn_scale")
        sites[at + "resid_mid"] = x = x + attn_out
        sites[at + "mlp_in"] = mlp_in = RMSNorm(name="pre_ffw_norm")(x, sites, at + "pre_mlp_scale", at + "mlp_normed")
        mlp_out = FeedForward(self.config, name="mlp")(mlp_in, sites, at)
        sites[at + "mlp_out"] = mlp_out = RMSNorm(name="post_ffw_norm")(mlp_out, sites, at + "post_mlp_scale")
        sites[at + "resid_post"] = x = x + mlp_out
        return x


class Transformer(nn.Module):
    """The copy of `gemma.Transformer`: tokens [B, T] -> logits [B, T, V] and every site."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[jax.Array, Sites]:
        sites: Sites = {}
        embedder = Embedder(self.config.vocab_size, self.config.d_model, name="embedder")
        local_mask = narrowed(self.config, positions, mask)
        sites["embed"] = x = embedder.encode(tokens, jnp.float32)
        for i, kind in enumerate(self.config.layer_kinds):
            block = Block(self.config, name=f"layer_{i}")
            x = block(x, positions, local_mask if kind == LOCAL else mask, sites, f"layer_{i}/")
        sites["final_norm"] = x = RMSNorm(name="final_norm")(x, sites, "final_scale")
        sites["logits"] = logits = softcap(embedder.decode(x), self.config.final_softcap)
        return logits, sites


def places(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns positions [B, T] and the causal mask [B, T, T]."""
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    return positions, positions[:, None, :] <= positions[:, :, None]


def flax_forward(config: Config, params: dict, tokens: jax.Array) -> tuple[jax.Array, Sites]:
    """Returns float32 logits [B, T, V] of tokens [B, T] and the value of every site, by the copy that keeps Flax."""
    positions, mask = places(tokens)
    # pyrefly: ignore[bad-return]  Flax says that it may be a pair with the new state
    return Transformer(config).apply({"params": params}, tokens, positions, mask)


def forward(config: Config, params: dict, tokens: jax.Array) -> tuple[jax.Array, Sites]:
    """Returns float32 logits [B, T, V] of tokens [B, T] and the value of every site, by the copy without Flax."""
    c, sites = config, {}
    positions, mask = places(tokens)
    local_mask = narrowed(c, positions, mask)
    embedding = params["embedder"]["input_embedding"]
    x = embedding[tokens].astype(jnp.float32) * jnp.sqrt(c.d_model).astype(jnp.float32)
    sites["embed"] = x
    for i, kind in enumerate(c.layer_kinds):
        p, at = params[f"layer_{i}"], f"layer_{i}/"
        sites[at + "resid_pre"] = x
        sites[at + "attn_in"] = attn_in = rms_norm(x, p["pre_attention_norm"], sites, at + "pre_attn_scale")
        q = product("BTD,NDH->BTNH", attn_in, p["attn"]["q_einsum"]["w"])
        k, v = products("BSD,KDH->BSKH", attn_in, p["attn"]["kv_einsum"]["w"])
        sites[at + "q"] = q = rope(q, positions, c.rope_base) * jnp.asarray(c.query_scale, x.dtype)
        sites[at + "k"] = k = rope(k, positions, c.rope_base)
        sites[at + "v"] = v
        sites.update(attend(c, at, q, k, v, local_mask if kind == LOCAL else mask))
        attn_out = product("BTNH,NHD->BTD", sites[at + "attn_z"], p["attn"]["attn_vec_einsum"]["w"])
        sites[at + "attn_out"] = attn_out = rms_norm(attn_out, p["post_attention_norm"], sites, at + "post_attn_scale")
        sites[at + "resid_mid"] = x = x + attn_out
        sites[at + "mlp_in"] = mlp_in = rms_norm(x, p["pre_ffw_norm"], sites, at + "pre_mlp_scale", at + "mlp_normed")
        mlp_out = feed_forward(mlp_in, p["mlp"]["gating_einsum"], p["mlp"]["linear"], sites, at)
        sites[at + "mlp_out"] = mlp_out = rms_norm(mlp_out, p["post_ffw_norm"], sites, at + "post_mlp_scale")
        sites[at + "resid_post"] = x = x + mlp_out
    sites["final_norm"] = x = rms_norm(x, params["final_norm"], sites, "final_scale")
    logits = jnp.einsum("BTD,VD->BTV", x, embedding, preferred_element_type=jnp.float32)
    sites["logits"] = logits = softcap(logits, c.final_softcap)
    return logits, sites


# What both copies share.


def narrowed(config: Config, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mask [B, T, T] of the local layers."""
    distance = positions[:, :, None] - positions[:, None, :]
    return mask & (jnp.abs(distance) < config.window)


def attend(config: Config, at: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Sites:
    """Returns the sites from q [B, T, N, H], k and v [B, S, K, H] to the heads' outputs."""
    B, T, N, H = q.shape
    K = config.num_kv_heads
    grouped = jnp.einsum("BTKGH->BKGTH", q.reshape(B, T, K, N // K, H))
    scores = jnp.einsum("BKGTH,BSKH->BKGTS", grouped, k).reshape(B, N, T, -1)
    capped = softcap(scores.astype(jnp.float32), config.attn_softcap)
    masked = jnp.where(mask[:, None], capped, MASKED)
    pattern = jax.nn.softmax(masked, axis=-1).astype(q.dtype)
    weights = pattern.reshape(B, K, N // K, T, -1)
    z = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)
    return {at + "attn_scores": scores, at + "attn_pattern": pattern, at + "attn_z": z}


def feed_forward(x: jax.Array, gating: jax.Array, linear: jax.Array, sites: Sites, at: str) -> jax.Array:
    """Returns GeGLU on [B, T, D], and adds its sites."""
    gating, linear = gating.astype(x.dtype), linear.astype(x.dtype)
    gate, up = products("BTD,DF->BTF", x, gating)
    sites[at + "mlp_gate"], sites[at + "mlp_up"] = gate, up
    sites[at + "mlp_hidden"] = hidden = nn.gelu(gate, approximate=True) * up
    return jnp.einsum("BTF,FD->BTD", hidden, linear)


def rms_norm(x: jax.Array, params: dict, sites: Sites, scale: str, normed: str | None = None) -> jax.Array:
    """`gemma.layers.RMSNorm` without Flax, with its sites."""
    x32 = x.astype(jnp.float32)
    sites[scale] = inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    divided = x32 * inverse
    if normed is not None:
        sites[normed] = divided
    gain = jnp.expand_dims(1.0 + params["scale"].astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (divided * gain).astype(x.dtype)
