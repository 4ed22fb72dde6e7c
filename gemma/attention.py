"""Says which keys a query may see, and computes attention that never holds a [T, S] matrix of scores.

Axis letters as in `gemma/layers.py`: B batch, T query positions, S key positions, N query heads, K key/value heads,
G = N/K, H head width.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# The value of a masked score, as in DeepMind's code. It is finite, so that a row with all keys masked is not NaN.
MASKED = -2.3819763e38


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The way in which `fused` divides its work.

    Attributes:
        queries: the number of queries computed at a time: their scores take B * N * queries * S numbers.
        spans: the number of spans that long sequences are cut into, so that early queries skip late keys. Each span is
            written out in the program.
        divides_late: whether the softmax's sums divide the output and not the pattern, so that XLA does not recognise a
            softmax.
    """

    queries: int
    spans: int
    divides_late: bool = False


# By platform, as `jax.default_backend()` names it. On a GPU four spans made four loops of different shapes in every
# layer: 13 layers of the 2B did not compile within a minute. So each layer has one loop, whose blocks all have one
# shape. A block of 256 queries at 8 x 1,024 tokens keeps its products large enough for an H100 (32 of 512 x 256 x
# 1,024), and its scores are a quarter of plain attention's. XLA makes one Triton kernel of softcap, mask and softmax,
# in tiles of 16 rows, which takes 2 s of compiling for every layer; as two sums over rows they take 0.1 s (compiled
# ahead of time for an H100 with JAX 0.12).
BLOCKS = {"cpu": Blocks(128, 4), "tpu": Blocks(128, 4), "gpu": Blocks(256, 1, divides_late=True)}

# Below this many tokens, whole attention is one block or little more, and cuDNN's kernel has nothing to save.
_FEWEST_FOR_KERNEL = 128

