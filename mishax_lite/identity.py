"""Tells which runs are runs of one tap: every tap of a traced program has a path, which all its copies keep.

JAX traces a jitted, checkpointed or scanned function once and uses the program again at each call, and it makes copies
of programs when it differentiates. To tell a recomputation from another call, calls are numbered while a hook is
watching: a tap gets a number when it is called, and a user's call of a construct (jit, scan, while, cond, checkpoint)
puts its own number before those of the taps inside. When JAX then transforms the program, it copies the paths.

    path = (step of the outermost call, ..., step of the tap)
    step = (number, place): which branch of a cond it is, as the source has them; NO_BRANCH for all else

Numbers rise in the order of the source, from 0 in each outermost hook. Calls in the hook's own trace have even numbers,
calls in traces inside of it have odd numbers. So a function has the same numbers each time, although JAX traces the
functions inside only once, and its compiled program serves again.

JAX keeps traced programs, and runs the rules in them later, maybe while another hook counts from 0 again. So a call of
a function with a rule also has a number for each of its rules, which stands before the numbers of the rule's calls.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from jax.extend import core as extend_core
from jax.extend.core import primitives

from mishax_lite import _jax_internals

Step = tuple[int, int]
Path = tuple[Step, ...]

NO_BRANCH = -1

TAP = "mishax_lite_tap"  # the name of `primitive.tap_p`
SLOPE = "mishax_lite_slope"  # the name of `slopes.slope_p`
BACKWARD = "custom_lin"  # of JAX's primitive for a backward rule that is still to run, which may run taps


class _State(threading.local):
    """The state of the numbering in this thread.

    Attributes:
        numbers: the iterators of the next even and odd numbers, while a hook is watching.
        trace: the trace of the outermost hook.
        around: the path of the call whose rule runs now.
        branches: in how many branches of conds that call stands.
        rebuilding: whether a hook is rebuilding a program, whose calls have their numbers already.
    """

    numbers: tuple[Iterator[int], Iterator[int]] | None = None
    trace: Any = None
    around: Path = ()
    branches: int = 0
    rebuilding: bool = False


_state = _State()


@contextlib.contextmanager
def numbering() -> Iterator[None]:
    """Opens the context in which taps and calls get numbers; an inner one goes on with the outer one's numbers."""
    _intercept()
    before = _state.numbers, _state.trace, _state.rebuilding
    _state.numbers, _state.rebuilding = _state.numbers or (itertools.count(0, 2), itertools.count(1, 2)), False
    try:
        yield
    finally:
        _state.numbers, _state.trace, _state.rebuilding = before


def begin() -> None:
    """Notes that a hook's trace begins; the state keeps the outermost hook's trace."""
    if _state.trace is None:
        _state.trace = _jax_internals.current_trace()


def _next_number() -> int:
    # pyrefly: ignore[not-iterable]  called while a hook is watching
    even, odd = _state.numbers
    return next(even if _jax_internals.current_trace() is _state.trace else odd)


@contextlib.contextmanager
def rebuilding(yes: bool = True) -> Iterator[None]:
    """Opens the context in which calls have their numbers already; with False, the context in which they need some."""
    before = _state.rebuilding
    _state.rebuilding = yes
    try:
        yield
    finally:
        _state.rebuilding = before


def new_path() -> Path:
    """Returns the path of a tap that is called now; `()` where nobody is watching."""
    return (*_state.around, *new_label())


def new_label() -> Path:
    """Returns the step of the present call of a tap or a function with a rule; `()` where nobody is watching."""
    return () if _state.numbers is None else ((_next_number(), NO_BRANCH),)


_rewritten: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def inside(jaxpr: Any, label: Path, branch: bool = False) -> Any:
    """Returns a jaxpr whose taps have `label` before their paths; the same object for the same label.

    Args:
        jaxpr: a jaxpr, closed or not.
        label: the steps to put before the paths.
        branch: whether the jaxpr is a branch of a cond, which each tap counts.
    """
    if not _holds(getattr(jaxpr, "jaxpr", jaxpr)):
        return jaxpr
    versions = _rewritten.setdefault(jaxpr, {})
    key = (label, branch)
    if key not in versions:
        new = _inside(jaxpr, label, branch)
        if new is jaxpr:  # nobody was watching when it was traced; a table of weak keys may not hold its own key
            return jaxpr
        versions[key] = new
    return versions[key]


