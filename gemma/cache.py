"""The keys and values of the tokens so far, so that decoding computes the new token alone.

A global layer keeps every token, padding too, in the order in which they come. A local one keeps the last `window` of
them in a ring: the token with position p lies at p modulo the ring's size, and padding nowhere, so that it pushes no
token out. All layers of a kind agree on which token lies where, so the positions are kept once for each kind.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from gemma.configs import GLOBAL, LOCAL, Config

if TYPE_CHECKING:
    from gemma.model import Model

EMPTY = -1  # the position of a place that holds no token, and of padding: no query sees it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where a kind of layer puts new tokens; one of the three is there.

    Attributes:
      step: a scalar, the first token's place. The others follow it: no ring.
      slots: [B], the place of the one new token in a ring of R; R for padding, which has none.
      sources: [B, R], for each place of a ring which token it has afterwards: number n of the R old ones, or R + n for
        number n of the new ones.
    """

    step: jax.Array | None = None
    slots: jax.Array | None = None
    sources: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values [B, R, K, H] of one layer, and where the new ones go."""

    k: jax.Array
    v: jax.Array
    places: Places


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

    layers: tuple[dict[str, Float[jax.Array, "B _ K H"]], ...]
    positions: dict[str, Int32[jax.Array, "B _"]]
    next_positions: Int32[jax.Array, " B"]
    step: Int32[jax.Array, ""]
    capacity: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        # Arrays may be tracers or shapes; under a transformation they may be anything.
        shape = getattr(self.next_positions, "shape", None)
        batch = f"{shape[0]} sequences, " if isinstance(shape, tuple) and len(shape) == 1 else ""
        return f"Cache({batch}{len(self.layers)} layers, room for {self.capacity} tokens)"

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

    def places(self, kind: str, positions: Int32[jax.Array, "B T"]) -> Places:
        """Where a kind of layer puts tokens at these positions [B, T]."""
        B, T = positions.shape
        R = self.positions[kind].shape[1]
        if self.capacity == R:
            return Places(step=self.step)
        if T == 1:
            return Places(slots=jnp.where(positions < 0, R, positions % R)[:, 0])
        last = jnp.max(positions, axis=1, keepdims=True)
        slots = jnp.where((positions < 0) | (positions <= last - R), R, positions % R)
        old, new = (jnp.arange(n, dtype=jnp.int32)[None] for n in (R, T))
        rows = jnp.broadcast_to(jnp.arange(B)[:, None], (B, T))
        sources = jnp.broadcast_to(old, (B, R)).at[rows, slots].set(jnp.broadcast_to(new + R, (B, T)), mode="drop")
        return Places(sources=sources)

    def layer(self, i: int, places: Places) -> LayerCache:
        """The part of one layer."""
        return LayerCache(self.layers[i]["k"], self.layers[i]["v"], places)


def empty(model: "Config | Model", batch: int, capacity: int, dtype: jnp.dtype | None = None) -> Cache:
    """A cache for `batch` sequences of at most `capacity` tokens, padding included.

    Args:
      model: a model, or its configuration alone.
      batch, capacity: B, and the tokens of each sequence.
      dtype: of keys and values; by default the model's, and float32 for a configuration. Whatever it is, the model
        computes in its own.

    Raises:
      ValueError: for sizes below 1.

    Example:
      cache = gemma.empty_cache(model, batch=1, capacity=64)
      logits, cache = model.apply(tokens, cache=cache)
    """
    config = model if isinstance(model, Config) else model.config
    if dtype is None:
        dtype = jnp.float32 if isinstance(model, Config) else model.dtype
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
    """Keys and values [B, S, K, H] that the new tokens' queries choose from, in the dtype of the new ones, and the
    cache with these in it, in its own."""
    seen_k, kept_k = write(cache.k, k, cache.places)
    seen_v, kept_v = write(cache.v, v, cache.places)
    return seen_k.astype(k.dtype), seen_v.astype(v.dtype), dataclasses.replace(cache, k=kept_k, v=kept_v)


def write(old: jax.Array, new: jax.Array, places: Places) -> tuple[jax.Array, jax.Array]:
    """What the queries of the new tokens see, [B, S, …], and what is kept, [B, R, …].

    Into a ring, one token takes the place of one that has left its window; but of several, the first still see what
    the last will write over, so they see old and new side by side.
    """
    new = new.astype(old.dtype)
    if places.step is not None:
        kept = jax.lax.dynamic_update_slice_in_dim(old, new, places.step, axis=1)
        return kept, kept
    if places.slots is not None:
        kept = old.at[jnp.arange(old.shape[0]), places.slots].set(new[:, 0], mode="drop")
        return kept, kept
    seen = jnp.concatenate([old, new], axis=1)
    return seen, jax.vmap(lambda tokens, sources: tokens[sources])(seen, places.sources)
