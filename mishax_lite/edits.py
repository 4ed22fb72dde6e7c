"""`Edits`: what is done at which sites, as one pytree that can be joined, bound to a text and an argument of jit.

It knows how edits are put together and what they must be told before they run. How they run, `hooks.py` says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mishax_lite.tracing import matches

# Of a value and its `Site` the new value; where the pattern is None, of positions [B, T] the edits.
Function = Callable[..., Any]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Edits:
    """Functions of values, each for the sites that its pattern matches.

    A pytree: the arrays of its functions are its leaves, so that a jitted function that takes it as an argument is not
    compiled again for other numbers. Functions that are pytrees (a registered dataclass with `__call__`, a
    `jax.tree_util.Partial`) keep their arrays as leaves; any other function is static.

    `a | b` applies a, then b, at a site that both touch. Either may be a dict.

    An edit may need to know the text, such as one that leaves BOS as it is. It is either a function of positions that
    returns edits, or an edit whose attribute `bind` is a function of (tokens, positions) that returns the edit. `edit`
    and whatever else takes edits calls `bind`; after that none of them needs the text.

    Attributes:
        entries: pairs of a pattern and a function of (value, site), in the order in which they apply. The pattern is
            None for a function of positions [B, T] that returns edits.

    Example:
        >>> halve = Edits.of({"h": lambda value, site: value / 2})
        >>> edit(lambda x: tap("h", x), {"h": lambda value, site: value + 1} | halve)(3.0)
        Array(2., dtype=float32, weak_type=True)
    """

    entries: tuple[tuple[str | None, Function], ...] = ()

    @staticmethod
    def of(edits: Mapping[str, Function] | Edits | Function | None) -> Edits:
        """Makes edits of whatever is accepted in their place.

        Args:
            edits: a dict from patterns to functions of (value, site), edits, a function of positions [B, T] that
                returns either, or None for no edits.

        Raises:
            ValueError: for anything else, a pattern that is no string, and an edit that is no function.
        """
        if edits is None:
            return Edits()
        if isinstance(edits, Edits):
            return edits
        if callable(edits):
            return Edits(((None, _as_pytree(edits)),))
        if not isinstance(edits, Mapping):
            raise ValueError(
                f"edit: edits are a dict from patterns to functions of (value, site), or `Edits`; got a "
                f"{type(edits).__name__}: {edits!r:.80}"
            )
        for pattern, function in edits.items():
            if not isinstance(pattern, str):
                raise ValueError(f"edit: a pattern must be a string; got {type(pattern).__name__}: {pattern!r:.80}")
            if not callable(function):
                raise ValueError(f"edit: expected a function for pattern {pattern!r}, got {type(function).__name__}")
        return Edits(tuple((pattern, _as_pytree(function)) for pattern, function in edits.items()))

    def __or__(self, other: Any) -> Edits:
        return Edits(self.entries + Edits.of(other).entries)

    def __ror__(self, other: Any) -> Edits:
        return Edits.of(other) | self

    def __repr__(self) -> str:
        parts = [f"{pattern or 'by position'}: {_name(function)}" for pattern, function in self.entries]
        return f"Edits({', '.join(parts)})"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns in order; those that a function of positions will name are not among them."""
        return tuple(pattern for pattern, _ in self.entries if pattern is not None)

    @property
    def needs_text(self) -> bool:
        """Whether any of them must be bound before it can run."""
        return any(pattern is None or attribute(function, "bind") for pattern, function in self.entries)

    def bind(self, tokens: jax.Array, positions: jax.Array) -> Edits:
        """Returns the edits for one text, of which none needs the text any more.

        Args:
            tokens: integers [B, T].
            positions: integers [B, T], the place of each token in its text; negative for padding.

        Raises:
            ValueError: for tokens and positions of other or of different shapes, and for what a function of positions
                returns if it is no edits.

        Example:
            >>> steer = Edits.of(lambda positions: {"h": lambda value, site: value + (positions > 0)})
            >>> steer.bind([[2, 7, 9]], [[0, 1, 2]]).patterns
            ('h',)
        """
        if not self.needs_text:
            return self
        tokens, positions = jnp.asarray(tokens), jnp.asarray(positions)
        if tokens.ndim != 2 or tokens.shape != positions.shape:
            raise ValueError(
                f"edits are bound to tokens and positions [B, T], got {list(tokens.shape)} and "
                f"{list(positions.shape)}; where a vmap goes over texts, edit the function inside it"
            )
        return Edits(tuple(entry for pair in self.entries for entry in _bound(*pair, tokens, positions)))

    def functions(self, name: str) -> tuple[Function, ...]:
        """The functions of (value, site) that apply at a site, in order: for a model with hooks of its own.

        Args:
            name: of the site, such as `layer_3/mlp_out`.

        Raises:
            ValueError: if some of the edits must be bound first.
        """
        self._check_bound()
        # pyrefly: ignore[bad-argument-type]  bound edits have patterns alone
        return tuple(function for pattern, function in self.entries if matches(name, pattern))

    def then(self, change: Callable[[Any, Any], Any]) -> Edits:
        """Returns edits of which each result goes through a function of (result, value that was given).

        Args:
            change: static, such as a cast to the value's dtype.

        Raises:
            ValueError: if some of the edits must be bound first.

        Example:
            >>> add = Edits.of({"h": lambda value, site: value + 0.5}).then(lambda new, value: new.astype(value.dtype))
        """
        self._check_bound()
        return Edits(tuple((pattern, _Then(function, change)) for pattern, function in self.entries))

    def _check_bound(self) -> None:
        if self.needs_text:
            raise ValueError(f"{self!r} must be bound to a text first: edits.bind(tokens, positions)")

    def tree_flatten(self) -> tuple[tuple[Function, ...], tuple[str | None, ...]]:
        return tuple(function for _, function in self.entries), tuple(pattern for pattern, _ in self.entries)

    @classmethod
    def tree_unflatten(cls, patterns: tuple[str | None, ...], functions: tuple[Function, ...]) -> Edits:
        return cls(tuple(zip(patterns, functions, strict=True)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Then:
    """A function of (value, site) whose result goes through `change`."""

    function: Function
    change: Callable[[Any, Any], Any] = dataclasses.field(metadata={"static": True})

    def __call__(self, value: Any, site: Any) -> Any:
        return self.change(self.function(value, site), value)

    @property
    def reads(self) -> tuple[str, ...]:
        return names_read([self.function])


def attribute(function: Function, name: str) -> Any:
    """What a function says of itself (`bind`, `reads`), also where it stands in a Partial; None if it says nothing."""
    value = getattr(function, name, None)
    if value is None and isinstance(function, jax.tree_util.Partial):
        return getattr(function.func, name, None)
    return value


def names_read(functions: Iterable[Function]) -> tuple[str, ...]:
    """The names of the sites that some functions read, each once."""
    return tuple(dict.fromkeys(name for function in functions for name in attribute(function, "reads") or ()))


def identity(function: Function) -> int:
    """Equal for functions that are the same one, also where they were taken into edits twice."""
    if isinstance(function, _Then):
        return identity(function.function)
    if isinstance(function, jax.tree_util.Partial) and not (function.args or function.keywords):
        return id(function.func)
    return id(function)


def bound_to_text(edits: Edits, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Edits:
    """The edits, bound to the text that `fn(*args, **kwargs)` reads.

    The attribute `text_of` of the function says which text that is: of the same arguments it returns tokens and
    positions [B, T]. It is looked for through `functools.partial` and whatever `functools.wraps` has made, as `jax.jit`.

    Raises:
        ValueError: if edits need the text and the function has no such attribute.
    """  # noqa: E501
    if not edits.needs_text:
        return edits
    inner: Any = fn
    while getattr(inner, "text_of", None) is None:
        if isinstance(inner, functools.partial):
            args, kwargs, inner = (*inner.args, *args), {**inner.keywords, **kwargs}, inner.func
        elif hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        else:
            raise ValueError(
                f"edit: {edits!r} depends on the text, and {_name(fn)} does not say which text it reads. Give the "
                "edits to model.run or model.apply (edits=...), edit model.apply itself, or bind them first: "
                "edits.bind(tokens, positions), both [B, T]"
            )
    return edits.bind(*inner.text_of(*args, **kwargs))


def _bound(pattern: str | None, function: Function, tokens: jax.Array, positions: jax.Array) -> Iterable[Any]:
    if pattern is not None:
        bind = attribute(function, "bind")
        return ((pattern, function if bind is None else bind(tokens, positions)),)
    try:
        edits = function(positions)
    except TypeError as error:
        error.add_note("A function in the place of edits is one of positions [B, T] that returns edits.")
        raise
    if not isinstance(edits, (Mapping, Edits)):
        raise ValueError(
            f"edit: {_name(function)}, a function of positions, must return edits; got a {type(edits).__name__}"
        )
    return Edits.of(edits).bind(tokens, positions).entries


def _as_pytree(function: Function) -> Function:
    """A function whose arrays are leaves; one without any is static."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def _name(function: Function) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
