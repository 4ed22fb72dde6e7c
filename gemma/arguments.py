"""Checks the arguments of `gemma.Model.apply` before anything is traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Integer

from gemma.configs import Config

TokenIds = Integer[ArrayLike, "B T"] | Sequence[Sequence[int]]


def token_ids(tokens: TokenIds, config: Config) -> jax.Array:
    """Returns token ids [B, T] as an array of integers that the embedding has rows for, as far as they are concrete.

    Args:
        tokens: token ids.
        config: the model's configuration.

    Raises:
        ValueError: for anything else, such as a text.
    """
    if not isinstance(tokens, jax.Array):
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:  # rows of unequal length
            raise ValueError(f"tokens must be integers of shape [B, T], in rows of one length: {error}") from None
        if tokens.dtype.kind in "USO":
            raise ValueError(
                f"tokens must be integers of shape [B, T], got {str(tokens.dtype)!r}: encode a text first, "
                "tokens = [model.tokenizer.encode(text)], or give it to model.run or gemma.generate"
            )
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers of shape [B, T], got {tokens.dtype}{list(tokens.shape)}")
    if 0 in tokens.shape:
        raise ValueError(f"tokens must have at least one sequence of one token, got [B, T] = {list(tokens.shape)}")
    if not isinstance(tokens, jax.core.Tracer):
        _check_range(tokens, config)
    return jnp.asarray(tokens)


def _check_range(tokens: jax.Array | np.ndarray, config: Config) -> None:
    """Raises ValueError for ids that have no row; checks this process's part of an array over several processes."""
    parts = [tokens]
    if isinstance(tokens, jax.Array) and not tokens.is_fully_addressable:
        parts = [shard.data for shard in tokens.addressable_shards]
    for part in map(np.asarray, parts):
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"tokens have the id {low if low < 0 else high}, but the vocabulary of {config.name} is 0 to "
                f"{config.vocab_size - 1}: mark padding by negative positions or a mask, and check the tokenizer"
            )


def positions_and_mask(
    tokens: jax.Array, positions: ArrayLike | None, mask: ArrayLike | None
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns positions, integers [B, T], and a mask, bool [B, T, T], as arrays; None stays None.

    Args:
        tokens: [B, T], whose shape counts.
        positions: the positions, or None.
        mask: the mask, or None.

    Raises:
        ValueError: for other shapes and dtypes.
    """
    B, T = tokens.shape
    for name, value, shape in (("positions", positions, (B, T)), ("mask", mask, (B, T, T))):
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"for tokens {[B, T]}, {name} must be {list(shape)}, got {list(np.shape(value))}")
    if positions is not None:
        positions = jnp.asarray(positions)
        if not jnp.issubdtype(positions.dtype, jnp.integer):
            raise ValueError(f"positions must be integers, got {positions.dtype}")
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise ValueError(
                f"mask must be bool, true where a query may see a key, got {mask.dtype}: for one that is added to "
                "scores give mask == 0, for one of 0 and 1 give mask != 0"
            )
    return positions, mask
