"""Everything that `mishax_lite` needs from JAX and that JAX does not export, or that differs between its versions.

The admitted range of JAX is in `setup.py`; `tests/mishax_lite` runs on its oldest and its newest version.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax._src import api_util as _api_util
from jax._src import config as _config
from jax._src import core as _core
from jax._src import custom_derivatives as _custom_derivatives
from jax._src import effects as _effects
from jax._src import source_info_util as _source_info_util
from jax._src import tree_util as _tree_util
from jax._src.effects import Effect as Effect  # jax.extend.core has it from JAX 0.10 on
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.sharding_impls import UNSPECIFIED as UNSPECIFIED  # what jax.jit has for "no sharding was asked for"
from jax.experimental import jet as _jet
from jax.experimental.key_reuse import _core as _key_reuse
from jax.extend import core as extend_core
from jax.extend import linear_util, source_info_util
from jax.extend.core import primitives
from jax.interpreters import mlir, partial_eval

try:
    # pyrefly: ignore[missing-module-attribute]  older JAX has none
    from jax._src import flattree as _flattree  # since JAX 0.11
except ImportError:
    _flattree = None


def allow_effect(effect_type: type[Effect]) -> None:
    """Allows an effect in every construct (scan, while, cond, custom rules, remat) and in lowered programs."""
    mlir.lowerable_effects.add_type(effect_type)
    _effects.control_flow_allowed_effects.add_type(effect_type)
    _effects.custom_derivatives_allowed_effects.add_type(effect_type)
    _effects.remat_allowed_effects.add_type(effect_type)


def keep_effect(effect_type: type[Effect]) -> None:
    """Makes partial evaluations keep equations with an effect, although nothing uses their results."""
    _effects.partial_eval_kept_effects.add_type(effect_type)


def unknown_names(debug_info):
    """Returns debug information for a function whose arguments differ from the original's."""
    return debug_info.with_unknown_names()


def trace(fun: Callable, avals: Sequence[Any], debug_info) -> tuple[extend_core.Jaxpr, list[Any]]:
    """Traces `fun(*arrays) -> list of arrays` at these avals, and keeps unused equations.

    Returns:
        A jaxpr without constants, and the values of its first inputs: those that `fun` closes over, also tracers.
        (`jax.make_jaxpr` cannot handle these tracers, which must become operands of the enclosing equation.)
    """
    wrapped = linear_util.wrap_init(fun, debug_info=debug_info)
    jaxpr, _, consts = partial_eval.trace_to_jaxpr_dynamic(wrapped, list(avals))
    jaxpr = _partial_eval.convert_constvars_jaxpr(jaxpr)
    if jax.__version_info__ < (0, 10) and jaxpr.debug_info.arg_names is None:
        # Differentiating a while loop adds to the names there (seen in 0.8.2), and fails where none are known.
        jaxpr = jaxpr.replace(debug_info=jaxpr.debug_info._replace(arg_names=("",) * len(jaxpr.invars)))
    return jaxpr, list(consts)


def bind(eqn: extend_core.JaxprEqn, args: Sequence[Any], params: dict[str, Any] | None = None) -> list[Any]:
    """Evaluates one equation on `args`, as `jax.core.eval_jaxpr` does, with other params if given.

    The source lines, the name stack and the context (mesh, compute type) of the equation are kept.
    """
    bound = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    # Until JAX 0.9 the functions in params came apart from the rest; since then there is a single dict.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    with surroundings(eqn):
        out = eqn.primitive.bind(*functions, *args, **bound)
    return list(out) if eqn.primitive.multiple_results else [out]


def current_trace() -> Any:
    """Returns the trace that makes the present program, beneath the differentiation and mapping in it."""
    trace = _core.trace_ctx.trace
    while not isinstance(trace, _partial_eval.DynamicJaxprTrace) and getattr(trace, "parent_trace", None) is not None:
        trace = trace.parent_trace
    return trace


@contextlib.contextmanager
def surroundings(eqn: extend_core.JaxprEqn) -> Iterator[None]:
    """Opens a context whose equations have the source lines, names, mesh, compute type and metadata of `eqn`."""
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with source_info_util.user_context(eqn.source_info.traceback, name_stack=names), eqn.ctx.manager:
        yield


