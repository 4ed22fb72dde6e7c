"""From the residual stream to the logits: the model's own last steps, and the first-order effect of a direction.

Nothing here knows of sites by name: `gemma/sites.py` says which of the ways a site takes.

Axis letters: D model width, V vocabulary, A length of the activation at a site.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gemma.attention import softcap
from gemma.configs import Config
from gemma.layers import Embedder, RMSNorm


def unembed(config: Config, params: dict, residual: jax.Array) -> jax.Array:
    """Returns the logits float32 [..., V] of the last residual stream [..., D]: final norm, unembedding, softcap."""
    if residual.shape[-1:] != (config.d_model,):
        raise ValueError(
            f"residual is [..., D] with D = {config.d_model}, the model's width, got {list(residual.shape)}"
        )
    # A norm without a name has no site, so a capture around this sees only the model's own norm.
    normed: Any = RMSNorm().apply({"params": params["final_norm"]}, residual)
    embedder = Embedder(config.vocab_size, config.d_model)
    rows = normed.reshape(1, -1, config.d_model)
    logits: Any = embedder.apply({"params": params["embedder"]}, rows, method="decode")
    return softcap(logits, config.final_softcap).reshape(*residual.shape[:-1], config.vocab_size)


def logits_of_directions(params: dict, directions: jax.Array) -> jax.Array:
    """Returns how directions [..., D] in the last residual stream move the logits to first order, float32 [..., V].

    They pass the final norm's gain and the unembedding. The norm's division and the softcap, which depend on the token,
    are left out, and the mean over the vocabulary, which softmax ignores, is subtracted.
    """
    table = params["embedder"]["input_embedding"]
    effects = directions * gain(params["final_norm"], directions) @ table.T.astype(jnp.float32)
    return effects - effects.mean(axis=-1, keepdims=True)


def direct_logits(params: dict, residual: jax.Array, tokens: jax.Array | None) -> jax.Array:
    """Returns what vectors, which the final norm has divided, add to the logits before the softcap.

    Args:
        params: the model's parameters.
        residual: [..., D].
        tokens: the ids [K] of the logits to compute; None for all.

    Returns:
        float32 [..., V], or [..., K].
    """
    table = params["embedder"]["input_embedding"]
    table = table if tokens is None else table[tokens]
    return residual * gain(params["final_norm"], residual) @ table.T.astype(jnp.float32)


def multiplied(vectors: jax.Array, scale: jax.Array, name: str) -> jax.Array:
    """Returns vectors [B, T, ..., D] times a norm's scale of their tokens.

    Args:
        vectors: [B, T, ..., D].
        scale: [B, T, 1], the factor that the norm multiplies each token by.
        name: the name of the scale, for messages.

    Raises:
        ValueError: if the scale is of other tokens.
    """
    tokens = scale.shape[:-1]
    if scale.shape[-1:] != (1,) or vectors.shape[: len(tokens)] != tokens:
        raise ValueError(
            f"{name} is [..., 1] with the first axes of the value's tokens, got {list(scale.shape)} for vectors "
            f"{list(vectors.shape)}: take the same tokens of both"
        )
    return vectors * scale.astype(jnp.float32).reshape(*tokens, *[1] * (vectors.ndim - len(tokens)))


def one_by_one(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns heads [..., N, H] as vectors [..., N, N·H], each with zeros in the place of the other heads.

    Values of another shape stay unchanged.
    """
    if len(shape) != 2 or value.shape[-2:] != shape:
        return value
    N, H = shape
    eye = jnp.expand_dims(jnp.eye(N, dtype=value.dtype), (*range(value.ndim - 2), value.ndim))
    return (value[..., None, :] * eye).reshape(*value.shape[:-1], N * H)


def gain(norm: dict, vectors: jax.Array) -> jax.Array:
    """Returns the gain of a norm for vectors [..., D], float32 with as many axes, all 1 but the last. In bfloat16, 1 +
    scale would be rounded."""
    return jnp.expand_dims(1.0 + norm["scale"].astype(jnp.float32), tuple(range(vectors.ndim - 1)))


def unchanged(params: dict, layer: int | None, vectors: jax.Array) -> jax.Array:
    """Returns vectors unchanged: they are in the residual stream, or are added to it."""
    return vectors


def through_attention_output(params: dict, layer: int | None, vectors: jax.Array) -> jax.Array:
    """Returns the heads' outputs, joined [..., N·H], after the output projection and the post-attention norm's gain."""
    block = params[f"layer_{layer}"]
    w = block["attn"]["attn_vec_einsum"]["w"]
    return vectors @ w.reshape(-1, w.shape[-1]).astype(jnp.float32) * gain(block["post_attention_norm"], vectors)


def through_feed_forward_output(params: dict, layer: int | None, vectors: jax.Array) -> jax.Array:
    """Returns the hidden layer [..., F] after its projection down and the post-feed-forward norm's gain."""
    block = params[f"layer_{layer}"]
    return vectors @ block["mlp"]["linear"].astype(jnp.float32) * gain(block["post_ffw_norm"], vectors)
