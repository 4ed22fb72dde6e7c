"""Carries changes of the state of Flax nnx modules out of a trace, as `nnx.jit` does.

Modules of nnx are objects that change: `BatchNorm` keeps averages, `Dropout` counts its random numbers. A hook traces
its function, and Flax forbids a trace to change an object from outside. So this file lends the objects to the trace:
while the function is traced, they hold tracers and belong to the trace; then each object gets its old content back. The
state that the trace left in them becomes outputs of the traced program, and `Traced.settle` writes these outputs into
the same objects.

Modules in the arguments, and modules that the function closes over, are lent from the start. Where Flax refuses to
change another module, the traceback of its error shows which one, and the function is traced again. While a function is
traced, no other thread can use the modules that are lent to it.

This file imports only jax and the standard library. Where Flax's nnx has not been imported, it does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mishax_lite.outputs import Carried, Settled

_HELP = (
    "mishax_lite: a hook carries out changes of the nnx modules and Variables that its function gets as arguments or "
    "closes over. This one belongs to another trace: a jax.jit, grad, vmap or scan stands between the hook and the "
    "change, or around the hook. Use nnx.jit, nnx.grad, nnx.vmap or nnx.scan there, with the module as an argument."
)


def carries_state(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `trace(fn, args, kwargs)` trace what `fn` does to nnx modules as well.

    Args:
        trace: traces `fn` and returns a `tracing.Traced`. Leaves of arguments and output that are no arrays pass
            unchanged.

    Returns:
        A function like `trace`. Its result's `settle` also writes the new state into the modules. So `settle` must be
        called once, where the hook was called: in no transformation, and not at all where nothing is computed.
    """

    @functools.wraps(trace)
    def tracing(fn, args, kwargs):
        nnx = sys.modules.get("flax.nnx")
        if nnx is None:
            return trace(fn, args, kwargs)
        loan = _Loan(nnx, fn, args, kwargs)
        while True:
            try:
                traced = trace(loan.pure(fn), loan.pure_args, {})
                break
            except (sys.modules["flax.errors"].TraceContextError, ValueError) as error:
                # The transformations of nnx refuse with a ValueError.
                if "different trace level" not in str(error):
                    raise
                if not loan.extend(error.__traceback__):
                    error.add_note(_HELP)
                    raise
        return dataclasses.replace(traced, settle=lambda pair: loan.settle(*pair), peek=lambda pair: pair[0])

    return tracing


@dataclasses.dataclass(frozen=True, eq=False)
class _Hidden(Settled):
    """A module or Variable as a leaf: no pytree, and no array."""

    value: Any


@dataclasses.dataclass(frozen=True)
class _Content:
    """The content of an object: the names of its parts, and their leaves, some of which are modules or Variables."""

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    tree: Any

    @property
    def places(self) -> list[int]:
        """The positions of the arrays among the leaves."""
        return [k for k, leaf in enumerate(self.leaves) if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))]

    def with_arrays(self, places: list[int], arrays: list[Any]) -> _Content:
        replaced = dict(zip(places, arrays, strict=True))
        return dataclasses.replace(self, leaves=tuple(replaced.get(k, leaf) for k, leaf in enumerate(self.leaves)))

    def parts(self) -> dict[str, Any]:
        """Returns the parts by name, which belong to the trace that calls this: unflattening renews their trace."""
        return dict(zip(self.names, jax.tree.unflatten(self.tree, self.leaves), strict=True))

    def is_same(self, other: _Content) -> bool:
        """Returns whether the leaves are the same objects, in the same structure."""
        pairs = zip(self.leaves, other.leaves, strict=False)
        return (self.names, self.tree) == (other.names, other.tree) and all(a is b for a, b in pairs)