@contextlib.contextmanager
def own_tracebacks() -> Iterator[None]:
    """Opens a context in which equations have their own tracebacks, not that of the equation evaluated around."""
    state = _source_info_util._source_info_context
    before = state.context
    # `user_context(None)` would keep the traceback.
    state.context = source_info_util.new_source_info().replace(name_stack=before.name_stack)
    try:
        yield
    finally:
        state.context = before


def varying_axes(value: Any) -> frozenset[str]:
    """Returns the manual mesh axes over which a value, or a value of a type, may differ; none outside `shard_map`."""
    aval = value if isinstance(value, jax.core.AbstractValue) else jax.typeof(value)
    if hasattr(aval, "mat"):  # "manual axis type", since JAX 0.10; a ShapedArray's `vma` before
        return aval.mat.varying
    return getattr(aval, "vma", frozenset())


def no_debug_info(fun: Callable):
    """Returns debug information that names the function but not its arguments, for the traces of hooks."""
    return _api_util.debug_info("mishax_lite", fun, (), {}).with_unknown_names()


def key_implementation(dtype: Any) -> str:
    """Returns the name of the random number generator of a key's dtype."""
    return dtype._impl.name


def axis_name(axis_data: Any) -> Any:
    """Returns the name of a `vmap`'s axis from a batching rule's argument; None if it has none."""
    return None if axis_data.name is _core.no_axis_name else axis_data.name


@contextlib.contextmanager
def context_of(eqn: extend_core.JaxprEqn, names_and_sizes: Sequence[tuple[Any, int]]) -> Iterator[None]:
    """Opens a context with the mesh and the axis names of `eqn`, in which parts of it can be traced elsewhere.

    Args:
        eqn: the equation.
        names_and_sizes: the axes of the `vmap`s around it; those of the `shard_map`s around it are added.
    """
    mesh = eqn.ctx.cur_abstract_mesh
    manual = [] if mesh is None else [(name, mesh.shape[name]) for name in getattr(mesh, "manual_axes", ())]
    typed = any(varying_axes(v.aval) for v in eqn.invars)  # the types say what differs between devices: `check_vma`
    checking = _config._check_vma(True) if typed else contextlib.nullcontext()
    with _core.extend_axis_env_nd([*manual, *names_and_sizes]), eqn.ctx.manager, checking:
        yield


def caller(eqn: extend_core.JaxprEqn, code: Any) -> tuple[Any, int] | None:
    """Returns the code and the instruction whose call of a function made an equation; None if nobody knows.

    Args:
        eqn: the equation.
        code: the code of the function.
    """
    traceback = eqn.source_info.traceback
    codes, instructions = ((), ()) if traceback is None else traceback.raw_frames()
    frames = iter(zip(codes, instructions, strict=True))  # the innermost first
    return next(frames, None) if any(frame[0] is code for frame in frames) else None


def is_current(tracer: Any) -> bool:
    """Returns whether a tracer belongs to the present trace."""
    return tracer._trace is _core.trace_ctx.trace


def hidden_programs(eqn: extend_core.JaxprEqn) -> list[extend_core.Jaxpr]:
    """Returns the jaxprs in an equation that is a Python object ("hijax"; `jax.lax.custom_root` since JAX 0.12)."""
    parts = getattr(eqn.params.get("_prim"), "params", {}).values()
    programs = [getattr(part, "jaxpr", part) for part in parts]  # a `jax.stages.Traced`, or a jaxpr with constants
    return [program for program in programs if isinstance(program, extend_core.Jaxpr)]


def primitive_name(eqn: extend_core.JaxprEqn) -> str:
    """Returns the name of an equation's primitive, for people."""
    return type(eqn.params["_prim"]).__name__ if "_prim" in eqn.params else eqn.primitive.name


def computes_now(values: Sequence[Any]) -> bool:
    """Returns whether a primitive of these values is evaluated now, although a trace is being made."""
    return _config.eager_constant_folding.value and not any(isinstance(value, jax.core.Tracer) for value in values)


def into_the_trace():
    """Returns a context in which `jax.ensure_compile_time_eval` is off."""
    return _config.eager_constant_folding(False)


def add_jet_rule(primitive: Any, rule: Callable) -> None:
    """Gives a primitive a rule for `jax.experimental.jet`."""
    _jet.jet_rules[primitive] = rule


