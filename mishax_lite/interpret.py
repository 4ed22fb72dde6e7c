"""Running a traced program with some of its taps acted upon.

`interpret` goes through a jaxpr's equations and binds each again. At a tap it edits the value, puts the tap back, and
notes the value if it is to be captured. An equation that holds jaxprs with taps in them is rebuilt around changed
ones (`nested.py`, `custom_rules.py`); every other equation is bound as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as extend_core
from jax.sharding import AxisType

from mishax_lite import _jax_internals, identity, mapping
from mishax_lite.donation import Kept
from mishax_lite.primitive import bind_again, is_sloped, is_watched, tap_p
from mishax_lite.promotion import takes
from mishax_lite.reading import NO_READING, MeshAxis, Reading, read
from mishax_lite.slopes import derivative, slope_p
from mishax_lite.stripping import without_taps
from mishax_lite.survey import Tap, survey_equation

# Of a tap's leaves, its params and the traced indices of the loops around it, the new leaves.
LeafEdit = Callable[[list[Any], dict[str, Any], tuple[Any, ...], Reading], list[Any]]


@dataclasses.dataclass(frozen=True)
class Site:
    """What an edit may know about the value it is given.

    `name`: the site's name, `name#k` where it occurs more than once. `shape`, `dtype`: of the value, without mapped
    axes; for a tap of a pytree, pytrees of them. `loop`: the traced indices of the scans around it, outermost first,
    each an int32 scalar; `()` outside of scans; in a reversed scan the index is that of the `xs`. `read`: {name: value}
    of the earlier sites that the edit's attribute `reads` names.
    """

    name: str
    shape: Any
    dtype: Any
    loop: tuple[Any, ...]
    read: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Action:
    """What is done at one tap: an edit or None, and whether its value is captured.

    `functions`: which functions the edit applies; two edits of the same functions do the same. `backward`: at
    a backward rule that runs later (`Tap.is_backward`), what has the edits for it, and the values they close over.
    """

    name: str
    capture: bool = False
    edit: LeafEdit | None = None
    functions: tuple[int, ...] = ()
    backward: Any = None

    def without_capture(self) -> Action:
        return dataclasses.replace(self, capture=False)


NOTHING = Action("")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is done in one interpretation.

    `actions`: for each tap of the survey of the outermost jaxpr, in its order. `turns`: for how many turns of a while
    loop values are captured; 0 for the last one alone. `copies`: what runs is a further copy of a program, so that its
    taps are no occurrences of their own. `reading`: what edits may read of other sites.
    """

    actions: Sequence[Action]
    turns: int = 0
    copies: bool = False
    reading: Reading = NO_READING

    def edits(self, start: int, count: int) -> bool:
        actions = self.actions[start : start + count]
        return any(action.edit is not None or action.backward is not None for action in actions)

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
    with identity.rebuilding():
        return _evaluate(run, jaxpr, consts, args, start, loops)


