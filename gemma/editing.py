"""The edits that a model takes, and the way in which they find the text in the arguments of `apply` and `losses`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemma.cache import Cache
from mishax_lite import Edits

# Arguments of `mishax_lite.Edits.of`: a dict by pattern, edits, or a function of positions [B, T] that returns either.
AnyEdits = Mapping[str, Callable[..., Any]] | Edits | Callable[[jax.Array], Any]


def text_of(
    *args: Any, tokens: Any = None, positions: jax.Array | None = None, cache: Cache | None = None, **_: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns tokens [B, T] and their positions [B, T] from the arguments of `Model.apply` or `Model.losses`.

    The method may be bound to a model or have it as the first argument.
    """
    tokens = jnp.asarray(args[-1] if tokens is None else tokens)
    return tokens, positions_of(tokens, positions, cache)


def positions_of(tokens: jax.Array, positions: jax.Array | None, cache: Cache | None) -> jax.Array:
    """Returns the positions of tokens [B, T]: the given ones, or 0 … T-1, or those after the last token in a cache."""
    if positions is not None:
        return jnp.asarray(positions)
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return order if cache is None else cache.next_positions[:, None] + order