def forward_keys(primitive: Any) -> None:
    """Tells the checker of key reuse (`jax.debug_key_reuse`) that a primitive returns its keys unchanged."""

    @_key_reuse.dynamic_key_reuse_signature
    def signature(eqn):
        return _key_reuse.KeyReuseSignature(*(_key_reuse.Forward(k, k) for k in range(len(eqn.invars))))

    _key_reuse.key_reuse_signatures[primitive] = signature


def tuple_tree(count: int, like: Any) -> Any:
    """Returns the structure of a tuple of `count` leaves, from the registry of the structure `like`."""
    try:
        jax.tree_util.treedef_tuple([like])
    except ValueError:  # some primitives have a registry of their own since JAX 0.10
        return _tree_util.tracing_registry.flatten((0,) * count)[1]
    return jax.tree.structure((0,) * count)


# Params of primitives.


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Returns how many of a scan's operands are constants, and how many are the carry."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(consts), len(carry)


def scan_params(params: dict[str, Any], jaxpr: extend_core.ClosedJaxpr, more_consts: int, more_xs: int):
    """Returns params of a scan over `jaxpr`, with further constants in front and further `xs` before the old ones."""
    consts, carry = scan_counts(params)
    params = dict(params, jaxpr=jaxpr)
    if "num_consts" in params:
        params["num_consts"] = consts + more_consts
    if "linear" in params:  # gone since JAX 0.10
        fixed, linear = consts + carry, list(params["linear"])
        params["linear"] = (*[False] * more_consts, *linear[:fixed], *[False] * more_xs, *linear[fixed:])
    if "ft_in" in params:
        consts += more_consts
        # pyrefly: ignore[missing-attribute]  where scans have such trees, the module exists
        nones, pack = _flattree.nones, _flattree.pack
        xs, ys = len(jaxpr.in_avals) - consts - carry, len(jaxpr.out_avals) - carry
        params["ft_in"] = pack((nones(consts), nones(carry), nones(xs)))
        params["ft_out"] = pack((nones(carry), nones(ys)))
    return params


def jit_params(params: dict[str, Any], jaxpr: extend_core.ClosedJaxpr, more_in: int, more_out: int) -> dict[str, Any]:
    """Returns params of a jit of `jaxpr`, with further operands in front and further outputs at the end."""
    return dict(
        params,
        jaxpr=jaxpr,
        donated_invars=(False,) * more_in + tuple(params["donated_invars"]),
        in_shardings=(UNSPECIFIED,) * more_in + tuple(params["in_shardings"]),
        in_layouts=(None,) * more_in + tuple(params["in_layouts"]),
        out_shardings=tuple(params["out_shardings"]) + (UNSPECIFIED,) * more_out,
        out_layouts=tuple(params["out_layouts"]) + (None,) * more_out,
    )


def remat_params(params: dict[str, Any], jaxpr: extend_core.Jaxpr, more_in: int) -> dict[str, Any]:
    """Returns params of a `jax.checkpoint` of `jaxpr`, with further operands in front."""
    prevent_cse = params["prevent_cse"]
    if isinstance(prevent_cse, tuple):  # since JAX 0.10, one flag per input
        prevent_cse = (True,) * more_in + prevent_cse
    return dict(params, jaxpr=jaxpr, prevent_cse=prevent_cse)


def manual_axes(params: dict[str, Any]) -> frozenset[str]:
    """Returns the mesh axes that a `shard_map` makes manual."""
    return params["manual_axes"] if "manual_axes" in params else params["newly_manual_axes"]  # renamed in JAX 0.10


# Rules of custom derivatives, in the params of traced calls.

_FOLDER = os.path.dirname(jax.__file__) + os.sep

# Whether backward rules return logs, too: `defvjp_with_logs`, since JAX 0.11.
RULES_LOG = hasattr(jax.custom_vjp, "defvjp_with_logs")


def jvp_rule(params: dict[str, Any], zeros: Sequence[bool]) -> tuple[extend_core.Jaxpr, list[Any], list[bool]]:
    """Returns the rule of a custom_jvp call as a program, its constants, and which output tangents are zero."""
    return params["jvp_jaxpr_fun"].call_wrapped(*zeros)


def forward_rule(params: dict[str, Any], perturbed: Sequence[bool]) -> tuple[extend_core.Jaxpr, list[Any]]:
    """Returns the forward rule of a custom_vjp call as a program, and its constants."""
    return params["fwd_jaxpr_thunk"].call_wrapped(*perturbed)


