"""The output of a traced function: its arrays as places in the outputs of a jaxpr, everything else unchanged.

Tracers may not outlive their trace, so nothing here keeps one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mishax_lite import _jax_internals

# The most objects to search for tracers in each output; an output that holds more is believed to have none.
_MOST_OBJECTS = 100_000
_PLAIN = (str, bytes, int, float, complex, type(None), np.ndarray, np.generic, jax.Array, types.ModuleType, type)


def is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array to JAX (an array of strings or objects is none)."""
    if isinstance(leaf, np.ndarray):
        return jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
    return isinstance(leaf, jax.Array)


class Settled:
    """The base class of leaves that may hold traced values, since their owner replaces these after the trace."""


class Carried(NamedTuple):
    """An output with state that is carried beside it."""

    output: Any
    state: Any


class Output:
    """The structure of a function's output: called with the values of its arrays, it returns the output.

    Args:
        output: the function's output, while the function is still being traced.
    """

    def __init__(self, output: Any) -> None:
        leaves, self._tree = jax.tree.flatten(output)
        self._places = [is_array(leaf) for leaf in leaves]
        self._others = [None if place else leaf for place, leaf in zip(self._places, leaves, strict=True)]
        self._refusal = ""
        if any(_tracer_in(leaf) for leaf in self._others if not isinstance(leaf, Settled)):
            self._refusal, self._others = _refusal(output), []

    @staticmethod
    def arrays(output: Any) -> list[Any]:
        """Returns the arrays in an output, in the order in which `__call__` takes them."""
        return [leaf for leaf in jax.tree.leaves(output) if is_array(leaf)]

    def check(self) -> None:
        """Raises ValueError if the output cannot be made: an object that JAX does not know holds traced values."""
        if self._refusal:
            raise ValueError(self._refusal)

    def __call__(self, values: list[Any]) -> Any:
        self.check()
        # Literals and constants of the program are no arrays yet.
        arrays = iter([value if isinstance(value, jax.Array) else jnp.asarray(value) for value in values])
        pairs = zip(self._places, self._others, strict=True)
        return jax.tree.unflatten(self._tree, [next(arrays) if place else other for place, other in pairs])


def _refusal(output: Any) -> str:
    """Returns a message that names the part of an output that holds traced values out of JAX's sight."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(output):
        place = None if is_array(leaf) or isinstance(leaf, Settled) else _tracer_in(leaf)
        if place:
            where = jax.tree_util.keystr(path[1:] if isinstance(output, Carried) else path)
            return (
                f"the function returns an object of class {type(leaf).__name__}, which is no pytree to JAX; the traced "
                f"value in it, output{where}{place}, cannot come out of the trace. Register the class "
                "(jax.tree_util.register_dataclass, for one), or return the arrays themselves"
            )
    raise AssertionError("no output holds a traced value")


def _tracer_in(leaf: Any) -> str:
    """Returns where in an object a value of the current trace is, as Python would write it; "" if nowhere."""
    seen: set[int] = set()
    waiting = [(leaf, "")]
    while waiting and len(seen) < _MOST_OBJECTS:
        item, place = waiting.pop()
        if isinstance(item, jax.core.Tracer):
            if _jax_internals.is_current(item):
                return place
        elif not isinstance(item, _PLAIN) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend((inner, place + name) for name, inner in _parts(item))
    return ""


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    """Yields the objects that an object holds, each after the text that leads to it."""
    if isinstance(item, dict):
        yield from ((f"[{key!r}]", value) for key, value in item.items())
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from ((f"[{k}]", value) for k, value in enumerate(item))
    if isinstance(item, types.FunctionType):
        names = item.__code__.co_freevars
        for name, cell in zip(names, item.__closure__ or (), strict=True):
            try:
                yield f" (its variable {name!r})", cell.cell_contents
            except ValueError:  # a variable that was not assigned yet
                continue
        yield " (its defaults)", (item.__defaults__, item.__kwdefaults__)
    elif isinstance(item, types.MethodType):
        yield ".__self__", item.__self__
    elif isinstance(item, functools.partial):
        yield " (its arguments)", (item.func, item.args, item.keywords)
    for name, value in getattr(item, "__dict__", {}).items():
        yield f".{name}", value
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(item, name):
                yield f".{name}", getattr(item, name)
