"""`tap`: a name for a value, as a JAX primitive that is the identity under every transformation.

A tap does nothing by itself, and nothing of it is left in compiled code. It marks a value in a traced program, so
that `capture` and `edit` (see `hooks.py`) find it there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir, partial_eval

from mishax_lite import _jax_internals, identity, mapping, slopes

T = TypeVar("T")

tap_p = extend_core.Primitive(identity.TAP)
tap_p.multiple_results = True


class _Context(NamedTuple):
    """The context in which taps are called.

    Attributes:
        prefix: the prefix of the names, from the scopes around.
        watched: whether a hook is tracing.
        sloped: whether a hook is tracing a derivative rule, where derivatives are marked (`slopes.py`).
        branches: in a rule, in how many branches of conds the call of its function stands.
    """

    prefix: str = ""
    watched: bool = False
    sloped: bool = False
    branches: int = 0


# It is part of the key of JAX's caches, so that a jitted function is traced anew where the context differs. None stands
# for the context in which all code outside a hook runs.
_context = jax.make_user_context(None)
# Functions that run before each tap: they enter rules for a tool once somebody has imported it (`tool_rules.py`).
before_tapping: list[Callable[[], None]] = []


def _now() -> _Context:
    return _context.value or _Context()


class TapEffect(_jax_internals.Effect):
    """Keeps a tap whose result nobody uses in the trace, while `capture`, `edit` or `sites` look at it.

    Other taps have no effect: it would cost a compiled function its fast way of being called.
    """

    __str__ = lambda self: "Tap"  # noqa: E731


class KeptTapEffect(TapEffect):
    """A `TapEffect` that partial evaluations keep too, for a tap in a loop's body whose result nobody uses."""


_jax_internals.allow_effect(TapEffect)
_jax_internals.keep_effect(KeptTapEffect)


_EFFECT, _KEPT_EFFECT = TapEffect(), KeptTapEffect()


def _effect() -> TapEffect:
    # JAX's checker of leaks takes every effect that is kept for a leak: while it runs, a tap in a loop whose result
    # nobody uses is lost when the loop is differentiated.
    # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
    return _EFFECT if jax.config.jax_check_tracer_leaks else _KEPT_EFFECT


def tap(name: str, value: T) -> T:
    """Marks `value` as the site `name` and returns it.

    Args:
        name: the site's name; the prefixes of the enclosing `scope`s come before it. It may not contain `#`, which
            tells occurrences of one name apart. The same name may be tapped many times.
        value: a pytree of arrays or Python scalars. A pytree without leaves has nothing to mark, and is no site.

    Returns:
        `value`, the same object outside of transformations; the result may be discarded.

    Raises:
        ValueError: for a name that is no string, is empty or has a `#`, and for a leaf that is no array and no scalar.

    Example:
        >>> def f(x):
        ...     return jnp.tanh(mishax_lite.tap("hidden", x @ x))
        >>> list(mishax_lite.sites(f, jnp.ones((2, 2))))
        ['hidden']
    """
    if not isinstance(name, str) or not name or "#" in name:
        raise ValueError(f"tap: the name must be a string that is not empty and has no '#'; got {name!r}")
    leaves, tree = jax.tree.flatten(value)
    for leaf in leaves:
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            raise ValueError(
                f"tap {name!r}: the value must be a pytree of arrays or Python scalars; "
                f"got a leaf of type {type(leaf).__name__}: {leaf!r:.80}"
            )
    if not leaves:
        return value
    for prepare in before_tapping:
        prepare()
    prefix, watched, _, branches = _now()
    # Under `jax.ensure_compile_time_eval` the function computes with the concrete value now. A tap enters the trace
    # all the same, so that a hook finds it.
    now = watched and _jax_internals.computes_now(leaves)
    with _jax_internals.into_the_trace() if now else contextlib.nullcontext():
        outs = tap_p.bind(
            *leaves,
            name=prefix + name,
            tree=tree,
            levels=(),
            path=identity.new_path() if watched else (),
            branches=branches,
            watched=watched,
            again=False,
            absent="",
            concrete=now,
        )
    if now:
        return value
    # Outside of any trace, a Python scalar comes back as the Python scalar that it was.
    outs = [out if isinstance(out, jax.Array) else leaf for out, leaf in zip(outs, leaves, strict=True)]
    return jax.tree.unflatten(tree, outs)