class _Loan:
    """The modules and Variables that one function may change while it is traced."""

    def __init__(self, nnx: types.ModuleType, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._node, self._variable = nnx.Pytree, nnx.Variable
        # The name of the slot is public in Flax 0.12.0, private in later versions.
        slot = "_raw_value" if "_raw_value" in nnx.Variable.__slots__ else "raw_value"
        self._slots = (slot, "_var_metadata", "_trace_state")
        self._lent: dict[int, Any] = {}
        self._results: list[tuple[Any, _Content, list[int]]] = []
        self._lend(jax.tree.leaves((args, kwargs), is_leaf=self._is_object))
        # Arrays in modules in the arguments are inputs of the trace, as all arrays in arguments are. A value that a
        # function closes over is an input of no trace.
        self._places = {key: self._content(value).places for key, value in self._lent.items()}
        arrays = [[self._content(value).leaves[k] for k in self._places[key]] for key, value in self._lent.items()]
        self.pure_args = (arrays, self._hide(args), self._hide(kwargs))
        self._lend(list(_closed_over(fn)))

    def pure(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of `pure_args` that returns the output of `fn` and the arrays that it left in objects."""

        @functools.wraps(fn, updated=())
        def call(inputs, args, kwargs):
            with self._lending(inputs) as before:
                out = fn(*self._show(args), **self._show(kwargs))
                return Carried(self._hide(out), self._collect(before, out))

        return call

    def settle(self, out: Any, arrays: list[list[Any]]) -> Any:
        """Writes the arrays that the trace left into the objects, and returns the output of the function."""
        for (value, content, places), new in zip(self._results, arrays, strict=True):
            if id(value) in self._lent and not self._is_ours(value):
                raise RuntimeError(
                    f"the new state of a {type(value).__name__} has to be written where the hook was called, "
                    "not in a transformation inside of the hook"
                )
            self._put(value, content.with_arrays(places, new).parts())
        return self._show(out)

    def extend(self, traceback: types.TracebackType | None) -> bool:
        """Lends the objects that local variables in a traceback hold; returns whether they are new."""
        count = len(self._lent)
        while traceback is not None:
            self._lend(list(traceback.tb_frame.f_locals.values()))
            traceback = traceback.tb_next
        return len(self._lent) > count

    def _lend(self, values: list[Any]) -> None:
        for value in self._reachable(values):
            if self._is_ours(value):
                self._lent.setdefault(id(value), value)

    @contextlib.contextmanager
    def _lending(self, inputs: list[list[Any]]) -> Iterator[dict[int, _Content]]:
        """Yields the content of the objects at the start, while all of them belong to the trace."""
        saved = {key: self._parts(value) for key, value in self._lent.items()}
        tracers = dict(zip(self._places, inputs, strict=True))
        try:
            before = {}
            for key, value in self._lent.items():
                content = self._content(value)
                before[key] = content.with_arrays(self._places.get(key, []), tracers.get(key, []))
                self._put(value, before[key].parts())
            yield before
        finally:
            for key, value in self._lent.items():
                self._put(value, saved[key])

    def _collect(self, before: dict[int, _Content], out: Any) -> list[list[Any]]:
        """Notes which objects changed and which are new, and returns the arrays in them.

        Tracers may not outlive their trace, so only the place of each array is noted.
        """
        self._results, arrays = [], []
        for value in self._reachable([*self._lent.values(), *jax.tree.leaves(out, is_leaf=self._is_object)]):
            content = self._content(value)
            if self._is_ours(value) and not (id(value) in before and content.is_same(before[id(value)])):
                places = content.places
                arrays.append([content.leaves[k] for k in places])
                self._results.append((value, content.with_arrays(places, [None] * len(places)), places))
                if id(value) not in self._lent:  # a new object: nothing else takes the tracers out of it
                    self._put(value, self._results[-1][1].parts())
        return arrays

    def _reachable(self, values: list[Any]) -> Iterator[Any]:
        """Yields the modules and Variables among values, also those in lists, tuples, dicts and in one another."""
        seen, waiting = set(), list(reversed(values))
        while waiting:
            value = waiting.pop()
            if self._is_object(value) and id(value) not in seen:
                seen.add(id(value))
                yield value
                waiting.extend(reversed(self._content(value).leaves))
            elif isinstance(value, (list, tuple)):
                waiting.extend(reversed(value))
            elif isinstance(value, dict):
                waiting.extend(reversed(value.values()))

    def _is_object(self, value: Any) -> bool:
        # Flax's hijax Variables claim to be Variables; JAX itself carries out their changes.
        return isinstance(value, self._node) or self._variable in type(value).__mro__

    def _is_ours(self, value: Any) -> bool:
        """Returns whether the code that runs now may change an object."""
        if not isinstance(value, self._node):
            return value._trace_state.is_valid()
        # A transformation of nnx that fails leaves empty modules behind.
        return "_pytree__state" in vars(value) and value._pytree__state.trace_state.is_valid()

    def _parts(self, value: Any) -> dict[str, Any]:
        if isinstance(value, self._node):
            return dict(vars(value))
        return {slot: getattr(value, slot) for slot in self._slots}

    def _put(self, value: Any, parts: dict[str, Any]) -> None:
        if isinstance(value, self._node):
            vars(value).clear()
            vars(value).update(parts)
        else:
            for slot, part in parts.items():
                object.__setattr__(value, slot, part)

    def _content(self, value: Any) -> _Content:
        parts = self._parts(value)
        leaves, tree = jax.tree.flatten(list(parts.values()), is_leaf=self._is_object)
        return _Content(tuple(parts), tuple(leaves), tree)

    def _hide(self, tree: Any) -> Any:
        hide = lambda leaf: _Hidden(leaf) if self._is_object(leaf) else leaf  # noqa: E731
        return jax.tree.map(hide, tree, is_leaf=self._is_object)

    def _show(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.value if isinstance(leaf, _Hidden) else leaf, tree)


def _closed_over(fn: Callable[..., Any]) -> Iterator[Any]:
    """Yields a function and the objects that it can reach by name: its cells, defaults and globals, and theirs.

    Functions among the globals count only if they are of the same file: otherwise this would walk whole libraries.
    """
    seen, waiting = set(), [fn]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, types.FunctionType):
            waiting.extend(cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
            waiting.extend((*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()))
            values = [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
            waiting.extend(v for v in values if getattr(v, "__globals__", value.__globals__) is value.__globals__)
        elif isinstance(value, types.MethodType):
            waiting.extend((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            waiting.extend((value.func, *value.args, *value.keywords.values()))
        elif callable(value) and not isinstance(value, type):
            # jax.jit and the like return objects that are no Python functions.
            waiting.extend(vars(value)[name] for name in ("__wrapped__",) if name in getattr(value, "__dict__", ()))


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
