"""A model that is ready to run: its configuration, its parameters and its tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp

from gemma.configs import Config
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer, causal_mask, default_positions


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
        self, tokens: jax.Array, *, positions: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """float32 logits [B, T, V] of tokens [B, T].

        Args:
          tokens: ids of whole sequences from their first token on.
          positions: [B, T]; 0 … T-1 by default.
          mask: [B, T, T] of bool, which keys a query may see; causal by default. Local layers narrow it further.

        Raises:
          ValueError: for tokens that are no [B, T] integers, or positions or a mask of other shapes.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers of shape [B, T], got {tokens.dtype}{list(tokens.shape)}")
        positions = default_positions(tokens) if positions is None else positions
        mask = causal_mask(tokens) if mask is None else mask
        B, T = tokens.shape
        if positions.shape != (B, T) or mask.shape != (B, T, T):
            raise ValueError(
                f"for tokens {[B, T]}, positions must be {[B, T]} and mask {[B, T, T]}, "
                f"got {list(positions.shape)} and {list(mask.shape)}"
            )
        # float32 means float32: by default, accelerators multiply float32 matrices in bfloat16 or TF32 passes.
        with jax.default_matmul_precision("highest"):
            return Transformer(self.config, self.dtype).apply({"params": self.params}, tokens, positions, mask)


def param_shapes(config: Config, dtype: jnp.dtype = jnp.float32) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`, nothing computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1, 1), jnp.bool_)
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, tokens, mask)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