def absent(name: str, reason: str) -> None:
    """Says why a function has no site `name` with its present arguments; like an idle tap, it costs nothing.

    It is for sites that exist with other arguments or settings: an error for the site's name then gives the reason, and
    not the nearest names. A pattern that matches other sites too leaves this one out, and so does `sites`.

    Args:
        name: as for `tap`.
        reason: the error's text after `no site matches ...: `.

    Raises:
        ValueError: for a name that is no string, is empty or has a `#`, and for an empty reason.

    Example:
        >>> def attend(x, fused):
        ...     if fused:
        ...         mishax_lite.absent("scores", "fused attention lacks them; they exist with fused=False")
        ...         return x
        ...     return mishax_lite.tap("scores", x)
        >>> mishax_lite.capture(attend, "scores")(jnp.ones(2), True)
        Traceback (most recent call last):
        ValueError: no site matches 'scores': fused attention lacks them; they exist with fused=False
    """
    if not isinstance(name, str) or not name or "#" in name or not reason:
        raise ValueError(f"absent: expected a name without '#' and a reason; got {name!r} and {reason!r}")
    prefix, watched, _, branches = _now()
    if watched:
        with _jax_internals.into_the_trace():
            tap_p.bind(
                name=prefix + name,
                tree=jax.tree.structure(()),
                levels=(),
                path=identity.new_path(),
                branches=branches,
                watched=True,
                again=False,
                absent=reason,
                concrete=False,
            )


