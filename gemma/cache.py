"""The keys and values of the tokens so far, so that decoding computes the new token alone.

A global layer keeps every token, padding too, in the order in which they come. A local layer keeps the last `window`
tokens in a ring: the token with position p lies at p modulo the ring's size. Padding has no place in the ring, so it
pushes no token out. All layers of a kind have their tokens at the same places, so each kind keeps the positions once.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from gemma.configs import GLOBAL, LOCAL, Config

if TYPE_CHECKING:
    from gemma.model import Model

EMPTY = -1  # the position of a place without a token, and of padding: no query sees it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """The places where a kind of layer puts new tokens; one of the three attributes is set.

    Attributes:
        step: a scalar, the first token's place without a ring. The other tokens follow it.
        slots: [B], the place of the one new token in a ring of R; R for padding, which has no place.
        sources: [B, R], the token that each place of a ring has afterwards: n for the old token at place n, R + n for
            new token n.
    """

    step: jax.Array | None = None
    slots: jax.Array | None = None
    sources: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """The keys and values [B, R, K, H] of one layer, and the places of the new ones."""

    k: jax.Array
    v: jax.Array
    places: Places


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The keys and values of the tokens so far. `empty_cache` makes it; `Model.apply` takes it and returns it longer.

    Attributes:
        layers: the keys "k" and values "v" of each layer, [B, R, K, H].
        positions: for each kind of layer the positions [B, R] of its tokens, -1 at a place without a token.
        next_positions: [B], the position that the next token of each sequence has by default.
        step: a scalar, how many tokens (padding too) came before.
        capacity: the largest number of tokens.

    Example:
        >>> step = jax.jit(lambda model, tokens, cache: model.apply(tokens, cache=cache))
        >>> logits, cache = step(model, jnp.array([[2, 392]]), gemma.empty_cache(model, batch=1, capacity=8))
        >>> cache, cache.next_positions.tolist()
        (Cache(1 sequence, 6 layers, room for 8 tokens), [2])
    """

    layers: tuple[dict[str, Float[jax.Array, "B _ K H"]], ...]
    positions: dict[str, Int32[jax.Array, "B _"]]
    next_positions: Int32[jax.Array, " B"]
    step: Int32[jax.Array, ""]
    capacity: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        # Arrays may be tracers or shapes; under a transformation they may be anything.
        shape = getattr(self.next_positions, "shape", None)
        count = shape[0] if isinstance(shape, tuple) and len(shape) == 1 else None
        batch = "" if count is None else "1 sequence, " if count == 1 else f"{count} sequences, "
        return f"Cache({batch}{len(self.layers)} layers, room for {self.capacity} tokens)"

    def check_room(self, batch: int, length: int) -> None:
        """Raises ValueError if the cache has no room for `length` more tokens of `batch` sequences.

        Under jit the number of tokens so far is not concrete; then an empty cache must have the room.
        """
        if self.next_positions.shape[0] != batch:
            raise ValueError(f"the cache is for {self.next_positions.shape[0]} sequences, got {batch}")
        before = 0 if isinstance(self.step, jax.core.Tracer) else int(self.step)
        if before + length > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens and holds {before}: {length} more do not fit; "
                "make it with a greater capacity"
            )

    def places(self, kind: str, positions: Int32[jax.Array, "B T"]) -> Places:
        """Returns the places where a kind of layer puts tokens at these positions [B, T]."""
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
        """Returns the part of layer `i`."""
        return LayerCache(self.layers[i]["k"], self.layers[i]["v"], places)


def empty(model: "Config | Model", batch: int, capacity: int, dtype: jnp.dtype | None = None) -> Cache:
    """Returns a cache for `batch` sequences of at most `capacity` tokens, padding included.

    Args:
        model: a model, or its configuration alone.
        batch: B, the number of sequences.
        capacity: the largest number of tokens of each sequence.
        dtype: the dtype of keys and values; by default the model's, and float32 for a configuration. The model computes
            in its own dtype in any case.

    Raises:
        ValueError: for sizes below 1.

    Example:
        >>> cache = gemma.empty_cache(gemma.config("gemma2-2b"), batch=1, capacity=64)
        >>> cache.layers[0]["k"].shape
        (1, 64, 4, 256)
    """
    config = model if isinstance(model, Config) else model.config
    if dtype is None:
        dtype = jnp.float32 if isinstance(model, Config) else model.dtype
    if batch < 1 or capacity < 1:
        raise ValueError(f"a cache needs at least one sequence of one token, got batch {batch}, capacity {capacity}")
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
    """Adds new keys and values to a layer's cache.

    Args:
        cache: the layer's cache.
        k: the new keys [B, T, K, H].
        v: the new values [B, T, K, H].

    Returns:
        The keys and the values [B, S, K, H] that the new tokens' queries see, in the dtype of the new ones, and the
        cache with the new ones, in its own dtype.
    """
    seen_k, kept_k = write(cache.k, k, cache.places)
    seen_v, kept_v = write(cache.v, v, cache.places)
    return seen_k.astype(k.dtype), seen_v.astype(v.dtype), dataclasses.replace(cache, k=kept_k, v=kept_v)


def write(old: jax.Array, new: jax.Array, places: Places) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers that the queries of the new tokens see, [B, S, …], and those that the cache keeps, [B, R, …].

    In a ring, one new token takes the place of a token that has left its window. Of several new tokens, the first ones
    still see tokens that the last ones write over, so all of them see old and new tokens side by side.
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
