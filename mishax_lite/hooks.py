"""`sites`, `capture` and `edit`: what a tap means, as transformations of functions in the manner of `jax.grad`."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as extend_core

from mishax_lite import _jax_internals, custom_rules, nested  # noqa: F401  (they fill the table of rules)
from mishax_lite.interpret import NOTHING, Action, Run, Site, interpret, leaf_edit
from mishax_lite.primitive import watching
from mishax_lite.recomputation import first_runs
from mishax_lite.survey import Tap, numbered, survey


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The sites of `fn(*args, **kwargs)` that can be captured, without computing anything.

    Args:
        fn: any function of JAX arrays.
        *args, **kwargs: its arguments; an array may be given as a `jax.ShapeDtypeStruct`.

    Returns:
        In program order, the name of each site with its shape and dtype as `capture` would return it; for a tap of a
        pytree, a pytree of those. A name that occurs n > 1 times is `name#0` ... `name#n-1`. Sites in a `while` or
        `cond`, which cannot be captured, are left out.

    Example:
        >>> mishax_lite.sites(lambda x: mishax_lite.tap("y", 2 * x), jax.ShapeDtypeStruct((3,), jnp.float32))
        {'y': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    traced = _trace(fn, args, kwargs)
    chosen = [tap.counts and not tap.uncapturable for tap in traced.taps]
    # As a list of pairs, since JAX sorts the keys of a dict.
    shapes = jax.eval_shape(lambda inputs: list(_captured(traced, chosen, inputs)[1].values()), traced.inputs)
    names = [name for name, yes in zip(traced.names, chosen, strict=True) if yes]
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), shapes)
    return dict(zip(names, shapes, strict=True))


def capture(fn: Callable[..., Any], patterns: str | Iterable[str]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Makes `fn` return, beside its output, the values at the sites that match `patterns`.

    Args:
        fn: any function of JAX arrays, jitted, differentiated, mapped or not.
        patterns: names of sites, or patterns as of `fnmatch.fnmatchcase` (`*` crosses `/`), or one of them.

    Returns:
        A function of the same arguments that returns `(out, {name: value})`, in program order. In a scan, values are
        stacked on a leading axis per loop, then come mapped axes (outermost first), then the value's own; shard_map
        adds a leading axis per manual mesh axis. It traces `fn` on each call, so wrap it in `jax.jit`.

    Raises:
        ValueError: when called, for a pattern that matches no site, and for a site that is in a `while` or `cond`.

    Example:
        >>> out, values = jax.jit(mishax_lite.capture(model, ["layer_*/resid_post"]))(tokens)
    """
    patterns = _pattern_list("capture", patterns)

    @functools.wraps(fn, updated=())
    def capturing(*args, **kwargs):
        traced = _trace(fn, args, kwargs)
        chosen = [False] * len(traced.taps)
        for pattern in patterns:
            for position in traced.matching(pattern):
                tap = traced.taps[position]
                if tap.uncapturable:
                    raise ValueError(
                        f"capture: site {traced.names[position]!r}, which pattern {pattern!r} matches, is in "
                        f"{tap.uncapturable}, from where no value can be carried out; leave it out "
                        "(`sites` lists those that can be captured), or edit it"
                    )
                chosen[position] = True
        return _captured(traced, chosen, traced.inputs)

    return capturing


