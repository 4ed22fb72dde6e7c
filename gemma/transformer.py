"""The forward pass of Gemma 2 and 3. The layers are unrolled: jit drops those that nothing returned depends on."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma.attention import Reach, softcap
from gemma.cache import Cache, LayerCache, Places, write
from gemma.configs import GLOBAL, LOCAL, Config
from gemma.layers import Attention, Embedder, FeedForward, RMSNorm


class Block(nn.Module):
    """A block: attention and feed-forward, each between two norms, and each added to the residual stream."""

    config: Config
    kind: str

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, allowed: jax.Array | Reach, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        attn_in = RMSNorm(name="pre_attention_norm")(x)
        attn_out, cache = Attention(self.config, self.kind, name="attn")(attn_in, positions, allowed, cache)
        attn_out = RMSNorm(name="post_attention_norm")(attn_out)
        x = x + attn_out
        mlp_in = RMSNorm(name="pre_ffw_norm")(x)
        mlp_out = FeedForward(self.config, name="mlp")(mlp_in)
        mlp_out = RMSNorm(name="post_ffw_norm")(mlp_out)
        x = x + mlp_out
        return x, cache


class Transformer(nn.Module):
    """The forward pass as a Flax module: from token ids [B, T] to logits float32 [B, T, V].

    With a cache, it returns the logits and the cache with these tokens in it. The arguments are those of
    `gemma.Model.apply`.

    Attributes:
        config: the model's shape.
        dtype: the dtype of the activations; norms, softcaps, softmax and logits are computed in float32 in any case.
        attention: "plain", or "fused", which never holds the scores of all queries.
        last: whether to compute only the last token's logits, [B, 1, V].
        unembeds: whether to return the logits; else it returns the input of the unembedding, the last norm's output
            [B, T, D].

    Example:
        >>> transformer = gemma.Transformer(model.config)
        >>> jax.eval_shape(transformer.apply, {"params": model.params}, jnp.array([[2, 392, 1788]])).shape
        (1, 3, 4096)
    """

    config: Config
    dtype: jnp.dtype = jnp.float32
    attention: str = "plain"
    last: bool = False
    unembeds: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        c = self.config
        positions, reach, cache, places = reaches(c, tokens, positions, mask, cache)
        allowed = {k: r if self.attention == "fused" else r.dense() for k, r in reach.items()}
        embedder = Embedder(c.vocab_size, c.d_model, name="embedder")
        x = embedder.encode(tokens, self.dtype)
        layers = []
        for i, kind in enumerate(c.layer_kinds):
            block = Block(c, kind, name=f"layer_{i}")
            x, layer = block(x, positions, allowed[kind], None if cache is None else cache.layer(i, places[kind]))
            layers.append(layer)
        x = RMSNorm(name="final_norm")(x)
        if not self.unembeds:
            return x
        if self.last:
            x = x[:, -1:]
        logits = softcap(embedder.decode(x), c.final_softcap)
        if cache is None:
            return logits
        # pyrefly: ignore[missing-attribute]  with a cache each layer has its part
        kept = tuple({"k": layer.k, "v": layer.v} for layer in layers)
        return logits, dataclasses.replace(cache, layers=kept, step=cache.step + tokens.shape[1])


def reaches(
    config: Config, tokens: jax.Array, positions: jax.Array | None, mask: jax.Array | None, cache: Cache | None
) -> tuple[jax.Array, dict[str, Reach], Cache | None, dict[str, Places]]:
    """Works out which keys the queries of each kind of layer may see.

    Args:
        config: the model's shape.
        tokens: [B, T].
        positions: as for `gemma.Model.apply`.
        mask: as for `gemma.Model.apply`.
        cache: as for `gemma.Model.apply`.

    Returns:
        The positions [B, T] of the tokens, the reach of each kind of layer, the cache with these positions in it, and
        the places where each kind puts the tokens in the cache.
    """
    B, T = tokens.shape
    order = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    window = {LOCAL: config.window, GLOBAL: None}
    if cache is None:
        sequential = positions is None and mask is None
        positions = order if positions is None else positions
        reach = {k: Reach(order, order, positions, positions, mask, w, sequential) for k, w in window.items()}
        return positions, reach, None, {}
    positions = cache.next_positions[:, None] + order if positions is None else positions
    positions = positions.astype(jnp.int32)
    reach, kept, places = {}, {}, {}
    for kind, old in cache.positions.items():
        places[kind] = cache.places(kind, positions)
        seen, kept[kind] = write(old, positions, places[kind])
        reach[kind] = Reach(positions, seen, positions, seen, mask, window[kind])
    following = jnp.maximum(cache.next_positions, jnp.max(positions, axis=1) + 1)
    return positions, reach, dataclasses.replace(cache, positions=kept, next_positions=following), places
