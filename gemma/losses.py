"""The loss of every next token, without the logits of all tokens: they are computed in blocks of the vocabulary.

The logits of 4,096 tokens of a Gemma 3 are 4.3 GB in float32, and the loss of a token needs two numbers of its logits:
the logarithm of the sum of their exponentials, and one of them. This file knows nothing of autoencoders and of hooks.

Axis letters: B batch, T tokens, D model width, V vocabulary; P parts of the vocabulary, each with I rows in a block.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from gemma.attention import softcap

BLOCK = 2**22  # logits in memory at a time, 16 MiB
# The number of parts of the embedding (or the largest number below that divides V). A block takes rows from each part:
# neighbouring rows are on one device, and with rows of one part alone every other device would wait for it. So a table
# whose rows are spread over at most as many devices stays where it lies.
_PARTS = 256

Sums = tuple[jax.Array, ...]


def cross_entropy(
    x: jax.Array, table: jax.Array, targets: jax.Array, *, cap: float | None = None, block: int = BLOCK
) -> jax.Array:
    """Returns -log softmax(softcap(x table^T))[target] of every token: its loss, float32 [B, T], in nats.

    Beside its arguments it takes the memory of a block of logits and of [B, T, P] sums; differentiated, it computes
    each block again. It is not jitted itself. Numbers are those of the forward pass: products in the dtype of `x`,
    summed in float32 (in full, on accelerators too), and everything after them in float32.

    Args:
        x: [B, T, D], the input of the unembedding: the output of the model's last norm.
        table: [V, D], the embedding, of any floating dtype.
        targets: integers [B, T], the tokens to predict. A token without a row in the table gives NaN.
        cap: the softcap of the logits (Gemma 2 has 30), or None.
        block: how many logits to compute at a time, for all tokens together.

    Returns:
        float32 [B, T], nats.

    Raises:
        ValueError: if shapes disagree, or for a block of no logits.

    Example:
        >>> x, table = jnp.ones((1, 2, 3)), jnp.zeros((5, 3))
        >>> print(cross_entropy(x, table, jnp.array([[4, 0]])))  # log(5)
        [[1.609438 1.609438]]
    """
    if x.ndim != 3 or table.ndim != 2 or table.shape[1] != x.shape[2]:
        raise ValueError(f"x is [B, T, D] and table [V, D] with one D, got {list(x.shape)} and {list(table.shape)}")
    if targets.shape != x.shape[:2]:
        raise ValueError(f"targets are [B, T] = {list(x.shape[:2])}, a token for each of x, got {list(targets.shape)}")
    if block < 1:
        raise ValueError(f"block is a number of logits, at least 1; got {block}")
    ids = jnp.where(targets < 0, len(table), targets)  # negative ids would count from the end
    rows = table.at[ids].get(mode="fill", fill_value=jnp.nan).astype(x.dtype)
    # A product of 16-bit numbers is exact in float32.
    chosen = jnp.sum(x.astype(jnp.float32) * rows.astype(jnp.float32), axis=-1)
    return _log_sum_exp(x, table, cap, block) - softcap(chosen, cap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _log_sum_exp(x: jax.Array, table: jax.Array, cap: float | None, block: int) -> jax.Array:
    """Returns log sum exp(softcap(x table^T)), float32 [B, T]."""

    def add(sums: tuple[jax.Array, jax.Array], logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the largest logits so far, and the sums of exp(logit - largest), each [B, T, P]."""
        largest, total = sums
        new = jnp.maximum(largest, logits.max(axis=2))
        return new, total * jnp.exp(largest - new) + jnp.exp(logits - new[:, :, None]).sum(axis=2)

    largest, total = _over_blocks(add, (-jnp.inf, 0.0), x, table, cap, block)
    peak = largest.max(axis=-1)
    return peak + jnp.log(jnp.sum(total * jnp.exp(largest - peak[..., None]), axis=-1))


@functools.partial(_log_sum_exp.defjvp, symbolic_zeros=True)
def _log_sum_exp_jvp(cap, block, primals, tangents):
    """Differentiates `_log_sum_exp`: with c = log sum exp(logits), it has the derivative of sum exp(logits - c).

    That sum keeps nothing from block to block; differentiating the sums above would keep them for every block.
    """
    out = _log_sum_exp(*primals, cap, block)

    moving = [not isinstance(tangent, SymbolicZero) for tangent in tangents]

    def mass(*moved: jax.Array) -> jax.Array:
        coming = iter(moved)
        x, table = (next(coming) if moves else primal for moves, primal in zip(moving, primals, strict=True))
        add = lambda sums, logits: (sums[0] + jnp.exp(logits - out[..., None, None]).sum(axis=2),)  # noqa: E731
        return _over_blocks(add, (0.0,), x, table, cap, block)[0].sum(axis=-1)

    if not any(moving):
        return out, jnp.zeros_like(out)
    # Nothing is multiplied for the embedding where only activations move, as in attribution.
    # pyrefly: ignore[bad-argument-type]  two tuples, of primals and tangents
    return out, jax.jvp(mass, *(tuple(itertools.compress(each, moving)) for each in (primals, tangents)))[1]


def _over_blocks(
    add: Callable[[Any, jax.Array], Sums],
    start: tuple[float, ...],
    x: jax.Array,
    table: jax.Array,
    cap: float | None,
    block: int,
) -> Sums:
    """Returns sums [B, T, P] that begin at `start`, after `add(sums, logits)` for every block of logits [B, T, I, P].

    The backward pass computes each block again.
    """
    (B, T, D), V = x.shape, len(table)
    P = math.gcd(V, _PARTS)
    steps = math.ceil(V / P / max(1, block // (B * T * P)))
    each = math.ceil(V / P / steps)  # rows of each part in a block, I
    parts = table.reshape(P, V // P, D)
    # The precision is named: a rule of differentiation may be traced where the caller's default is no longer set.
    product = functools.partial(jnp.einsum, "BTD,IPD->BTIP", precision="highest", preferred_element_type=jnp.float32)

    @jax.checkpoint
    def step(sums: Sums, number: jax.Array) -> tuple[Sums, None]:
        # The last block is moved back to end with the parts; the rows that it has again are left out.
        first = jnp.minimum(number * each, V // P - each)
        rows = jax.lax.dynamic_slice_in_dim(parts, first, each, axis=1).swapaxes(0, 1).astype(x.dtype)
        logits = softcap(product(x, rows), cap)
        if steps * each * P != V:
            logits = jnp.where((first + jnp.arange(each) >= number * each)[:, None], logits, -jnp.inf)
        return add(sums, logits), None

    begun = tuple(jnp.full((B, T, P), value, jnp.float32) for value in start)
    return jax.lax.scan(step, begun, jnp.arange(steps))[0]
