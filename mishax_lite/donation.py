"""Donated buffers: a hook needs values after a jitted function has taken their memory (`donate_argnums`).

Outside jit, a program that donates a value never reads it again. With hooks, a captured value is read later, an edit
may have put the caller's array in its place, and a hook further out needs the values that a hook further in captured.
Such a value is copied before it is donated.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as extend_core

from mishax_lite.survey import inner_jaxprs

_donating: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Kept:
    """The values that a hook has touched in one run of a program, by identity; no equation may consume them."""

    def __init__(self) -> None:
        # Ids and not values: outside jit, memory is held only as long as it is needed. An id that a later value
        # inherits costs a copy, no more.
        self._ids: set[int] = set()

    def add(self, values: Iterable[Any]) -> None:
        """Keeps these values."""
        self._ids.update(map(id, values))

    def spare(
        self, eqn: extend_core.JaxprEqn, inputs: list[Any], env: dict[Any, Any], last: Collection[Any]
    ) -> list[Any]:
        """Returns the inputs of an equation, with copies of the kept ones that it might donate.

        Args:
            eqn: any equation.
            inputs: its inputs.
            env: the values of the variables.
            last: the variables that nothing reads after the equation.
        """
        if not _donates(eqn):
            return inputs
        ids = self._ids.union(id(value) for v, value in env.items() if v not in last)
        return [jnp.copy(x) if isinstance(x, jax.Array) and id(x) in ids else x for x in inputs]


def _donates(eqn: extend_core.JaxprEqn) -> bool:
    """Returns whether an equation, or one inside it, donates an input."""
    if any(eqn.params.get("donated_invars", ())):
        return True
    return any(map(_any_donates, inner_jaxprs(eqn))) if eqn.params else False


def _any_donates(jaxpr: extend_core.Jaxpr) -> bool:
    donates = _donating.get(jaxpr)
    if donates is None:
        donates = _donating[jaxpr] = any(map(_donates, jaxpr.eqns))
    return donates
