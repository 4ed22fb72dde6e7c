"""Gemma 2's forward pass. The layers are unrolled, so that jit drops the ones that nothing returned depends on."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma.configs import LOCAL, Config
from gemma.layers import Attention, Embedder, FeedForward, RMSNorm, softcap


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before and one after, each added to the residual stream."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        attn_in = RMSNorm(name="pre_attention_norm")(x)
        attn_out = Attention(self.config, name="attn")(attn_in, positions, mask)
        attn_out = RMSNorm(name="post_attention_norm")(attn_out)
        x = x + attn_out
        mlp_in = RMSNorm(name="pre_ffw_norm")(x)
        mlp_out = FeedForward(self.config, name="mlp")(mlp_in)
        mlp_out = RMSNorm(name="post_ffw_norm")(mlp_out)
        x = x + mlp_out
        return x


class Transformer(nn.Module):
    """[B, T] token ids -> [B, T, V] float32 logits.

    Attributes:
      config: the model's shape.
      dtype: of the activations; norms, softcaps, softmax and logits are computed in float32 whatever it is.
    """

    config: Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Args: tokens [B, T], positions [B, T], mask [B, T, S] of bool: which keys a global layer's query may see."""
        embedder = Embedder(self.config.vocab_size, self.config.d_model, name="embedder")
        distance = positions[:, :, None] - positions[:, None, :]
        local_mask = mask & (jnp.abs(distance) < self.config.window)
        x = embedder.encode(tokens, self.dtype)
        for i, kind in enumerate(self.config.layer_kinds):
            block = Block(self.config, name=f"layer_{i}")
            x = block(x, positions, local_mask if kind == LOCAL else mask)
        x = RMSNorm(name="final_norm")(x)
        return softcap(embedder.decode(x), self.config.final_softcap)


def default_positions(tokens: jax.Array) -> jax.Array:
    """[B, T] positions 0 … T-1 for every sequence."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def causal_mask(tokens: jax.Array) -> jax.Array:
    """[B, T, T] of bool: a query sees the keys up to its own place."""
    length = tokens.shape[1]
    return jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (tokens.shape[0], length, length))