def _evaluate(run: Run, jaxpr, consts, args, start: int, loops: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    env: dict[Any, Any] = {}
    # Together, since from JAX 0.11 on constants without values are inputs like others.
    env.update(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    captured: list[Any] = []
    run = dataclasses.replace(run, reading=run.reading.inside())
    last_uses = _last_uses(jaxpr)
    kept = Kept()
    for position, eqn in enumerate(jaxpr.eqns):
        inputs = [v.val if isinstance(v, extend_core.Literal) else env[v] for v in eqn.invars]
        inputs = kept.spare(eqn, inputs, env, last_uses.get(position, ()))
        taps = survey_equation(eqn)
        if not taps:
            outs = _jax_internals.bind(eqn, inputs)
        elif eqn.primitive is tap_p:
            outs = _at_tap(run, start, eqn, inputs, loops, captured)
            kept.add(outs)
        elif eqn.primitive is slope_p:
            outs = _at_slope(run.actions[start], eqn, inputs, loops)
        else:
            outs, taps_inside = _inside(run, eqn, inputs, start, taps, loops)
            captured.extend(taps_inside)
            kept.add([*outs, *taps_inside])
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
    unwatched = not is_watched() and any(tap.is_slope or tap.params.get("watched") for tap in taps)
    rule = RULES.get(eqn.primitive.name)
    if rule is None:
        params = without_taps(eqn.params) if unwatched else eqn.params
        return _jax_internals.bind(eqn, args, params), []
    if not (acted or unwatched):
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


def _at_tap(run: Run, position: int, eqn: Any, leaves: list[Any], loops: tuple[Any, ...], captured: list[Any]):
    action = run.actions[position]
    # A literal of the program is no array yet; what is captured is one.
    leaves = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves]
    with _jax_internals.surroundings(eqn):
        if action.edit is not None:
            with identity.rebuilding(False):
                leaves = action.edit(leaves, eqn.params, loops, run.reading)
        leaves = bind_again(eqn.params, leaves, **({"again": True} if run.copies else {}))
    run.reading.note(position, leaves, eqn.params, loops)
    if action.capture:
        # After the tap is put back, so that an edit further out shows in what is captured here.
        captured.extend(mapping.mapped_axes_first(leaves, eqn.params["levels"]))
    return leaves


def _at_slope(action: Action, eqn: Any, operands: list[Any], loops: tuple[Any, ...]) -> list[Any]:
    """Applies the derivative of an edit, and leaves the slope of the edited value for hooks further out."""
    params, count = eqn.params, len(eqn.params["moving"])
    if action.edit is None:
        return slope_p.bind(*operands, **params) if is_sloped() else operands[count:]

    def apply(leaves):
        return action.edit(leaves, {**params, "levels": ()}, loops, NO_READING)

    with _jax_internals.surroundings(eqn), identity.rebuilding(False):
        if not is_sloped():
            return derivative(apply, operands, params)
        levels = [one._replace(axes=one.axes[:count]) for one in params["levels"]]
        values = mapping.under_levels(lambda *leaves: apply(list(leaves)), levels)(*operands[:count])
        moved = operands[count:]
        if params["transposed"]:
            moved = slope_p.bind(*values, *moved, **params)
            return derivative(apply, [*operands[:count], *moved], params)
        return slope_p.bind(*values, *derivative(apply, operands, params), **params)


def leaf_edit(
    name: str, functions: Sequence[Callable[[Any, Site], Any]], position: int, reads: Mapping[str, Sequence[int]]
) -> LeafEdit:
    """Turns a user's edits of one site, applied in order, into one on the leaves of the tap.

    The functions see the value without mapped axes: they run under as many `vmap`s as the tap does. `position`: of the
    tap. `reads`: for the name of each site that they read, the positions of its taps.
    """

    def edit(leaves: list[Any], params: dict[str, Any], loops: tuple[Any, ...], reading: Reading) -> list[Any]:
        tree = params["tree"]
        values_read = read(name, position, reads, reading, loops, bool(params["levels"]))
        indices = tuple(index for index in loops if not isinstance(index, MeshAxis))

        def apply(*values):
            value = jax.tree.unflatten(tree, values)
            shape, dtype = (jax.tree.unflatten(tree, [getattr(v, a) for v in values]) for a in ("shape", "dtype"))
            site = Site(name, shape, dtype, indices, values_read)
            for function in functions:
                value = jax.tree.unflatten(tree, _checked(name, function(value, site), values, tree))
            return jax.tree.leaves(value)

        try:
            return list(mapping.under_levels(apply, params["levels"])(*(jnp.asarray(leaf) for leaf in leaves)))
        except Exception as error:
            error.add_note(f"This happened in the edit of site {name!r}.{mapping.advice(error, params['levels'])}")
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
    if isinstance(leaf, (bool, int, float, complex)) and takes(old.dtype, leaf):
        leaf = jnp.asarray(leaf, old.dtype)  # a Python scalar has no dtype of its own
    leaf = jnp.asarray(leaf)
    if leaf.shape != old.shape or leaf.dtype != old.dtype:
        raise ValueError(
            f"edit of site {name!r}: got shape {leaf.shape} and dtype {leaf.dtype}, expected {old.shape} and "
            f"{old.dtype}; an edit may not change them"
        )
    _check_varying(name, leaf, old)
    return placed(leaf, jax.typeof(old))


def varying(leaf: Any, aval: Any) -> Any:
    """A value that differs between the devices of a `shard_map` where `aval` does: constants do not by themselves."""
    missing = tuple(sorted(_jax_internals.varying_axes(aval) - _jax_internals.varying_axes(leaf)))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def placed(leaf: Any, aval: Any) -> Any:
    """A value where `aval` is: varying over the same mesh axes, and sharded like it where shardings are types."""
    leaf, sharding = varying(leaf, aval), aval.sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(leaf).sharding != sharding:
        leaf = jax.sharding.reshard(leaf, sharding)  # where shardings are part of the type, the type stays
    return leaf


def _check_varying(name: str, leaf: Any, old: Any) -> None:
    """Raises ValueError in a `shard_map` if an edited value differs between devices where the old one does not."""
    new_axes = sorted(_jax_internals.varying_axes(leaf) - _jax_internals.varying_axes(old))
    if new_axes:
        axes = repr(new_axes[0]) if len(new_axes) == 1 else repr(tuple(new_axes))
        raise ValueError(
            f"edit of site {name!r}: got a value that differs between the devices along mesh axis {axes}, expected one "
            f"that is the same along it, as the function goes on with it; reduce it, as with jax.lax.pmean(value, "
            f"{axes}), or edit a site that differs along it"
        )
