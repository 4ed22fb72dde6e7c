"""Token streams for training: rows that begin with BOS, batches by step, and the loss of each token."""

import functools

import jax
import numpy as np
import optax

BOS = 2


def rows(stream: np.ndarray, length: int) -> np.ndarray:
    """Cuts a token stream into int32 [rows, length], where each row begins with BOS."""
    count = len(stream) // (length - 1)
    body = stream[: count * (length - 1)].reshape(count, length - 1).astype(np.int32)
    return np.concatenate([np.full((count, 1), BOS, np.int32), body], axis=1)


@functools.lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def batch_at(data: np.ndarray, step: int, batch: int, seed: int) -> np.ndarray:
    """Returns the rows [batch, length] of a step: epoch after epoch, each in its own order."""
    per_epoch = len(data) // batch
    epoch, index = divmod(step, per_epoch)
    return data[_order(len(data), seed, epoch)[index * batch : (index + 1) * batch]]


def token_losses(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns negative log-likelihoods (nats) [B, T-1] of the tokens after the first."""
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
