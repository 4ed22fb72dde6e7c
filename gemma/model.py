"""A model that is ready to run: its configuration, its parameters and its tokenizer."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from gemma.cache import Cache
from gemma.configs import Config
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """What `gemma.load` returns: a pytree of its parameters, so it can be an argument of a jitted function.

    Attributes:
      params: the parameters, named as in DeepMind's checkpoints, without their leading `transformer/`.
      config: the model's shape.
      tokenizer: None where the checkpoint's folder has none.
      dtype: of the activations.
    """

    params: dict
    config: Config = dataclasses.field(metadata={"static": True})
    tokenizer: Tokenizer | None = dataclasses.field(default=None, metadata={"static": True})
    dtype: jnp.dtype = dataclasses.field(default=jnp.dtype("float32"), metadata={"static": True})

    def apply(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        attention: Literal["plain", "fused"] = "plain",
        last: bool = False,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """float32 logits [B, T, V] of tokens [B, T].

        Args:
          tokens: ids of whole sequences from their first token on; with a cache, those that follow what is in it.
          positions: [B, T]; by default 0 … T-1, or with a cache those after the last ones. In a cache, a negative
            position marks padding, which no other token sees.
          mask: [B, T, T] of bool, which keys a query may see; causal by default. Local layers narrow it further.
          cache: from `gemma.empty_cache`, or from an earlier call.
          attention: "fused" never holds all scores [B, N, T, S], so memory grows with T and not with its square; the
            sites `attn_scores` and `attn_pattern` exist in "plain" only.
          last: the logits of the last token alone, [B, 1, V]; of the others none are computed.

        Returns:
          The logits; with a cache, the logits and the cache with these tokens in it.

        Raises:
          ValueError: for tokens that are no [B, T] integers, positions or a mask of other shapes, a mask beside a
            cache, a cache for another batch or with no room left, and another `attention`.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers of shape [B, T], got {tokens.dtype}{list(tokens.shape)}")
        if attention not in ("plain", "fused"):
            raise ValueError(f"attention is 'plain' or 'fused', got {attention!r}")
        B, T = tokens.shape
        for name, value, shape in (("positions", positions, (B, T)), ("mask", mask, (B, T, T))):
            if value is not None and jnp.shape(value) != shape:
                raise ValueError(f"for tokens {[B, T]}, {name} must be {list(shape)}, got {list(jnp.shape(value))}")
        if cache is not None:
            cache.check_room(B, T)
            if mask is not None:
                raise ValueError("with a cache there is no mask: what a token sees follows from the positions")
        transformer = Transformer(self.config, self.dtype, attention, last)
        # float32 means float32: by default, accelerators multiply float32 matrices in bfloat16 or TF32 passes.
        with jax.default_matmul_precision("highest"):
            return transformer.apply({"params": self.params}, tokens, positions, mask, cache)


def param_shapes(config: Config, dtype: jnp.dtype = jnp.float32) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`, nothing computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
