"""Which keys a query may see, and attention that never holds a [T, S] matrix of scores.

Axis letters as in `gemma/layers.py`: B batch, T query positions, S key positions, N query heads, K key/value heads,
G = N/K, H head width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

# What a masked score becomes, as in DeepMind's code: finite, so that a row with every key masked does not turn to NaN.
MASKED = -2.3819763e38
QUERY_BLOCK = 128  # queries that `fused` computes at a time: its scores take B * N * QUERY_BLOCK * S numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reach:
    """Which keys the queries of a layer may see: those not after them, within the window where there is one.

    Attributes:
      query_order, key_order: [B, T] and [B, S]; a query sees the keys whose order is at most its own and not negative.
      query_positions, key_positions: [B, T] and [B, S], from which the window is measured.
      window: a query sees keys at a distance less than this, itself among them; None: any.
      mask: [B, T, S] of bool in place of the order, or None.
    """

    query_order: jax.Array
    key_order: jax.Array
    query_positions: jax.Array
    key_positions: jax.Array
    mask: jax.Array | None = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def dense(self) -> jax.Array:
        """[B, T, S] of bool: may the query see the key."""
        allowed = self.mask
        if allowed is None:
            order = self.key_order[:, None, :]
            allowed = (order <= self.query_order[:, :, None]) & (order >= 0)
        if self.window is not None:
            distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
            allowed &= jnp.abs(distance) < self.window
        return allowed

    def map_queries(self, f: Callable[[jax.Array], jax.Array]) -> "Reach":
        """The reach with `f` applied to all that has an axis T, which is axis 1."""
        order, positions = f(self.query_order), f(self.query_positions)
        mask = None if self.mask is None else f(self.mask)
        return dataclasses.replace(self, query_order=order, query_positions=positions, mask=mask)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """Squashes values smoothly into (-cap, cap); None leaves them."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def fused(q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None) -> jax.Array:
    """Attention in blocks of queries, whose scores are let go before the next: memory grows with T + S, not T * S.

    Going backward, each block's scores are computed again.

    Args:
      q: [B, T, N, H], scaled. k, v: [B, S, K, H].
      reach: which keys each query may see.
      cap: the softcap of the scores, or None.

    Returns:
      [B, T, N, H], equal to plain attention's up to rounding.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    size = min(QUERY_BLOCK, T)
    rest = -T % size
    lengthen = lambda x: jnp.pad(x, ((0, 0), (0, rest)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    grouped, reach = lengthen(q.reshape(B, T, K, N // K, H)), reach.map_queries(lengthen)

    @jax.checkpoint
    def block(start: jax.Array) -> jax.Array:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)  # noqa: E731
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", cut(grouped), k).astype(jnp.float32)
        allowed = reach.map_queries(cut).dense()[:, None, None]
        pattern = jax.nn.softmax(jnp.where(allowed, softcap(scores, cap), MASKED), axis=-1).astype(q.dtype)
        return jnp.einsum("BKGTS,BSKH->BTKGH", pattern, v)

    blocks = jax.lax.map(block, jnp.arange(0, T + rest, size))  # [blocks, B, size, K, G, H]
    return jnp.moveaxis(blocks, 0, 1).reshape(B, T + rest, N, H)[:, :T]