def backward_rule(params: dict[str, Any], residuals: Sequence[Any], cotangents: Sequence[Any]) -> tuple[list, Any]:
    """Runs the backward rule of a custom_vjp call: returns the cotangents of its operands, and its logs (or None)."""
    returned = params["bwd"].call_wrapped(*residuals, *cotangents)
    return returned if isinstance(returned, tuple) else (returned, None)  # a pair since JAX 0.11


def backward_params(params: dict[str, Any], rule: Callable, more: int) -> dict[str, Any]:
    """Returns params of a call of a backward rule (`custom_lin`) with another rule, which takes `more` residuals."""
    wrapped = linear_util.wrap_init(rule, debug_info=params["bwd"].debug_info)
    return dict(params, bwd=wrapped, num_res=params["num_res"] + more)


# By primitive, the params that are rules: rules that are traced, and rules that run where they are called.
_RULES = {
    "custom_jvp_call": (("jvp_jaxpr_fun",), ()),
    "custom_vjp_call": (("fwd_jaxpr_thunk",), ("bwd",)),
    "custom_lin": ((), ("bwd",)),
    "custom_vmap_call": ((), ("rule",)),
}


def with_rules(eqn: extend_core.JaxprEqn, params: dict[str, Any], change: Callable, around: Callable) -> dict[str, Any]:
    """Returns params of an equation, with other rules if it calls a function that has rules.

    Args:
        eqn: the equation.
        params: its new params.
        change: a function of the jaxpr of a traced rule that returns the jaxpr to use.
        around: a function that returns the context in which another rule runs.
    """
    traced, called = _RULES.get(eqn.primitive.name, ((), ()))
    rules = {name: _changed(params[name], change) for name in traced}
    return {**params, **rules, **{name: _inside(params[name], around) for name in called}}


def has_foreign_rules(eqn: extend_core.JaxprEqn) -> bool:
    """Returns whether an equation calls a function with rules that are not JAX's own (those of `jax.nn.relu` are)."""
    traced, called = _RULES.get(eqn.primitive.name, ((), ()))
    infos = [getattr(eqn.params[name], "debug_info", None) for name in (*traced, *called)]
    return any(info is None or not _is_of_jax(info.func_src_info) for info in infos)


def _is_of_jax(source: str) -> bool:
    """Returns whether "name at file:line" is in JAX; functions of `jax.custom_gradient` run functions of users."""
    file = source.partition(" at ")[2].rpartition(":")[0]
    return file.startswith(_FOLDER) and file != _custom_derivatives.__file__


def _changed(thunk: Any, change: Callable) -> Any:
    @functools.cache
    def changed(*flags):
        jaxpr, *rest = thunk.call_wrapped(*flags)
        return (change(jaxpr), *rest)

    return linear_util.wrap_init(changed, debug_info=thunk.debug_info)


def _inside(rule: Any, around: Callable) -> Any:
    call = getattr(rule, "call_wrapped", rule)

    @functools.wraps(call)
    def inside(*args):
        with around():
            return call(*args)

    return inside if call is rule else linear_util.wrap_init(inside, debug_info=rule.debug_info)


def intercept_rules(around: Callable[[Callable, bool], Callable]) -> None:
    """Makes JAX call the rules of every custom_jvp, custom_vjp and custom_vmap through `around`, from now on.

    JAX calls `around(rule, derivative)` at each call of the function. It has no public way to tell a rule in which
    context its function was called: it runs the rule later, when it transforms the traced program.
    """
    for kind, rules in ((jax.custom_jvp, ("jvp",)), (jax.custom_vjp, ("fwd", "bwd"))):
        kind.__call__ = _with_wrapped_rules(kind.__call__, rules, lambda rule: around(rule, True))
    kind = jax.custom_batching.custom_vmap
    kind.__call__ = _with_wrapped_rules(kind.__call__, ("vmap_rule",), lambda rule: around(rule, False))


def _with_wrapped_rules(call: Callable, rules: tuple[str, ...], around: Callable[[Callable], Callable]) -> Callable:
    @functools.wraps(call)
    def wrapped(self, *args, **kwargs):
        changes = {name: around(rule) for name in rules if (rule := getattr(self, name, None)) is not None}
        if any(changes[name] is not getattr(self, name) for name in changes):
            copy = object.__new__(type(self))
            copy.__dict__.update(self.__dict__, **changes)
            self = copy
        return call(self, *args, **kwargs)

    return wrapped


