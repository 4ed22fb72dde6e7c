"""The edits of `sae.interventions` in a running model: the tokens at which they act, and the change of the activations.

Every class here is a pytree whose numbers are leaves. Axis letters: B sequences, T tokens, A dim of the activation
(heads joined), K latents that an edit changes.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Integer

from mishax_lite import Site
from mishax_lite.promotion import common_dtype
from sae.released import Part, Released, plus, ranked

Marks = Integer[jax.Array | np.ndarray, "..."] | Bool[jax.Array | np.ndarray, "B T"]
Positions = int | slice | Sequence[int] | Marks | Callable[[jax.Array], jax.Array]
# (activations [B, T, A] where the edit acts, activations [B, T, A] that the autoencoder reads) -> new activations.
Change = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Steer:
    """Adds strengths [K] times rows [K, A]."""

    rows: jax.Array | np.ndarray
    strengths: jax.Array

    def __call__(self, x: jax.Array, _: jax.Array) -> jax.Array:
        if self.rows.shape[-1] != x.shape[-1]:
            raise ValueError(f"the autoencoder's output has dim {self.rows.shape[-1]}, the site {x.shape[-1]}")
        return plus(x, jnp.einsum("K,KA->A", self.strengths, self.rows, precision="highest"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Splice:
    """Puts the reconstruction in the place of the activation; with `error`, in the gradients alone."""

    autoencoder: Released
    error: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        reconstruction = self.autoencoder(source)
        if not self.error:
            return reconstruction
        # The value is x to the last bit; reconstruction + stop_gradient(x - reconstruction) would round twice.
        return jax.lax.stop_gradient(x) + (reconstruction - jax.lax.stop_gradient(reconstruction))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Set:
    """Sets latents to values [K], and keeps the reconstruction's error.

    Attributes:
        autoencoder: with the K latents alone.
        values: [K], raw units.
        active: whether to act only where the latent fires.
    """

    autoencoder: Released | Part
    values: jax.Array
    active: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        f = self.autoencoder.encode(source)
        values = jnp.where(f > 0, self.values, f) if self.active else ranked(self.values, f)
        return x + jnp.einsum("...K,KA->...A", values - f, self.autoencoder.W_dec, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens at which an edit acts.

    Attributes:
        narrowing: a function of positions [B, T] to bool [B, T]; None for no narrowing.
        special_ids: ids of tokens that never count. None without a rule: then tokens at positions above 0 count.
        sink_norm: the norm, at the site that is read, above which a token is an attention sink; None without a limit.
    """

    narrowing: Any
    special_ids: tuple[int, ...] | None = dataclasses.field(metadata={"static": True})
    sink_norm: float | None = dataclasses.field(metadata={"static": True})

    def mask(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the tokens at which the edit acts, bool [B, T], by the text alone: attention sinks are not left out.

        Raises:
            ValueError: for positions that do not become bool [B, T].
        """
        if self.special_ids is None:
            mask = positions > 0
        else:
            mask = (positions >= 0) & ~jnp.isin(tokens, jnp.array(self.special_ids, tokens.dtype))
        if self.narrowing is None:
            return mask
        narrowed = jnp.asarray(self.narrowing(positions))
        if narrowed.shape != mask.shape or narrowed.dtype != bool:
            raise ValueError(
                f"positions: expected bool {list(mask.shape)}, [B, T] of the text, got {narrowed.dtype}"
                f"{list(narrowed.shape)}; in generation T changes between steps: give integers, a slice or a function"
            )
        return mask & narrowed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Intervention:
    """A change at some tokens of a text that is not known yet.

    Attributes:
        change: the function that gives the new activations.
        tokens: where the edit acts.
        reads: the site that the autoencoder reads; None where that is the site where the edit acts.
    """

    change: Change
    tokens: Tokens
    reads: str | None = dataclasses.field(metadata={"static": True})

    def bind(self, tokens: jax.Array, positions: jax.Array) -> "Bound":
        """Returns the edit for a text with these tokens and positions, [B, T] each."""
        reads = () if self.reads is None else (self.reads,)
        return Bound(self.change, self.tokens.mask(tokens, positions), self.tokens.sink_norm, reads)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        raise ValueError("this edit depends on the text: bind it first, edits.bind(tokens, positions)")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """An edit of values [B, T, A] or [B, T, N, H] at the tokens of a mask [B, T]."""

    change: Change
    mask: jax.Array
    sink_norm: float | None = dataclasses.field(metadata={"static": True})
    reads: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        x, source = self._joined(value), None
        for name in self.reads:
            if name not in getattr(site, "read", ()):
                raise ValueError(
                    f"this edit reads {name}, and this model's hooks give an edit no value of another site. With a "
                    "transcoder it can steer, but it cannot splice, ablate or clamp"
                )
            source = self._joined(site.read[name])
        source = x if source is None else source
        mask = self.mask
        if self.sink_norm is not None:
            mask = mask & (jnp.linalg.norm(source, axis=-1) <= self.sink_norm)
        new = jnp.where(mask[..., None], self.change(x, source), x)
        return new.reshape(value.shape).astype(value.dtype)

    def _joined(self, value: jax.Array) -> jax.Array:
        """Returns a value as [B, T, A], heads joined, in float32 or wider."""
        if value.ndim < 3 or value.shape[:2] != self.mask.shape:
            raise ValueError(
                f"an autoencoder's edit acts on values [B, T, ...] of {list(self.mask.shape)} tokens, got "
                f"{list(value.shape)}"
            )
        return value.reshape(*self.mask.shape, -1).astype(common_dtype(value.dtype, jnp.float32))


def narrowing(positions: Positions | None) -> Callable[[jax.Array], jax.Array] | None:
    """Returns positions as a pytree that is a function of positions [B, T] to bool [B, T].

    Args:
        positions: an integer, several, a slice, an array bool [B, T], or a function; None stays None.

    Raises:
        ValueError: for another kind, and for negative positions: they mark padding and do not count from the end.
    """
    partial = jax.tree_util.Partial
    if positions is None or isinstance(positions, partial):
        return positions
    if isinstance(positions, slice):
        given = (positions.start, positions.stop, positions.step)
        bounds = [default if n is None else n for n, default in zip(given, (0, 2**31 - 1, 1), strict=True)]
        return partial(_in_slice, jnp.asarray(_natural(bounds, positions)))
    if callable(positions):
        return partial(positions) if jax.tree_util.all_leaves([positions]) else positions
    array = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    if array.dtype == bool and array.ndim == 2:
        return partial(_given, jnp.asarray(array))
    if isinstance(array, jax.core.Tracer) and jnp.issubdtype(array.dtype, jnp.integer):
        return partial(_among, array.reshape(-1))
    return partial(_among, jnp.asarray(_natural(array.reshape(-1).tolist(), positions)))


def _natural(numbers: Sequence[Any], positions: Any) -> np.ndarray:
    try:
        numbers = [operator.index(number) for number in numbers if not isinstance(number, bool)]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < 0 or (isinstance(positions, slice) and not numbers[-1]):
        raise ValueError(
            "positions are an integer, several, a slice, a function of positions [B, T] or an array bool [B, T], and "
            f"count from the first token, at 0; got {positions!r:.80}"
        )
    return np.asarray(numbers, np.int32)


def _in_slice(bounds: jax.Array, positions: jax.Array) -> jax.Array:
    start, stop, step = bounds
    return (positions >= start) & (positions < stop) & ((positions - start) % step == 0)


def _among(chosen: jax.Array, positions: jax.Array) -> jax.Array:
    return jnp.isin(positions, chosen)


def _given(mask: jax.Array, _: jax.Array) -> jax.Array:
    return mask