@contextlib.contextmanager
def scope(prefix: str) -> Iterator[None]:
    """Opens a context that prefixes the names of the taps in it: `with scope("layer_3/")` makes `q` into `layer_3/q`.

    Scopes nest, outermost first. A jitted function called under two scopes is traced for each.

    Args:
        prefix: the text to put before the names.

    Raises:
        ValueError: for a prefix that is no string or has a `#`.

    Example:
        >>> def f(x):
        ...     for layer in range(2):
        ...         with mishax_lite.scope(f"layer_{layer}/"):
        ...             x = mishax_lite.tap("out", jnp.tanh(x))
        ...     return x
        >>> list(mishax_lite.sites(f, 1.0))
        ['layer_0/out', 'layer_1/out']
    """
    if not isinstance(prefix, str) or "#" in prefix:
        raise ValueError(f"scope: the prefix must be a string without '#'; got {prefix!r}")
    _intercept_rules()
    now = _now()
    with _context(now._replace(prefix=now.prefix + prefix)):
        yield


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Opens the context in which a hook traces: taps stay even if nobody uses their results, and have paths."""
    _intercept_rules()
    with identity.numbering(), _context(_now()._replace(watched=True, branches=0)):
        yield


def in_this_scope(rule: Callable[..., Any], derivative: bool = True) -> Callable[..., Any]:
    """Returns a rule that runs in the scope of the present call of its function, as a part of that call.

    Args:
        rule: a rule of a custom derivative, or for `vmap`.
        derivative: whether it is a rule of a custom derivative.
    """
    now = _now()
    if not (now.prefix or now.watched):
        return rule
    prefix, label = now.prefix, identity.new_label()

    @functools.wraps(rule)
    def in_scope(*args, **kwargs):
        now = _now()
        sloped = now.watched if derivative else now.sloped
        context = _Context(prefix, now.watched, sloped, identity.branches_around())
        with identity.around(label), _context(context), _jax_internals.own_tracebacks():
            return rule(*args, **kwargs)

    return in_scope


@functools.cache
def _intercept_rules() -> None:
    """Makes rules run in scopes, from the first scope or hook on."""
    _jax_internals.intercept_rules(in_this_scope)


def is_watched() -> bool:
    """Returns whether a hook further out is tracing the code that runs now."""
    return _now().watched


def is_sloped() -> bool:
    """Returns whether a hook further out is tracing a derivative rule that the code that runs now belongs to."""
    return _now().sloped


def bind_again(params: dict[str, Any], leaves: list[Any], **changes: Any) -> list[Any]:
    """Puts an interpreted tap back, for the hooks further out."""
    now = _now()
    branches = params["branches"] + now.branches  # those around a hook in a rule
    return tap_p.bind(*leaves, **{**params, "watched": now.watched, "branches": branches, **changes})


# The rules. Params of a tap:
#   name      the full name, with its scopes
#   tree      the structure of the value
#   levels    a `mapping.Level` for each vmap around, outermost first; one without a name that maps no leaf is left out
#   path      which call it is, see `identity.py`
#   branches  in how many branches of conds it was traced
#   watched   see TapEffect
#   again     whether it is the recomputation of a `jax.checkpoint`
#   absent    why the value is missing; "" for a value
#   concrete  whether the function goes on with the concrete value, whatever this tap returns


@tap_p.def_impl
def _run(*leaves, **params):
    # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
    if jax.config.jax_debug_key_reuse:
        # The checker counts uses of a key by the object: it would take a key that is returned unchanged for a used one.
        return [_same_key(leaf) for leaf in leaves]
    return list(leaves)


def _same_key(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.random.key_data(leaf), impl=jax.random.key_impl(leaf))
    return leaf


@tap_p.def_effectful_abstract_eval
def _types(*avals, watched, again, **params):
    # An unneeded recomputation may go: the first run stands for it.
    return list(avals), {_effect()} if watched and not again else set()


mlir.register_lowering(tap_p, lambda ctx, *leaves, **params: leaves)


def _jvp(primals, tangents, **params):
    moved = slopes.slope(primals, tangents, params) if is_sloped() and params["watched"] else list(tangents)
    return tap_p.bind(*primals, **params), moved


def _transpose(cotangents, *leaves, **params):
    return [ct if ad.is_undefined_primal(leaf) else None for ct, leaf in zip(cotangents, leaves, strict=True)]


def _batch(axis_data, leaves, axes, *, levels, **params):
    # The axes stay where they are: moving them to the front would leave a transpose in the program.
    new = mapping.level(axis_data, axes)
    return tap_p.bind(*leaves, levels=levels if new is None else (new, *levels), **params), list(axes)


def _recompute(saveable, unknown, instantiated, eqn):
    """Makes `jax.checkpoint` run a tap in the forward pass and, marked as `again`, in the backward pass.

    The result is never saved, whatever the policy: it is the tap's operand, and saving both would cost memory.
    """
    missing = [v for v, present in zip(eqn.invars, instantiated, strict=True) if not present]
    missing = [v for v in missing if not isinstance(v, extend_core.Literal)]
    if any(unknown) or _must_stay(eqn.params):
        return None, eqn, [True] * len(unknown), [True] * len(unknown), missing
    second = eqn.replace(params={**eqn.params, "again": True}, effects=frozenset())
    return eqn, second, [False] * len(unknown), [True] * len(unknown), missing


def _must_stay(params: dict[str, Any]) -> bool:
    """Returns whether a tap must stay in its scan: JAX moves out what is the same in all turns, but no watched tap."""
    return params["watched"] and _jax_internals.is_hoisting()


def _evaluate_partially(trace, *tracers, **params):
    if _must_stay(params):
        return _jax_internals.stage(trace, tracers, tap_p, params)
    return _jax_internals.evaluate_partially(trace, tracers, tap_p, params)


ad.primitive_jvps[tap_p] = _jvp
ad.primitive_transposes[tap_p] = _transpose
batching.fancy_primitive_batchers[tap_p] = _batch
partial_eval.custom_partial_eval_rules[tap_p] = _evaluate_partially
partial_eval.partial_eval_jaxpr_custom_rules[tap_p] = _recompute
