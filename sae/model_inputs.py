"""Tokens and texts as an adapted model reads them: checked, padded, with a mask and positions, placed on a mesh.

It knows a model by its name, its vocabulary, its tokenizer and its parameters alone. Axis letters: B sequences, T
tokens, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sae import sharding
from sae.language_model import LanguageModel, check_tokenizer


def checked(model: LanguageModel, tokens: Any) -> jax.Array:
    """Returns tokens as an array of integers [B, T]. Ids that are known, and not traced, are in the vocabulary.

    Args:
        model: the model that reads the tokens.
        tokens: integers [B, T].

    Raises:
        ValueError: for tokens that are no integers [B, T], and an id without a row.
    """
    if not isinstance(tokens, jax.Array):
        tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or not math.prod(tokens.shape):
        raise ValueError(f"tokens are integers [B, T], got {tokens.dtype}{list(tokens.shape)}")
    if not isinstance(tokens, jax.core.Tracer) and getattr(tokens, "is_fully_addressable", True):
        ids = np.asarray(tokens)  # inside of jax.jit, the minimum of a JAX array would be traced
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= model.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"the token id {wrong} has no row: {model.name} has rows 0 to {model.vocab_size - 1}")
    return jnp.asarray(tokens)


def read(model: LanguageModel, tokens_or_text: Any) -> tuple[jax.Array, jax.Array]:
    """Returns tokens int32 [B, T] and the mask bool [B, T] that is False at padding.

    Args:
        model: the model that reads the tokens.
        tokens_or_text: a text, a list of texts, which are padded at the end, or tokens [B, T].

    Raises:
        ValueError: as for `checked`, and for texts where the model has no tokenizer.
    """
    texts = [tokens_or_text] if isinstance(tokens_or_text, str) else tokens_or_text
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        check_tokenizer(model)
        rows = [model.tokenizer.encode(text) for text in texts]
        lengths = np.array([[len(row)] for row in rows])
        tokens = np.full((len(rows), lengths.max()), model.tokenizer.pad, np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return checked(model, tokens), jnp.asarray(np.arange(lengths.max()) < lengths)
    tokens = checked(model, texts).astype(jnp.int32)
    if model.tokenizer is None:
        return tokens, jnp.ones(tokens.shape, bool)
    # The padding id is padding at the end of a row alone; before another token it is a token.
    return tokens, jnp.flip(jnp.cumsum(jnp.flip(tokens != model.tokenizer.pad, axis=1), axis=1), axis=1) > 0


def placed(params: Any, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns tokens and mask [B, T], spread over the axis `data` of the parameters' mesh where that divides B."""
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(where, NamedSharding) or not isinstance(where.mesh, Mesh):
        return tokens, mask
    if len(tokens) % sharding.ways(where.mesh):
        return tokens, mask
    return jax.device_put((tokens, mask), sharding.batch_sharding(where.mesh))


def positions(tokens: jax.Array) -> jax.Array:
    """Returns the positions int32 [B, T] of tokens [B, T]."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)


def bindable(tokens: Any) -> tuple[jax.Array, jax.Array]:
    """Returns tokens and their positions, [B, T] each, for edits that must be bound to a text."""
    tokens = jnp.asarray(tokens)
    return tokens, positions(tokens)
