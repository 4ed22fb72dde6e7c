"""Takes taps out of programs that no rule can rebuild: reducers, solvers, kernels, whatever JAX brings next.

A hook traces a function with its taps watched (`primitive.TapEffect`). If no hook further out watches, they must not
stay so. In the program of an equation without a rule they would do harm: a reducer with an effect, or a kernel with a
primitive that its compiler does not know, cannot be compiled. These taps mark values that nobody can reach, so nothing
is lost.
"""

from __future__ import annotations

import weakref
from typing import Any

from jax.extend import core as extend_core

from mishax_lite.primitive import TapEffect, tap_p
from mishax_lite.slopes import slope_p

# By the program's identity, since JAX finds what it compiled by it.
_stripped: weakref.WeakKeyDictionary[Any, extend_core.Jaxpr] = weakref.WeakKeyDictionary()


def without_taps(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the params of an equation without the taps in their programs."""
    return {name: _strip(value) for name, value in params.items()}


def _strip(value: Any) -> Any:
    if isinstance(value, extend_core.Jaxpr):
        if value not in _stripped:
            _stripped[value] = _strip_jaxpr(value)
        return _stripped[value]
    if isinstance(value, extend_core.ClosedJaxpr):  # one type with the other since JAX 0.12
        return value.replace(jaxpr=_strip(value.jaxpr))
    if isinstance(value, (tuple, list)):
        items = [_strip(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _strip_jaxpr(jaxpr: extend_core.Jaxpr) -> extend_core.Jaxpr:
    """Returns a jaxpr without its taps: their operands take the place of their results."""
    names: dict[Any, Any] = {}

    def renamed(variables: Any) -> list[Any]:
        return [v if isinstance(v, extend_core.Literal) else names.get(v, v) for v in variables]

    eqns = []
    for eqn in jaxpr.eqns:
        inputs = renamed(eqn.invars)
        if eqn.primitive is tap_p:
            names.update(zip(eqn.outvars, inputs, strict=True))
        elif eqn.primitive is slope_p:
            names.update(zip(eqn.outvars, inputs[len(eqn.params["moving"]) :], strict=True))
        else:
            eqns.append(eqn.replace(invars=inputs, params=without_taps(eqn.params), effects=_without(eqn.effects)))
    return jaxpr.replace(eqns=eqns, outvars=renamed(jaxpr.outvars), effects=_without(jaxpr.effects))


def _without(effects: Any) -> Any:
    return frozenset(effect for effect in effects if not isinstance(effect, TapEffect))
