"""`Edits`: functions of the values at sites, as one pytree that can be joined, bound to a text, and an argument of jit.

This file knows how edits are put together, and which facts about the text they need before they run. `hooks.py` knows
how they run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mishax_lite.tracing import matches

# (value, its `Site`) -> the new value; where the pattern is None, positions [B, T] -> edits.
Function = Callable[..., Any]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Edits:
    """Functions of values, each for the sites that its pattern matches.

    Edits are a pytree: the arrays of the functions are the leaves, so a jitted function that takes edits as an argument
    is not compiled again for other numbers. Functions that are pytrees (a registered dataclass with `__call__`, a
    `jax.tree_util.Partial`) keep their arrays as leaves; any other function is static.

    `a | b` applies a, then b, at a site that both touch. Either may be a dict.

    An edit may need to know the text, for example to leave BOS unchanged. Such an edit is either a function of
    positions that returns edits, or a function whose attribute `bind` is a function of (tokens, positions) that returns
    the edit. `edit`, and everything else that takes edits, calls `bind`; after that no edit needs the text.

    Attributes:
        entries: pairs of a pattern and a function of (value, site), in the order in which they apply. The pattern is
            None for a function of positions [B, T] that returns edits.

    Example:
        >>> halve = mishax_lite.Edits.of({"h": lambda value, site: value / 2})
        >>> edits = {"h": lambda value, site: value + 1} | halve
        >>> float(mishax_lite.edit(lambda x: mishax_lite.tap("h", x), edits)(3.0))
        2.0
    """

    entries: tuple[tuple[str | None, Function], ...] = ()

    @staticmethod
    def of(edits: Mapping[str, Function] | Edits | Function | None) -> Edits:
        """Makes edits of everything that is accepted in their place.

        Args:
            edits: a dict from patterns to functions of (value, site), edits, a function of positions [B, T] that
                returns either, or None for no edits.

        Raises:
            ValueError: for anything else, a pattern that is no string, and an edit that is no function.

        Example:
            >>> mishax_lite.Edits.of({"layer_*/mlp_out": lambda value, site: 0 * value}).patterns
            ('layer_*/mlp_out',)
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
        """The patterns in order, without those that a function of positions will name."""
        return tuple(pattern for pattern, _ in self.entries if pattern is not None)

    @property
    def needs_text(self) -> bool:
        """Whether any of the edits must be bound before it can run."""
        return any(pattern is None or attribute(function, "bind") for pattern, function in self.entries)

    def bind(self, tokens: jax.Array, positions: jax.Array) -> Edits:
        """Returns the edits for one text; none of them needs the text any more.

        Args:
            tokens: integers [B, T].
            positions: integers [B, T], the place of each token in its text; negative for padding.

        Raises:
            ValueError: for tokens and positions of other or of different shapes, and if a function of positions returns
                something other than edits.

        Example:
            >>> steer = mishax_lite.Edits.of(lambda positions: {"h": lambda value, site: value + (positions > 0)})
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
        """Returns the functions of (value, site) that apply at a site, in order: for a model with hooks of its own.

        Args:
            name: the name of the site, such as `layer_3/mlp_out`.

        Raises:
            ValueError: if some of the edits must be bound first.

        Example:
            >>> edits = mishax_lite.Edits.of({"layer_*": lambda value, site: value / 2})
            >>> [function(8.0, None) for function in edits.functions("layer_3/mlp_out")]
            [4.0]
        """
        self._check_bound()
        # pyrefly: ignore[bad-argument-type]  bound edits have patterns alone
        return tuple(function for pattern, function in self.entries if matches(name, pattern))

    def then(self, change: Callable[[Any, Any], Any]) -> Edits:
        """Returns edits whose results go through a further function.

        Args:
            change: a function of (an edit's result, the edit's value), such as a cast to the value's dtype. It is
                static.

        Raises:
            ValueError: if some of the edits must be bound first.

        Example:
            >>> add = mishax_lite.Edits.of({"h": lambda value, site: value + jnp.float32(0.5)})
            >>> add = add.then(lambda new, value: new.astype(value.dtype))
            >>> add.functions("h")[0](jnp.bfloat16(1), None).dtype
            dtype(bfloat16)
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
    """Returns an attribute of a function (`bind`, `reads`), also of one in a Partial; None if it has none."""
    value = getattr(function, name, None)
    if value is None and isinstance(function, jax.tree_util.Partial):
        return getattr(function.func, name, None)
    return value


def names_read(functions: Iterable[Function]) -> tuple[str, ...]:
    """Returns the names of the sites that some functions read, each once."""
    return tuple(dict.fromkeys(name for function in functions for name in attribute(function, "reads") or ()))


def identity(function: Function) -> int:
    """Returns a number that is equal for one and the same function, also where it was taken into edits twice."""
    if isinstance(function, _Then):
        return identity(function.function)
    if isinstance(function, jax.tree_util.Partial) and not (function.args or function.keywords):
        return id(function.func)
    return id(function)


def bound_to_text(edits: Edits, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Edits:
    """Returns the edits, bound to the text that `fn(*args, **kwargs)` reads.

    The function's attribute `text_of` says which text that is: called with the same arguments, it returns tokens and
    positions [B, T]. The search for it goes through `functools.partial` and `functools.wraps`, so through `jax.jit`.

    Raises:
        ValueError: if edits need the text and the function has no such attribute.
    """
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
    """Returns a function as a pytree whose leaves are its arrays; a function without arrays is static."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def _name(function: Function) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