# (array, axis) -> some of the array's entries along that axis.
Cutter = Callable[[jax.Array, int], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reach:
    """The keys that the queries of a layer may see: those not after them, within the layer's window if it has one.

    Attributes:
        query_order: integers [B, T]; a query sees the keys whose order is at most its own and not negative.
        key_order: integers [B, S].
        query_positions: integers [B, T], from which the window is measured.
        key_positions: integers [B, S].
        mask: bool [B, T, S] in place of the order, or None.
        window: a query sees keys at a distance less than this, so itself too; None for any distance.
        sequential: whether query n and key n have order and position n, and no mask is set.
    """

    query_order: jax.Array
    key_order: jax.Array
    query_positions: jax.Array
    key_positions: jax.Array
    mask: jax.Array | None = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    sequential: bool = dataclasses.field(default=False, metadata={"static": True})

    def dense(self) -> jax.Array:
        """Returns bool [B, T, S]: whether the query may see the key."""
        allowed = self.mask
        if allowed is None:
            order = self.key_order[:, None, :]
            allowed = (order <= self.query_order[:, :, None]) & (order >= 0)
        if self.window is not None:
            distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
            allowed &= jnp.abs(distance) < self.window
        return allowed

    def cut(self, queries: Cutter, keys: Cutter) -> "Reach":
        """Returns the reach of some queries into some keys."""
        return dataclasses.replace(
            self,
            query_order=queries(self.query_order, 1),
            query_positions=queries(self.query_positions, 1),
            key_order=keys(self.key_order, 1),
            key_positions=keys(self.key_positions, 1),
            mask=None if self.mask is None else keys(queries(self.mask, 1), 2),
        )


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """Squashes values smoothly into (-cap, cap); a cap of None leaves them unchanged."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def fused(q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None) -> jax.Array:
    """Computes attention with memory that grows with T + S, not T * S.

    It runs the platform's own kernel where that fits (see `kernel`), and our own blocks elsewhere.

    Args:
        q: queries [B, T, N, H], scaled.
        k: keys [B, S, K, H].
        v: values [B, S, K, H].
        reach: the keys that each query may see.
        cap: the softcap of the scores, or None.

    Returns:
        [B, T, N, H], equal to plain attention's up to rounding.
    """
    platform = jax.default_backend()
    blocks = functools.partial(in_blocks, reach=reach, cap=cap, blocks=BLOCKS[platform])
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    chosen = kernel(platform, capability, q, reach, cap)
    if chosen is None:
        return blocks(q, k, v)
    # Lowering the program decides between the two, as arrays may lie on the CPU of a machine with a GPU.
    target, implementation = chosen
    attend = functools.partial(by_kernel, window=reach.window, implementation=implementation)
    return jax.lax.platform_dependent(q, k, v, **{target: attend}, default=blocks)


def kernel(
    platform: str, capability: str | None, q: jax.Array, reach: Reach, cap: float | None
) -> tuple[str, str] | None:
    """Returns the platform and the implementation of `jax.nn.dot_product_attention` that fit, or None.

    The one implementation that never holds all scores is cuDNN's flash attention. It knows no softcap, so it fits Gemma
    3 alone. It takes sequences from their first token on, without a mask; 16-bit numbers; and heads of up to 128
    numbers, or 256 from Hopper (9.0) on.

    Args:
        platform: as `jax.default_backend()` names it.
        capability: CUDA's compute capability, such as "9.0", as `jax.Device` has it; None elsewhere.
        q: [B, T, N, H], or its shape and dtype.
        reach: as for `fused`.
        cap: as for `fused`.

    Returns:
        The platform that a program is lowered for, and the name of the implementation; None if none fits.
    """
    version = re.fullmatch(r"(\d+)\.(\d+)", capability or "")
    if platform != "gpu" or not version or int(version[1]) < 8:
        return None
    if cap is not None or not reach.sequential or q.dtype not in (jnp.bfloat16, jnp.float16):
        return None
    _, T, _, H = q.shape
    widths = range(8, 257 if int(version[1]) >= 9 else 129, 8)
    return ("cuda", "cudnn") if H in widths and T >= _FEWEST_FOR_KERNEL else None


def by_kernel(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None, implementation: Any) -> jax.Array:
    """Computes causal attention of whole sequences by `jax.nn.dot_product_attention`.

    Its windows count the keys to the left of a query, without the query's own. Arguments and result are as for `fused`.
    """
    left = None if window is None or window >= q.shape[1] else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=1.0, is_causal=True, local_window_size=left, implementation=implementation
    )


def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None, blocks: Blocks) -> jax.Array:
    """Computes attention in blocks of queries; the scores of a block are freed before the next block.

    The backward pass computes each block's scores again. If `reach` is sequential, a block skips keys that none of its
    queries can see: those after its span, and in a local layer those before its window. Arguments and result are as for
    `fused`; `blocks` says how the work is divided.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = jnp.einsum("BTKGH->BKTGH", q.reshape(B, T, K, N // K, H))
    k, v = jnp.einsum("BSKH->BKHS", k), jnp.einsum("BSKH->BKSH", v)
    # Few spans, as each is written out in the program; a long one runs through its blocks in a loop.
    span = blocks.queries * -(-T // (blocks.queries * blocks.spans)) if reach.sequential else T
    spans = [(start, min(start + span, T)) for start in range(0, T, span)]
    outs = [_span(q, k, v, reach, cap, blocks, start, stop) for start, stop in spans]
    return jnp.einsum("BKTGH->BTKGH", jnp.concatenate(outs, axis=2)).reshape(B, T, N, H)


def _span(
    q: jax.Array, k: jax.Array, v: jax.Array, reach: Reach, cap: float | None, blocks: Blocks, start: int, stop: int
) -> jax.Array:
    """Returns attention of the queries from `start` to `stop`, [B, K, stop - start, G, H].

    Here q is [B, K, T, G, H], k [B, K, H, S], v [B, K, S, H].
    """
    size = min(blocks.queries, stop - start)
    keys, width = (0, k.shape[-1]), k.shape[-1]
    if reach.sequential:
        keys = (0 if reach.window is None else max(0, start - reach.window + 1), stop)
        width = keys[1] - keys[0]
        if reach.window is not None:
            width = min(width, reach.window - 1 + size)

    @jax.checkpoint
    def block(first: jax.Array | int) -> jax.Array:
        # The last block is moved back to end with the span; the rows that it computes again are cut off.
        first = jnp.minimum(first, stop - size) if stop - start > size else start
        low = keys[0] if width == keys[1] - keys[0] else jnp.clip(first + size - width, keys[0], keys[1] - width)
        queries, seen = _cutter(first, size), _cutter(low, width)
        rows = queries(q, 2).reshape(*q.shape[:2], -1, q.shape[-1])
        scores = jnp.matmul(rows, seen(k, 3)).astype(jnp.float32).reshape(*q.shape[:2], size, -1, width)
        allowed = reach.cut(queries, seen).dense()[:, None, :, None]
        masked = jnp.where(allowed, softcap(scores, cap), MASKED)
        weights, total = _weights(masked) if blocks.divides_late else (jax.nn.softmax(masked, axis=-1), None)
        out = jnp.matmul(weights.astype(q.dtype).reshape(*rows.shape[:3], width), seen(v, 2))
        out = out.reshape(*q.shape[:2], size, -1, q.shape[-1])
        return out if total is None else (out / total).astype(q.dtype)

    if stop - start == size:
        return block(start)
    firsts = jnp.arange(start, stop, size)
    outs = jnp.moveaxis(jax.lax.map(block, firsts), 0, 2)  # [B, K, blocks, size, G, H]
    last = (stop - start) % size or size  # the number of new rows in the last block
    whole = outs[:, :, :-1].reshape(*q.shape[:2], -1, *q.shape[3:])
    return jnp.concatenate([whole, outs[:, :, -1, size - last :]], axis=2)


def _weights(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a softmax over the last axis before its division, and the divisors.

    The barrier keeps XLA from recognising a softmax; the maximum needs no gradient, as it cancels.
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jax.lax.optimization_barrier(largest))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _cutter(start: jax.Array | int, size: int) -> Cutter:
    """Returns a function that takes `size` entries of an array's axis from `start` on."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        if isinstance(start, int):
            return jax.lax.slice_in_dim(x, start, start + size, axis=axis)
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=axis)

    return cut
