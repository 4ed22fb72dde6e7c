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
SPANS = 4  # into which long sequences are cut, so that early queries skip late keys

# (array, axis) -> some of the array's entries along that axis.
Cutter = Callable[[jax.Array, int], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reach:
    """Which keys the queries of a layer may see: those not after them, within the window where there is one.

    Attributes:
      query_order, key_order: [B, T] and [B, S]; a query sees the keys whose order is at most its own and not negative.
      query_positions, key_positions: [B, T] and [B, S], from which the window is measured.
      window: a query sees keys at a distance less than this, itself among them; None: any.
      mask: [B, T, S] of bool in place of the order, or None.
      sequential: query and key number n have order and position n, and there is no mask.
    """

    query_order: jax.Array
    key_order: jax.Array
    query_positions: jax.Array
    key_positions: jax.Array
    mask: jax.Array | None = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    sequential: bool = dataclasses.field(default=False, metadata={"static": True})

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

    def cut(self, queries: Cutter, keys: Cutter) -> "Reach":
        """The reach of some queries into some keys."""
        return dataclasses.replace(
            self,
            query_order=queries(self.query_order, 1),
            query_positions=queries(self.query_positions, 1),
            key_order=keys(self.key_order, 1),
            key_positions=keys(self.key_positions, 1),
            mask=None if self.mask is None else keys(queries(self.mask, 1), 2),
        )


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """Squashes values smoothly into (-cap, cap); None leaves them."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def fused(q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None) -> jax.Array:
    """Attention in blocks of queries, whose scores are let go before the next: memory grows with T + S, not T * S.

    Going backward, each block's scores are computed again. Keys that no query of a block can see are not multiplied
    where `reach` is sequential: those after it, and in a local layer those before its window.

    Args:
      q: [B, T, N, H], scaled. k, v: [B, S, K, H].
      reach: which keys each query may see.
      cap: the softcap of the scores, or None.

    Returns:
      [B, T, N, H], equal to plain attention's up to rounding.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = jnp.einsum("BTKGH->BKTGH", q.reshape(B, T, K, N // K, H))
    k, v = jnp.einsum("BSKH->BKHS", k), jnp.einsum("BSKH->BKSH", v)
    # Few spans, as each is written out in the program; a long one runs through its blocks in a loop.
    span = QUERY_BLOCK * -(-T // (QUERY_BLOCK * SPANS)) if reach.sequential else T
    outs = [_span(q, k, v, reach, cap, start, min(start + span, T)) for start in range(0, T, span)]
    return jnp.einsum("BKTGH->BTKGH", jnp.concatenate(outs, axis=2)).reshape(B, T, N, H)


def _span(
    q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None, start: int, stop: int
) -> jax.Array:
    """For the queries from `start` to `stop`, [B, K, stop - start, G, H].

    Here q is [B, K, T, G, H], k [B, K, H, S], v [B, K, S, H].
    """
    size = min(QUERY_BLOCK, stop - start)
    keys, width = (0, k.shape[-1]), k.shape[-1]
    if reach.sequential:
        keys = (0 if reach.window is None else max(0, start - reach.window + 1), stop)
        width = keys[1] - keys[0]
        if reach.window is not None:
            width = min(width, reach.window - 1 + size)

    @jax.checkpoint
    def block(first: jax.Array | int) -> jax.Array:
        # The last block is moved back to end with the span; what it computes again is cut off.
        first = jnp.minimum(first, stop - size) if stop - start > size else start
        low = keys[0] if width == keys[1] - keys[0] else jnp.clip(first + size - width, keys[0], keys[1] - width)
        queries, seen = _cutter(first, size), _cutter(low, width)
        rows = queries(q, 2).reshape(*q.shape[:2], -1, q.shape[-1])
        scores = jnp.matmul(rows, seen(k, 3)).astype(jnp.float32).reshape(*q.shape[:2], size, -1, width)
        allowed = reach.cut(queries, seen).dense()[:, None, :, None]
        pattern = jax.nn.softmax(jnp.where(allowed, softcap(scores, cap), MASKED), axis=-1).astype(q.dtype)
        out = jnp.matmul(pattern.reshape(*rows.shape[:3], width), seen(v, 2))
        return out.reshape(*q.shape[:2], size, -1, q.shape[-1])

    if stop - start == size:
        return block(start)
    firsts = jnp.arange(start, stop, size)
    blocks = jnp.moveaxis(jax.lax.map(block, firsts), 0, 2)  # [B, K, blocks, size, G, H]
    last = (stop - start) % size or size  # of the last block, the rows that are new
    done = blocks[:, :, :-1].reshape(*q.shape[:2], -1, *q.shape[3:])
    return jnp.concatenate([done, blocks[:, :, -1, size - last :]], axis=2)


def _cutter(start: jax.Array | int, size: int) -> Cutter:
    """A function that takes `size` entries of an array's axis from `start` on."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        if isinstance(start, int):
            return jax.lax.slice_in_dim(x, start, start + size, axis=axis)
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=axis)

    return cut