def edit(fn: Callable[..., Any], edits: Mapping[str, Callable[[Any, Site], Any]]) -> Callable[..., Any]:
    """Makes `fn` compute with other values at some sites.

    Args:
        fn: any function of JAX arrays, jitted, differentiated, mapped or not.
        edits: for each pattern (as in `capture`) a function of the value there and of the `Site`, which returns the
            new value, of the same shape and dtype. It may close over traced values and be differentiated through. All
            patterns that match a site apply, in the order of the dict.

    Returns:
        A function of the same arguments with the output that `fn` then has. It traces `fn` on each call, so wrap it
        in `jax.jit`.

    Raises:
        ValueError: when called, for a pattern that matches no site, and for a value of another shape or dtype.

    Example:
        >>> ablated = jax.jit(mishax_lite.edit(model, {"layer_3/mlp_out": lambda v, site: jnp.zeros_like(v)}))
    """
    edits = dict(edits)
    _pattern_list("edit", edits)
    for pattern, function in edits.items():
        if not callable(function):
            raise ValueError(f"edit: expected a function for pattern {pattern!r}, got {type(function).__name__}")

    @functools.wraps(fn, updated=())
    def editing(*args, **kwargs):
        traced = _trace(fn, args, kwargs)
        functions: list[list[Callable[[Any, Site], Any]]] = [[] for _ in traced.taps]
        for pattern, function in edits.items():
            for position in traced.matching(pattern):
                tap = traced.taps[position]
                if tap.closed:
                    raise ValueError(
                        f"edit: site {traced.names[position]!r}, which pattern {pattern!r} matches, is in {tap.closed}"
                    )
                functions[position].append(function)
        for position, first in traced.firsts.items():
            functions[position] = functions[first]
        actions = [
            Action(name, edit=leaf_edit(name, todo)) if todo else NOTHING
            for name, todo in zip(traced.names, functions, strict=True)
        ]
        outs, _ = interpret(Run(actions), traced.jaxpr, (), traced.inputs)
        return traced.rebuild(outs)

    return editing


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A function traced at its arguments.

    `inputs`: what the function closes over, and the arrays among its arguments. `taps`, `names`: all its taps, and
    what each is called. `firsts`: of each recomputation the first run, by position. `rebuild`: makes the function's
    output of the outputs of `jaxpr`.
    """

    jaxpr: extend_core.Jaxpr
    inputs: list[Any]
    taps: tuple[Tap, ...]
    names: list[str]
    firsts: dict[int, int]
    rebuild: Callable[[list[Any]], Any]

    def matching(self, pattern: str) -> list[int]:
        """The positions of the taps that a pattern matches; recomputations are not among them."""
        hits = [
            position
            for position, tap in enumerate(self.taps)
            if not tap.again and any(_matches(name, pattern) for name in (tap.name, self.names[position]))
        ]
        found = [position for position in hits if not self.taps[position].absent]
        if hits and not found:
            raise ValueError(f"no site matches {pattern!r}: {self.taps[hits[0]].absent}")
        if not found:
            known = list(dict.fromkeys(name for name in self.names if name))
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.4)
            raise ValueError(
                f"no site matches {pattern!r}; "
                + (f"near names: {', '.join(near)}; " if near else "")
                + (f"the function has {len(known)} sites" if known else "the function taps nothing")
                + (f", the first are: {', '.join(known[:8])}" if known and not near else "")
            )
        return found


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _pattern_list(caller: str, patterns: str | Iterable[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{caller}: a pattern must be a string; got {type(pattern).__name__}: {pattern!r:.80}")
    return patterns


def _trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Traced:
    """Traces `fn`, the arrays among its arguments as inputs, all else as it is."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [k for k, leaf in enumerate(leaves) if _is_array(leaf)]
    arrays = [jnp.asarray(leaves[k]) if isinstance(leaves[k], np.ndarray) else leaves[k] for k in places]
    out_leaves: list[Any] = []
    out_tree = None

    def flat(*inputs):
        nonlocal out_leaves, out_tree
        filled = list(leaves)
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        call_args, call_kwargs = jax.tree.unflatten(tree, filled)
        out_leaves, out_tree = jax.tree.flatten(fn(*call_args, **call_kwargs))
        return [leaf for leaf in out_leaves if _is_array(leaf)]

    with watching():
        avals = [jax.typeof(array) if not isinstance(array, jax.ShapeDtypeStruct) else _aval(array) for array in arrays]
        jaxpr, consts = _jax_internals.trace(flat, avals, _jax_internals.no_debug_info(fn))
    # Tracers may not outlive their trace: what is an array is only a place in the output.
    places_out = [_is_array(leaf) for leaf in out_leaves]
    others = [None if is_array else leaf for is_array, leaf in zip(places_out, out_leaves, strict=True)]
    final_tree = out_tree

    def rebuild(outs: list[Any]) -> Any:
        values = iter(outs)
        pairs = zip(places_out, others, strict=True)
        return jax.tree.unflatten(final_tree, [next(values) if is_array else other for is_array, other in pairs])

    taps, firsts = survey(jaxpr), first_runs(jaxpr)
    return _Traced(jaxpr, [*consts, *arrays], taps, numbered(taps, firsts), firsts, rebuild)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _aval(struct: jax.ShapeDtypeStruct) -> Any:
    return jax.core.ShapedArray(struct.shape, struct.dtype, weak_type=struct.weak_type)


def _captured(traced: _Traced, chosen: list[bool], inputs: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Runs a traced function, capturing the chosen taps."""
    actions = [Action(name, capture=yes) if yes else NOTHING for name, yes in zip(traced.names, chosen, strict=True)]
    outs, leaves = interpret(Run(actions), traced.jaxpr, (), inputs)
    values = iter(leaves)
    found = {}
    for name, tap, yes in zip(traced.names, traced.taps, chosen, strict=True):
        if yes:
            found[name] = jax.tree.unflatten(tap.params["tree"], [next(values) for _ in tap.avals])
    return traced.rebuild(outs), found
