"""`tap`: a name for a value, as a JAX primitive that is the identity under every transformation.

A tap does nothing by itself, and nothing of it is left in compiled code. It marks a value in a traced program, so
that `capture` and `edit` (see `hooks.py`) find it there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir, partial_eval

from mishax_lite import _jax_internals

T = TypeVar("T")

tap_p = extend_core.Primitive("tap")
tap_p.multiple_results = True

# (prefix of names, is somebody looking). It is part of the key of JAX's caches, so that a jitted function is traced
# anew where the prefix differs. None stands for ("", False): the state in which all code outside a hook runs.
_context = jax.make_user_context(None)
_serials = itertools.count()


class TapEffect(_jax_internals.Effect):
    """Keeps a tap whose result nobody uses in the trace, while `capture`, `edit` or `sites` look at it.

    Only then: an effect would cost a compiled function its fast way of being called.
    """

    __str__ = lambda self: "Tap"  # noqa: E731


_EFFECT = TapEffect()
_jax_internals.allow_effect(TapEffect)


def tap(name: str, value: T) -> T:
    """Marks `value` as the site `name` and returns it.

    Args:
        name: the site's name, with the prefixes of the enclosing `scope`s put before it. It may not contain `#`,
            which tells occurrences of one name apart. The same name may be tapped many times.
        value: a pytree of arrays or Python scalars. One with no leaves has nothing to mark, and is no site.

    Returns:
        `value`, itself under no transformation; the result may be discarded.

    Raises:
        ValueError: for a name that is no string, is empty or has a `#`; for a leaf that is no array and no scalar.

    Example:
        >>> def f(x):
        ...     return jnp.tanh(mishax_lite.tap("hidden", x @ x))
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
    prefix, watched = _context.value or ("", False)
    outs = tap_p.bind(
        *leaves,
        name=prefix + name,
        prefix=prefix,
        tree=tree,
        levels=(),
        serial=next(_serials),
        watched=watched,
        again=False,
        absent="",
    )
    # Outside of any trace, a Python scalar comes back as the Python scalar that it was.
    outs = [out if isinstance(out, jax.Array) else leaf for out, leaf in zip(outs, leaves, strict=True)]
    return jax.tree.unflatten(tree, outs)


def absent(name: str, reason: str) -> None:
    """Says why a function, called as it is now, has no site `name`; it costs nothing, as an idle tap.

    For sites that exist under other arguments, other settings: whoever asks for one is told the reason, where else the
    nearest names would be offered. A pattern that matches other sites too leaves this one out; so does `sites`.

    Args:
        name: as for `tap`.
        reason: what is said, after `no site matches ...: `.

    Example:
        >>> def attend(q, k, v, fused):
        ...     if fused:
        ...         mishax_lite.absent("scores", "fused attention never holds them; they exist with fused=False")
    """
    if not isinstance(name, str) or not name or "#" in name or not reason:
        raise ValueError(f"absent: expected a name without '#' and a reason; got {name!r} and {reason!r}")
    prefix, watched = _context.value or ("", False)
    if watched:
        tree = jax.tree.structure(())
        serial = next(_serials)
        tap_p.bind(
            name=prefix + name,
            prefix=prefix,
            tree=tree,
            levels=(),
            serial=serial,
            watched=True,
            again=False,
            absent=reason,
        )


@contextlib.contextmanager
def scope(prefix: str) -> Iterator[None]:
    """Prefixes the names of the taps traced in it: `with scope("layer_3/")` makes `q` into `layer_3/q`.

    Scopes nest, outermost first. A jitted function called under two scopes is traced for each.

    Raises:
        ValueError: for a prefix that is no string or has a `#`.
    """
    if not isinstance(prefix, str) or "#" in prefix:
        raise ValueError(f"scope: the prefix must be a string without '#'; got {prefix!r}")
    outer, watched = _context.value or ("", False)
    with _context((outer + prefix, watched)):
        yield


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """The context in which a hook traces: taps are kept even where their results are not used."""
    prefix, _ = _context.value or ("", False)
    with _context((prefix, True)):
        yield


def is_watched() -> bool:
    """Whether some hook further out is tracing what runs now."""
    return (_context.value or ("", False))[1]


def bind_again(params: dict[str, Any], leaves: list[Any], **changes: Any) -> list[Any]:
    """Puts a tap that was interpreted back, for the hooks further out."""
    return tap_p.bind(*leaves, **{**params, "watched": is_watched(), **changes})


# The rules. `name`: the full name; `prefix`: the part of it that came from scopes; `tree`: the structure of the value.
# `levels`: for each vmap around, outermost first, the mapped axis of each leaf or None (relative to the value with the
# axes of the levels before taken away). `serial`: one per call of `tap`, by which a recomputation finds its first run.
# `watched`: see TapEffect. `again`: this is the recomputation of a `jax.checkpoint`. `absent`: why there is no value.


@tap_p.def_impl
def _run(*leaves, **params):
    return list(leaves)


@tap_p.def_effectful_abstract_eval
def _types(*avals, watched, again, **params):
    # A recomputation that nobody needs may go: its first run stands for it.
    return list(avals), {_EFFECT} if watched and not again else set()


mlir.register_lowering(tap_p, lambda ctx, *leaves, **params: leaves)


def _jvp(primals, tangents, **params):
    return tap_p.bind(*primals, **params), list(tangents)


def _transpose(cotangents, *leaves, **params):
    return [ct if ad.is_undefined_primal(leaf) else None for ct, leaf in zip(cotangents, leaves, strict=True)]


def _batch(leaves, axes, *, levels, **params):
    # The axes stay where they are: moving them to the front would leave a transpose in the program.
    return tap_p.bind(*leaves, levels=(tuple(axes), *levels), **params), list(axes)


def _recompute(saveable, unknown, instantiated, eqn):
    """`jax.checkpoint` is about to run this tap in the forward pass and, marked as such, again in the backward pass.

    Never saved, whatever the policy: what a tap returns is what it was given, and saving both would cost memory.
    """
    missing = [v for v, there in zip(eqn.invars, instantiated, strict=True) if not there]
    missing = [v for v in missing if not isinstance(v, extend_core.Literal)]
    if any(unknown):
        return None, eqn, [True] * len(unknown), [True] * len(unknown), missing
    second = eqn.replace(params={**eqn.params, "again": True}, effects=frozenset())
    return eqn, second, [False] * len(unknown), [True] * len(unknown), missing


ad.primitive_jvps[tap_p] = _jvp
ad.primitive_transposes[tap_p] = _transpose
batching.primitive_batchers[tap_p] = _batch
partial_eval.partial_eval_jaxpr_custom_rules[tap_p] = _recompute