def _inside(jaxpr: Any, label: Path, branch: bool) -> Any:
    plain = getattr(jaxpr, "jaxpr", jaxpr)
    eqns = [_equation_inside(eqn, label, branch) for eqn in plain.eqns]
    if all(new is old for new, old in zip(eqns, plain.eqns, strict=True)):
        return jaxpr
    new = plain.replace(eqns=eqns)
    return new if plain is jaxpr else jaxpr.replace(jaxpr=new)


def _equation_inside(eqn: extend_core.JaxprEqn, label: Path, branch: bool) -> extend_core.JaxprEqn:
    if eqn.primitive.name in (TAP, SLOPE):
        old = eqn.params
        if not old["path"]:
            return eqn
        return eqn.replace(params={**old, "path": (*label, *old["path"]), "branches": old["branches"] + branch})
    if not holds_taps(eqn):
        return eqn
    params = {name: _param_inside(value, label, branch) for name, value in eqn.params.items()}
    change, context = lambda jaxpr: inside(jaxpr, label, branch), lambda: around(label, branch)
    return eqn.replace(params=_jax_internals.with_rules(eqn, params, change, context))


def _param_inside(value: Any, label: Path, branch: bool) -> Any:
    if isinstance(value, (extend_core.Jaxpr, extend_core.ClosedJaxpr)):
        return inside(value, label, branch)
    if isinstance(value, (tuple, list)) and any(
        isinstance(x, (extend_core.Jaxpr, extend_core.ClosedJaxpr)) for x in value
    ):
        return type(value)(_param_inside(item, label, branch) for item in value)
    return value


def jaxprs(params: dict[str, Any]) -> Iterator[tuple[str, extend_core.Jaxpr]]:
    """Yields the jaxprs among the params of an equation, without constants, with the names of the params."""
    for name, value in params.items():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, extend_core.ClosedJaxpr):
                yield name, item.jaxpr
            elif isinstance(item, extend_core.Jaxpr):
                yield name, item


_holding: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def holds_taps(eqn: extend_core.JaxprEqn) -> bool:
    """Returns whether an equation is a tap, a slope or a call whose rules may run taps, or has one in its jaxprs."""
    programs = [jaxpr for _, jaxpr in jaxprs(eqn.params)] + _jax_internals.hidden_programs(eqn)
    here = eqn.primitive.name in (TAP, SLOPE, BACKWARD) or _jax_internals.has_foreign_rules(eqn)
    return here or any(_holds(jaxpr) for jaxpr in programs)


def _holds(jaxpr: extend_core.Jaxpr) -> bool:
    if jaxpr not in _holding:
        _holding[jaxpr] = any(holds_taps(eqn) for eqn in jaxpr.eqns)
    return _holding[jaxpr]


@contextlib.contextmanager
def around(label: Path, branch: bool = False) -> Iterator[None]:
    """Opens the context in which a rule runs that belongs to a call with this label: outer calls enter it first.

    Args:
        label: the call's label.
        branch: as for `inside`.
    """
    before = _state.around, _state.branches
    _state.around, _state.branches = (*_state.around, *label), _state.branches + branch
    try:
        yield
    finally:
        _state.around, _state.branches = before


def branches_around() -> int:
    """Returns in how many branches of conds the call stands whose rule runs now."""
    return _state.branches


def _number_call(primitive: extend_core.Primitive, params: dict[str, Any], true_first: bool) -> dict[str, Any]:
    """Returns the params of a user's call of a construct; while a hook is watching, their taps know of the call."""
    if _state.numbers is None or _state.rebuilding or not any(_holds(jaxpr) for _, jaxpr in jaxprs(params)):
        return params
    number = _next_number()
    if primitive is primitives.cond_p:
        branches = params["branches"]
        places = reversed(range(len(branches))) if true_first else range(len(branches))
        new = (
            inside(b, (*_state.around, (number, place)), branch=True) for b, place in zip(branches, places, strict=True)
        )
        return dict(params, branches=tuple(new))
    label = (*_state.around, (number, NO_BRANCH))
    return {name: _param_inside(value, label, branch=False) for name, value in params.items()}


_lock = threading.Lock()
_intercepting = False


def _intercept() -> None:
    """Makes JAX number calls, from the first hook on: importing the package alone leaves JAX unchanged."""
    global _intercepting
    with _lock:
        if not _intercepting:
            _jax_internals.intercept_calls(_number_call)
            _jax_internals.keep_calls_with_rules()
            _intercepting = True
