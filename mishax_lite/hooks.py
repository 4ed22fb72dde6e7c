"""`sites`, `capture` and `edit`: the meanings of a tap, as transformations of functions in the manner of `jax.grad`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from mishax_lite.edits import Edits, bound_to_text, identity, names_read
from mishax_lite.interpret import NOTHING, Action, Run, Site, interpret, leaf_edit
from mishax_lite.reading import Reading
from mishax_lite.tracing import Traced, captured, checked_patterns, trace


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Lists the sites of `fn(*args, **kwargs)` that can be captured, without computing anything.

    Args:
        fn: any function of JAX arrays.
        *args: its positional arguments; a `jax.ShapeDtypeStruct` may stand for an array.
        **kwargs: its keyword arguments, likewise.

    Returns:
        The shape and dtype that `capture` would return, by the name of each site, in program order; for a tap of a
        pytree, a pytree of shapes. A name that occurs n > 1 times is `name#0` ... `name#n-1`. A site in a while loop or
        in a branch has a `LoopValue` or a `BranchValue` of shapes, as with `capture(..., loops="last")`. Sites that
        cannot be captured are left out.

    Example:
        >>> mishax_lite.sites(lambda x: mishax_lite.tap("y", 2 * x), jax.ShapeDtypeStruct((3,), jnp.float32))
        {'y': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    traced = trace(fn, args, kwargs)
    chosen = [
        traced.is_occurrence(k) and not tap.uncapturable and not tap.selected for k, tap in enumerate(traced.taps)
    ]
    # As a list of pairs, since JAX sorts the keys of a dict.
    shapes = jax.eval_shape(lambda inputs: list(captured(traced, chosen, inputs)[1].values()), traced.inputs)
    names = [name for name, yes in zip(traced.names, chosen, strict=True) if yes]
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), shapes)
    return dict(zip(names, shapes, strict=True))


def capture(
    fn: Callable[..., Any], patterns: str | Iterable[str], loops: str | int | None = None
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Makes `fn` return, beside its output, the values at the sites that match `patterns`.

    Args:
        fn: any function of JAX arrays, jitted, differentiated, mapped or not.
        patterns: one name of a site or pattern for `fnmatch.fnmatchcase` (`*` crosses `/`), or several.
        loops: the values to capture in while loops and in branches of a cond, which run as often as the data say.
            "last": the value of a loop's last turn. A number n: the values of the first n turns, stacked. Each is a
            `LoopValue(value, count)`; in a branch it is a `BranchValue(value, taken)`, with either choice.

    Returns:
        A function of the same arguments that returns `(out, {name: value})`, in program order. The axes of a value are
        one for each scan around it, then the mapped axes (outermost first), then the value's own; shard_map adds a
        leading axis for each manual mesh axis. The function traces `fn` on each call, so wrap it in `jax.jit`.

    Raises:
        ValueError: when called, for a pattern that matches no site, and for a site in a while loop or in a branch
            without `loops`.

    Example:
        >>> def f(x):
        ...     return mishax_lite.tap("doubled", 2 * x).sum()
        >>> out, values = jax.jit(mishax_lite.capture(f, "doubled"))(jnp.arange(3.0))
        >>> print(out, values["doubled"])
        6.0 [0. 2. 4.]
    """
    patterns = checked_patterns("capture", patterns)
    if not (loops is None or loops == "last" or (isinstance(loops, int) and not isinstance(loops, bool) and loops > 0)):
        raise ValueError(f'capture: loops must be "last", a number of turns above 0, or None; got {loops!r}')

    @functools.wraps(fn, updated=())
    def capturing(*args, **kwargs):
        traced = trace(fn, args, kwargs)
        traced.output.check()
        chosen = [False] * len(traced.taps)
        for pattern in patterns:
            for position in traced.reachable(pattern):
                traced.check_capture(position, pattern, loops)
                chosen[position] = True
        outs, values = captured(traced, chosen, traced.inputs, loops if isinstance(loops, int) else 0)
        return traced.result(outs), values

    return capturing


def edit(
    fn: Callable[..., Any], edits: Mapping[str, Callable[[Any, Site], Any]] | Edits | Callable[[Any], Any]
) -> Callable[..., Any]:
    """Makes `fn` compute with other values at some sites.

    Args:
        fn: any function of JAX arrays, jitted, differentiated, mapped or not.
        edits: a dict from patterns (as in `capture`) to functions, `Edits`, or a function of positions [B, T] that
            returns either. Each function takes the value and its `Site`, and returns the new value, of the same shape
            and dtype. It may close over traced values and be differentiated through. All patterns that match a site
            apply, in order. A function with an attribute `reads`, names of earlier sites, gets their values in
            `site.read`. Edits that need the text get it from `fn.text_of`, a function of the same arguments that
            returns tokens and positions [B, T]; `gemma.Model.apply` has one, also within `jax.jit` and a partial.

    Returns:
        A function of the same arguments that returns the edited function's output. It traces `fn` on each call, so wrap
        it in `jax.jit`.

    Raises:
        ValueError: when called, for a pattern that matches no site, for a value of another shape or dtype, for edits
            that need the text if `fn` does not say which text it reads, and for a site that an edit reads and cannot
            see.

    Example:
        >>> def f(x):
        ...     return mishax_lite.tap("doubled", 2 * x).sum()
        >>> print(jax.jit(mishax_lite.edit(f, {"doubled": lambda value, site: value / 4}))(jnp.arange(3.0)))
        1.5
    """
    edits = Edits.of(edits)

    @functools.wraps(fn, updated=())
    def editing(*args, **kwargs):
        bound = bound_to_text(edits, fn, args, kwargs)
        traced = trace(fn, args, kwargs)
        traced.output.check()
        functions: list[list[Callable[[Any, Site], Any]]] = [[] for _ in traced.taps]
        for pattern, function in bound.entries:
            for position in traced.matching(pattern):
                traced.check_edit(position, pattern)
                functions[position].append(function)
        for position, first in traced.firsts.items():
            if not traced.taps[position].is_slope:  # a function that was differentiated before keeps its derivatives
                functions[position] = functions[first]
        reads = {name: _taps_of(traced, name) for todo in functions for name in names_read(todo)}
        actions = [
            _action(position, traced.names[position], todo, reads) if todo else NOTHING
            for position, todo in enumerate(functions)
        ]
        reading = Reading(frozenset(itertools.chain.from_iterable(reads.values())))
        outs, _ = interpret(Run(actions, reading=reading), traced.jaxpr, (), traced.inputs)
        return traced.result(outs)

    return editing


def _action(
    position: int, name: str, functions: Sequence[Callable[..., Any]], reads: Mapping[str, list[int]]
) -> Action:
    positions = {name: reads[name] for name in names_read(functions)}
    return Action(name, edit=leaf_edit(name, functions, position, positions), functions=tuple(map(identity, functions)))


def _taps_of(traced: Traced, name: str) -> list[int]:
    """Returns the positions of the taps of a site, with its recomputations."""
    positions = traced.matching(name)
    copies = [k for k, first in traced.firsts.items() if first in positions and not traced.taps[k].is_slope]
    return sorted([*positions, *copies])
