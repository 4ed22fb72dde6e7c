"""Everything that `mishax_lite` needs from JAX and that JAX does not export: this file, and no other.

Each name says which public interface it would come from if there were one. The admitted range of JAX is in
`setup.py`; `tests/mishax_lite` runs on its oldest and its newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import api_util as _api_util
from jax._src import effects as _effects
from jax._src.effects import Effect as Effect  # jax.extend.core has it from JAX 0.10 on
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.sharding_impls import UNSPECIFIED as UNSPECIFIED  # what jax.jit has for "no sharding was asked for"
from jax.extend import core as extend_core
from jax.extend import linear_util, source_info_util
from jax.interpreters import mlir, partial_eval


def allow_effect(effect_type: type[Effect]) -> None:
    """Lets an effect stand in every construct: scan, while, cond, custom rules, remat, and in what is lowered."""
    mlir.lowerable_effects.add_type(effect_type)
    _effects.control_flow_allowed_effects.add_type(effect_type)
    _effects.custom_derivatives_allowed_effects.add_type(effect_type)
    _effects.remat_allowed_effects.add_type(effect_type)


def unknown_names(debug_info):
    """Debug information for a function whose arguments are not those of the original any more."""
    return debug_info.with_unknown_names()


def trace(fun: Callable, avals: Sequence[Any], debug_info) -> tuple[extend_core.Jaxpr, list[Any]]:
    """Traces `fun(*arrays) -> list of arrays` at these avals, and keeps what is unused.

    Returns:
        A jaxpr without constants, and the values of its first inputs: what `fun` closed over, tracers among them.
        (`jax.make_jaxpr` would do but for those tracers, which have to become operands of the enclosing equation.)
    """
    wrapped = linear_util.wrap_init(fun, debug_info=debug_info)
    jaxpr, _, consts = partial_eval.trace_to_jaxpr_dynamic(wrapped, list(avals))
    return _partial_eval.convert_constvars_jaxpr(jaxpr), list(consts)


def bind(eqn: extend_core.JaxprEqn, args: Sequence[Any], params: dict[str, Any] | None = None) -> list[Any]:
    """Evaluates one equation on `args`, as `jax.core.eval_jaxpr` does, with other params if they are given.

    The source lines, the name stack and the context (mesh, compute type) of the equation are kept.
    """
    bound = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    # Until JAX 0.9 the functions in params came apart from the rest; since then there is a single dict.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    with source_lines(eqn), eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *args, **bound)
    return list(out) if eqn.primitive.multiple_results else [out]


def source_lines(eqn: extend_core.JaxprEqn):
    """A context in which new equations bear the source lines and the name stack of `eqn`."""
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    return source_info_util.user_context(eqn.source_info.traceback, name_stack=names)


def varying_axes(value: Any) -> frozenset[str]:
    """The manual mesh axes over which a value may differ; empty outside `shard_map`."""
    aval = jax.typeof(value)
    if hasattr(aval, "mat"):  # "manual axis type", since JAX 0.10; a ShapedArray's `vma` before
        return aval.mat.varying
    return getattr(aval, "vma", frozenset())


def no_debug_info(fun: Callable):
    """Debug information that names the function, for the traces that hooks make, but not its arguments."""
    return _api_util.debug_info("mishax_lite", fun, (), {}).with_unknown_names()