# A user's call of a construct, as distinct from JAX's own handling of an existing one.

# By primitive, the functions of JAX that bind it when a user calls the construct: all others transform programs.
_CALLERS = {
    primitives.jit_p: {"_run_python_pjit", "_python_pjit_helper"},
    primitives.scan_p: {"scan"},
    primitives.while_p: {"while_loop"},
    primitives.cond_p: {"cond", "_cond", "_switch_internal", "switch"},
    primitives.remat_p: {"fun_remat"},
}
_TRUE_FIRST = {"cond", "_cond"}  # these trace the branch for True first, and bind it last


def intercept_calls(change: Callable[[extend_core.Primitive, dict[str, Any], bool], dict[str, Any]]) -> None:
    """Gives a user's jit, scan, while, cond and remat the params that `change` returns, from now on.

    `change` gets the primitive, its params, and whether the last branch (of a cond) comes first in the source. It does
    not see how JAX itself changes these constructs (differentiation, vmap, ...).
    """
    for primitive, callers in _CALLERS.items():
        primitive.bind = _intercepted(primitive, primitive.bind, callers, change)


def _intercepted(primitive: Any, bind: Callable, callers: set[str], change: Callable) -> Callable:
    def intercepted(*args, **params):
        caller = sys._getframe(1).f_code.co_name
        if caller in callers:
            params = change(primitive, params, caller in _TRUE_FIRST)
        return bind(*args, **params)

    return intercepted


def keep_calls_with_rules() -> None:
    """Makes partial evaluation keep custom_vjp calls with kept effects, like other equations, from now on.

    JAX (0.8.2 to 0.12) forgets these calls: a call whose result nobody uses would go, with the taps in it.
    """
    original = _partial_eval.JaxprTrace.process_custom_vjp_call

    @functools.wraps(original)
    def process(self, *args, **kwargs):
        outs = original(self, *args, **kwargs)
        recipe = getattr(outs[0], "recipe", None) if outs else None
        if isinstance(recipe, _partial_eval.JaxprEqnRecipe) and _effects.partial_eval_kept_effects.filter_in(
            recipe.effects
        ):
            self.effect_handles.append(_partial_eval.EffectHandle(list(recipe.in_tracers), recipe))
        return outs

    _partial_eval.JaxprTrace.process_custom_vjp_call = process

    # A call without results would be out of reach there: if no result is used, the first one stays.
    call = _custom_derivatives.custom_vjp_call_p
    remove = _partial_eval.dce_rules[call]

    @functools.wraps(remove)
    def leave_one(used_outs, *rest):  # since JAX 0.11 also which inputs are live; the equation is the last
        if not any(used_outs) and used_outs and _effects.partial_eval_kept_effects.filter_in(rest[-1].effects):
            used_outs = [True, *used_outs[1:]]
        return remove(used_outs, *rest)

    _partial_eval.dce_rules[call] = leave_one


def runs_in_shards() -> bool:
    """Returns whether the code that runs now is the body of a shard_map that nobody traces."""
    return type(_core.trace_ctx.trace).__name__ == "ShardMapTrace"


def is_hoisting() -> bool:
    """Returns whether JAX is moving unchanging equations out of a scan that it differentiates."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name == "_scan_known_hoisting" or (name == "_scan_partial_eval_custom" and _in_last_step(frame)):
            return True
        frame = frame.f_back
    return False


def _in_last_step(frame: Any) -> bool:
    """Returns whether `_scan_partial_eval_custom` has told known from unknown values, and has begun to hoist."""
    return "const_donthoist" in frame.f_locals or "num_const_known" in frame.f_locals


def stage(trace: Any, tracers: Sequence[Any], primitive: extend_core.Primitive, params: dict[str, Any]) -> list[Any]:
    """Leaves an equation for the later part of a partial evaluation, even if all its operands are known."""
    tracers = [trace.instantiate_const(trace.to_jaxpr_tracer(tracer)) for tracer in tracers]
    return trace.default_process_primitive(primitive, tracers, params)


def evaluate_partially(trace: Any, tracers: Sequence[Any], primitive: extend_core.Primitive, params: dict) -> list[Any]:
    """Evaluates a primitive partially, as JAX does for primitives without a rule of their own."""
    return trace.default_process_primitive(primitive, [trace.to_jaxpr_tracer(t) for t in tracers], params)
