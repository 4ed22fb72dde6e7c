"""Runs a traced program with actions at some of its taps.

`interpret` goes through a jaxpr's equations and binds each again. At a tap it edits the value, puts the tap back, and
notes the value if it is to be captured. An equation whose jaxprs have taps is rebuilt around changed jaxprs
(`nested.py`, `turns.py`, `custom_rules.py`); every other equation is bound unchanged.
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

# (a tap's leaves, its params, the traced indices of the loops around it) -> the new leaves.
LeafEdit = Callable[[list[Any], dict[str, Any], tuple[Any, ...], Reading], list[Any]]


@dataclasses.dataclass(frozen=True)
class Site:
    """The facts that an edit may know about the value that it gets.

    Attributes:
        name: the site's name; `name#k` where the name occurs more than once.
        shape: the value's shape without mapped axes; for a tap of a pytree, a pytree of shapes.
        dtype: the value's dtype; for a tap of a pytree, a pytree of dtypes.
        loop: the traced indices of the scans around the site, outermost first, each an int32 scalar; `()` outside of
            scans. In a reversed scan the index is that of the `xs`.
        read: {name: value} of the earlier sites that the edit's attribute `reads` names.

    Example:
        >>> def show(value, site):
        ...     print(site.name, site.shape, site.dtype, site.loop)
        ...     return value
        >>> out = mishax_lite.edit(lambda x: mishax_lite.tap("y", 2 * x), {"y": show})(jnp.ones((2, 3)))
        y (2, 3) float32 ()
    """

    name: str
    shape: Any
    dtype: Any
    loop: tuple[Any, ...]
    read: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Action:
    """The action at one tap.

    Attributes:
        name: the tap's name.
        capture: whether its value is captured.
        edit: its edit, or None.
        functions: the ids of the functions that the edit applies; two edits of the same functions do the same.
        backward: at a backward rule that runs later (`Tap.is_backward`), the `Frozen` with the edits for it, and the
            values that they close over.
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
    """The actions of one interpretation.

    Attributes:
        actions: the action at each tap of the survey of the outermost jaxpr, in its order.
        turns: for how many turns of a while loop values are captured; 0 for the last turn alone.
        copies: whether the program is a further copy, so that its taps are no occurrences of their own.
        reading: the values of other sites that edits may read.
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
        jaxpr: the program.
        consts: the values of its constants.
        args: its inputs.
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


# The functions that rebuild equations with jaxprs in them, by the primitive's name: `nested.py`, `turns.py`,
# `further_calls.py` and `custom_rules.py` fill the table. A rule gets (run, eqn, args, start, loops) and returns the
# outputs and the leaves of the captured values.
RULES: dict[str, Callable[..., tuple[list[Any], list[Any]]]] = {}


def _inside(run: Run, eqn: Any, args: list[Any], start: int, taps: tuple[Tap, ...], loops: tuple[Any, ...]):
    """Evaluates an equation with taps inside it, rebuilt if an action is inside it."""
    acted = run.edits(start, len(taps)) or any(run.captures(start, len(taps)))
    # The taps inside were traced for this hook, so they are watched. They may not stay so if no outer hook watches.
    unwatched = not is_watched() and any(tap.is_slope or tap.params.get("watched") for tap in taps)
    rule = RULES.get(eqn.primitive.name)
    if rule is None:
        params = without_taps(eqn.params) if unwatched else eqn.params
        return _jax_internals.bind(eqn, args, params), []
    if not (acted or unwatched):
        return _jax_internals.bind(eqn, args), []
    return rule(run, eqn, args, start, loops)


def _last_uses(jaxpr: extend_core.Jaxpr) -> dict[int, list[Any]]:
    """Returns, by the position of an equation, the variables that nothing after it needs."""
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
    # A literal of the program is no array yet; a captured value is one.
    leaves = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves]
    with _jax_internals.surroundings(eqn):
        if action.edit is not None:
            with identity.rebuilding(False):
                leaves = action.edit(leaves, eqn.params, loops, run.reading)
        leaves = bind_again(eqn.params, leaves, **({"again": True} if run.copies else {}))
    run.reading.note(position, leaves, eqn.params, loops)
    if action.capture:
        # After the tap is put back, so that an edit further out shows in the value captured here.
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

    The functions see the value without mapped axes: they run under as many `vmap`s as the tap does.

    Args:
        name: the site's name.
        functions: functions of (value, `Site`).
        position: the position of the tap.
        reads: for the name of each site that the functions read, the positions of its taps.
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
    """Returns the leaves of an edited value, as arrays of exactly the old value's types."""
    leaves, edited_tree = jax.tree.flatten(edited)
    if edited_tree != tree:
        raise ValueError(
            f"edit of site {name!r}: got a value of structure {edited_tree}, expected {tree}; "
            "return a value of the structure that the edit gets"
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
    """Returns a value that may differ between the devices of a `shard_map` where `aval` may: constants do not."""
    missing = tuple(sorted(_jax_internals.varying_axes(aval) - _jax_internals.varying_axes(leaf)))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def placed(leaf: Any, aval: Any) -> Any:
    """Returns a value placed like `aval`: varying over the same mesh axes, and with its sharding if types have one."""
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
            f"that is the same along it, as the function needs it; reduce it, as with jax.lax.pmean(value, {axes}), or "
            "edit a site that differs along it"
        )
