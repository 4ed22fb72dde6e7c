"""Running a traced program with some of its taps acted upon.

`interpret` goes through a jaxpr's equations and binds each again. At a tap it edits the value, puts the tap back, and
notes the value if it is to be captured. An equation that holds jaxprs with taps in them is rebuilt around changed
ones (`nested.py`, `custom_rules.py`); every other equation is bound as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as extend_core
from jax.sharding import AxisType

from mishax_lite import _jax_internals
from mishax_lite.primitive import bind_again, is_watched, tap_p
from mishax_lite.survey import Tap, survey_equation

# Of a tap's leaves, its params and the traced indices of the loops around it, the new leaves.
LeafEdit = Callable[[list[Any], dict[str, Any], tuple[Any, ...]], list[Any]]


@dataclasses.dataclass(frozen=True)
class Site:
    """What an edit may know about the value it is given.

    `name`: the site's name, `name#k` where it occurs more than once. `shape`, `dtype`: of the value, without mapped
    axes; for a tap of a pytree, pytrees of them. `loop`: the traced indices of the scans around it, outermost first,
    each an int32 scalar; `()` outside of scans; in a reversed scan the index is that of the `xs`.
    """

    name: str
    shape: Any
    dtype: Any
    loop: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Action:
    """What is done at one tap: an edit or None, and whether its value is captured."""

    name: str
    capture: bool = False
    edit: LeafEdit | None = None


NOTHING = Action("")


@dataclasses.dataclass(frozen=True)
class Run:
    """The actions of one interpretation, for each tap of the survey of the outermost jaxpr, in its order."""

    actions: Sequence[Action]

    def edits(self, start: int, count: int) -> bool:
        return any(action.edit is not None for action in self.actions[start : start + count])

    def captures(self, start: int, count: int) -> tuple[bool, ...]:
        return tuple(action.capture for action in self.actions[start : start + count])


def interpret(
    run: Run,
    jaxpr: extend_core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    start: int = 0,
    loops: tuple[Any, ...] = (),
) -> tuple[list[Any], list[Any]]:
    """Evaluates a jaxpr with the actions of `run` at its taps.

    Args:
        run: the actions.
        jaxpr, consts, args: the program and its inputs.
        start: the position, in `run`, of the first tap of this jaxpr.
        loops: the traced indices of the scans around it.

    Returns:
        The outputs, and the leaves of the captured values in program order.
    """
    env: dict[Any, Any] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    captured: list[Any] = []
    last_uses = _last_uses(jaxpr)
    for position, eqn in enumerate(jaxpr.eqns):
        inputs = [v.val if isinstance(v, extend_core.Literal) else env[v] for v in eqn.invars]
        taps = survey_equation(eqn)
        if not taps:
            outs = _jax_internals.bind(eqn, inputs)
        elif eqn.primitive is tap_p:
            outs = _at_tap(run.actions[start], eqn, inputs, loops, captured)
        else:
            outs, more = _inside(run, eqn, inputs, start, taps, loops)
            captured.extend(more)
        start += len(taps)
        env.update(zip(eqn.outvars, outs, strict=True))
        for v in last_uses.get(position, ()):  # outside jit, memory is held only as long as it is needed
            del env[v]
    outs = [v.val if isinstance(v, extend_core.Literal) else env[v] for v in jaxpr.outvars]
    return outs, captured


# How equations with jaxprs in them are rebuilt, by the primitive's name: `nested.py` and `custom_rules.py` fill it.
# A rule gets (run, eqn, args, start, loops) and returns the outputs and the leaves of what was captured.
RULES: dict[str, Callable[..., tuple[list[Any], list[Any]]]] = {}


def _inside(run: Run, eqn: Any, args: list[Any], start: int, taps: tuple[Tap, ...], loops: tuple[Any, ...]):
    """Evaluates an equation with taps inside it, rebuilt if there is anything to do in there."""
    acted = run.edits(start, len(taps)) or any(run.captures(start, len(taps)))
    # Traced for this hook, the taps inside are watched; they may not stay so when nobody further out is watching.
    unwatched = not is_watched() and any(tap.params["watched"] for tap in taps)
    rule = RULES.get(eqn.primitive.name)
    if rule is None or not (acted or unwatched):
        return _jax_internals.bind(eqn, args), []
    return rule(run, eqn, args, start, loops)


def _last_uses(jaxpr: extend_core.Jaxpr) -> dict[int, list[Any]]:
    """For the position of an equation, the variables that nothing after it needs."""
    kept = {v for v in jaxpr.outvars if not isinstance(v, extend_core.Literal)}
    seen: set[Any] = set(kept)
    last: dict[int, list[Any]] = {}
    for position in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[position]
        for v in (*eqn.invars, *eqn.outvars):
            if not isinstance(v, extend_core.Literal) and v not in seen:
                seen.add(v)
                last.setdefault(position, []).append(v)
    return last


def _at_tap(action: Action, eqn: Any, leaves: list[Any], loops: tuple[Any, ...], captured: list[Any]) -> list[Any]:
    if action.edit is not None:
        with _jax_internals.source_lines(eqn):
            leaves = action.edit(leaves, eqn.params, loops)
    with _jax_internals.source_lines(eqn):
        leaves = bind_again(eqn.params, leaves)
    if action.capture:
        # After the tap is put back, so that an edit further out shows in what is captured here.
        captured.extend(_mapped_axes_first(leaves, eqn.params["levels"]))
    return leaves


def _mapped_axes_first(leaves: list[Any], levels: tuple[tuple[int | None, ...], ...]) -> list[Any]:
    """Moves the mapped axes of each leaf to its front, outermost first."""
    moved = []
    for k, leaf in enumerate(leaves):
        done = 0
        for axes in levels:
            if axes[k] is not None:
                leaf = jnp.moveaxis(leaf, axes[k] + done, done) if axes[k] else leaf
                done += 1
        moved.append(leaf)
    return moved


def leaf_edit(name: str, functions: Sequence[Callable[[Any, Site], Any]]) -> LeafEdit:
    """Turns a user's edits of one site, applied in order, into one on the leaves of the tap.

    The functions see the value without mapped axes: they run under as many `vmap`s as the tap does.
    """

    def edit(leaves: list[Any], params: dict[str, Any], loops: tuple[Any, ...]) -> list[Any]:
        tree = params["tree"]

        def apply(*values):
            value = jax.tree.unflatten(tree, values)
            shape, dtype = (jax.tree.unflatten(tree, [getattr(v, a) for v in values]) for a in ("shape", "dtype"))
            site = Site(name, shape, dtype, loops)
            for function in functions:
                value = jax.tree.unflatten(tree, _checked(name, function(value, site), values, tree))
            return jax.tree.leaves(value)

        fun = apply
        for axes in reversed(params["levels"]):
            fun = jax.vmap(fun, in_axes=axes, out_axes=list(axes))
        try:
            return list(fun(*(jnp.asarray(leaf) for leaf in leaves)))
        except Exception as error:
            error.add_note(f"This happened in the edit of site {name!r}.")
            raise

    return edit


def _checked(name: str, edited: Any, before: Sequence[Any], tree: Any) -> list[Any]:
    """The leaves of an edited value, as arrays of exactly the types that were there."""
    leaves, edited_tree = jax.tree.flatten(edited)
    if edited_tree != tree:
        raise ValueError(
            f"edit of site {name!r}: got a value of structure {edited_tree}, expected {tree}; "
            "return a value like the one that was given"
        )
    return [_checked_leaf(name, leaf, old) for leaf, old in zip(leaves, before, strict=True)]


def _checked_leaf(name: str, leaf: Any, old: Any) -> Any:
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise ValueError(
            f"edit of site {name!r}: got a {type(leaf).__name__}, expected an array of shape {old.shape} and dtype "
            f"{old.dtype}; return the new value"
        )
    if isinstance(leaf, (bool, int, float, complex)) and jnp.result_type(old.dtype, leaf) == old.dtype:
        leaf = jnp.asarray(leaf, old.dtype)  # a Python scalar has no dtype of its own
    leaf = jnp.asarray(leaf)
    if leaf.shape != old.shape or leaf.dtype != old.dtype:
        raise ValueError(
            f"edit of site {name!r}: got shape {leaf.shape} and dtype {leaf.dtype}, expected {old.shape} and "
            f"{old.dtype}; an edit may not change them"
        )
    missing = tuple(sorted(_jax_internals.varying_axes(old) - _jax_internals.varying_axes(leaf)))
    if missing:  # in shard_map: a constant put in the place of a value that differs between devices
        leaf = jax.lax.pcast(leaf, missing, to="varying")
    sharding = jax.typeof(old).sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(leaf).sharding != sharding:
        leaf = jax.sharding.reshard(leaf, sharding)  # where shardings are part of the type, the type stays
    return leaf
