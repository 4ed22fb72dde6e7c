"""The keys and values of the tokens so far, so that decoding computes the new token alone.

A global layer keeps every token; a local one keeps the last `window` of them in a ring: token number n of the sequence
(padding counted) lies at n modulo the ring's size. All layers of a kind agree on which token lies where, so the
positions are kept once for each kind.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gemma.configs import GLOBAL, LOCAL, Config

EMPTY = -1  # the position of a place that holds no token, and of padding: no query sees it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values [B, R, K, H] of one layer, and how many tokens came before (a scalar).

    `ring` is static: whether R is less than all the tokens that there will be, so that old ones are written over.
    """

    k: jax.Array
    v: jax.Array
    step: jax.Array
    ring: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What `empty` makes, `Model.apply` takes, and gives back longer.

    Attributes:
      layers: keys and values of each layer, [B, R, K, H].
      positions: for each kind of layer the positions [B, R] of the tokens that it holds, EMPTY where there is none.
      next_positions: [B], the position that the next token of each sequence has by default.
      step: a scalar, how many tokens (padding too) came before.
      capacity: how many tokens there can be.
    """

    layers: tuple[dict[str, jax.Array], ...]
    positions: dict[str, jax.Array]
    next_positions: jax.Array
    step: jax.Array
    capacity: int = dataclasses.field(metadata={"static": True})

    def check_room(self, batch: int, length: int) -> None:
        """Raises ValueError where `length` more tokens of `batch` sequences have no place; under jit, where the number
        of tokens so far is not known, only where they never had."""
        if self.next_positions.shape[0] != batch:
            raise ValueError(f"the cache is for {self.next_positions.shape[0]} sequences, got {batch}")
        before = 0 if isinstance(self.step, jax.core.Tracer) else int(self.step)
        if before + length > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens and holds {before}: {length} more do not fit; "
                "make it with a greater capacity"
            )

    def layer(self, i: int) -> LayerCache:
        """The part of one layer."""
        k, v = self.layers[i]["k"], self.layers[i]["v"]
        return LayerCache(k, v, self.step, ring=k.shape[1] < self.capacity)


def empty(config: Config, batch: int, capacity: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """A cache for `batch` sequences of at most `capacity` tokens, padding included.

    Raises:
      ValueError: for sizes below 1.
    """
    if batch < 1 or capacity < 1:
        raise ValueError(f"a cache is for at least one sequence of one token, got batch {batch}, capacity {capacity}")
    sizes = {GLOBAL: capacity, LOCAL: min(config.window, capacity)}
    shape = lambda kind: (batch, sizes[kind], config.num_kv_heads, config.head_dim)  # noqa: E731
    return Cache(
        tuple({x: jnp.zeros(shape(kind), dtype) for x in ("k", "v")} for kind in config.layer_kinds),
        {kind: jnp.full((batch, size), EMPTY, jnp.int32) for kind, size in sizes.items()},
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((), jnp.int32),
        capacity,
    )


def extend(cache: LayerCache, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, LayerCache]:
    """Keys and values [B, S, K, H] that the new tokens' queries choose from, and the cache with the new ones in it."""
    seen_k, kept_k = write(cache.k, k, cache.step, cache.ring)
    seen_v, kept_v = write(cache.v, v, cache.step, cache.ring)
    return seen_k, seen_v, dataclasses.replace(cache, k=kept_k, v=kept_v)


def write(old: jax.Array, new: jax.Array, step: jax.Array, ring: bool) -> tuple[jax.Array, jax.Array]:
    """What the queries of the new tokens see, [B, S, …], and what is kept, [B, R, …].

    Into a ring, one token takes the place of one that has left its window; but of several, the first still see what
    the last will write over, so they see old and new side by side.
    """
    R, T = old.shape[1], new.shape[1]
    new = new.astype(old.dtype)
    if not ring or T == 1:
        kept = jax.lax.dynamic_update_slice_in_dim(old, new, step % R if ring else step, axis=1)
        return kept, kept
    last = new[:, -R:]
    places = (step + T - last.shape[1] + jnp.arange(last.shape[1])) % R
    return jnp.concatenate([old, new], axis=1), old.at[:, places].set(last)
