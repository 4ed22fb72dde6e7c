"""Evaluates a traced program with numpy, in milliseconds where compiling it takes a tenth of a second and more.

It goes through a jaxpr and what is nested in it, and means by each primitive what JAX documents. The shards of a
shard_map run in threads that meet in collectives. A primitive that is not in the tables is run by JAX.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as extend_core

_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Unknown(Exception):
    """A primitive with a program in it that this module cannot evaluate."""


def run(function: Callable[..., Any], *args: Any, compiled: bool = False) -> Any:
    """Returns `function(*args)`, traced once and evaluated, or compiled."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    flat = jax.tree.leaves(args)
    if compiled:
        outs = jax.jit(extend_core.jaxpr_as_fun(closed), compiler_options=_FAST)(*flat)
    else:
        outs = evaluate(closed.jaxpr, closed.consts, flat)
    outs = [np.asarray(out) for out in outs]
    for out, expected in zip(outs, jax.tree.leaves(shape), strict=True):
        if out.shape != expected.shape or out.dtype != expected.dtype:
            raise AssertionError(f"evaluated to {out.dtype}{out.shape}, traced as {expected}")
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def inner_jaxprs(eqn: extend_core.JaxprEqn) -> list[Any]:
    """The jaxprs in the params of an equation, closed or not."""
    items = [i for v in eqn.params.values() for i in (v if isinstance(v, (tuple, list)) else (v,))]
    return [i for i in items if isinstance(i, (extend_core.Jaxpr, extend_core.ClosedJaxpr))]


def _open(jaxpr: Any) -> tuple[extend_core.Jaxpr, Sequence[Any]]:
    # Since JAX 0.12 there is one class, with constants or without.
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def evaluate(jaxpr: extend_core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[np.ndarray]:
    """Returns the outputs of a jaxpr."""
    env: dict[Any, Any] = {}
    env.update(zip(jaxpr.constvars, map(_array, consts), strict=True))
    env.update(zip(jaxpr.invars, map(_array, args), strict=True))
    read = lambda v: _array(v.val, v.aval) if isinstance(v, extend_core.Literal) else env[v]  # noqa: E731
    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _NESTED:
            outs = _NESTED[name](eqn.params, inputs)
        elif name in _SIMPLE:
            outs = [_SIMPLE[name](eqn.params, *inputs)]
        elif inner_jaxprs(eqn) and name not in ("reduce", "sort"):
            raise Unknown(f"no rule to evaluate the primitive {name!r}; add one to evaluation.py")
        else:
            outs = eqn.primitive.bind(*inputs, **eqn.params)
            outs = list(outs) if eqn.primitive.multiple_results else [outs]
        for v, out in zip(eqn.outvars, outs, strict=True):
            env[v] = _array(out, v.aval)
    return [read(v) for v in jaxpr.outvars]


def _array(value: Any, aval: Any = None) -> Any:
    """As a numpy array of the type that the program says."""
    if aval is None or not hasattr(aval, "dtype"):
        return value if isinstance(value, np.ndarray) else np.asarray(value)
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, aval.dtype)
    array = np.asarray(value)
    return array if array.dtype == aval.dtype else array.astype(aval.dtype)


def _call(name: str) -> Callable[..., list[Any]]:
    def call(params, inputs):
        jaxpr, consts = _open(params[name])
        return evaluate(jaxpr, consts, inputs)

    return call


def _scan(params, inputs):
    jaxpr, consts = _open(params["jaxpr"])
    if "num_consts" in params:
        fixed, carries = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.12
        fixed, carries, _ = (len(part) for part in params["ft_in"].unpack())
    length = params["length"]
    held, carry, xs = inputs[:fixed], list(inputs[fixed : fixed + carries]), inputs[fixed + carries :]
    rows = [None] * length
    for turn in range(length)[:: -1 if params["reverse"] else 1]:
        outs = evaluate(jaxpr, consts, [*held, *carry, *(x[turn] for x in xs)])
        carry, rows[turn] = outs[:carries], outs[carries:]
    stacked = [v.aval for v in jaxpr.outvars[carries:]]
    if not length:
        return [*carry, *(np.zeros((0, *aval.shape), aval.dtype) for aval in stacked)]
    return [*carry, *(np.stack([row[k] for row in rows]) for k in range(len(stacked)))]


def _while(params, inputs):
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    test, body, carry = inputs[:tests], inputs[tests : tests + bodies], list(inputs[tests + bodies :])
    (cond_jaxpr, cond_consts), (body_jaxpr, body_consts) = _open(params["cond_jaxpr"]), _open(params["body_jaxpr"])
    while True:
        (more,) = evaluate(cond_jaxpr, cond_consts, [*test, *carry])
        if not more.any():
            return carry
        new = evaluate(body_jaxpr, body_consts, [*body, *carry])
        # Mapped over rows, some of which are done: those keep what they have.
        rows = [more.reshape(more.shape + (1,) * (np.ndim(old) - more.ndim)) for old in carry]
        carry = [np.where(row, value, old) for row, value, old in zip(rows, new, carry, strict=True)]


def _cond(params, inputs):
    index = int(np.clip(int(inputs[0]), 0, len(params["branches"]) - 1))
    jaxpr, consts = _open(params["branches"][index])
    return evaluate(jaxpr, consts, inputs[1:])


class Deadlock(RuntimeError):
    """A collective that not all shards come to, as in a branch that some of them take."""


class _Shards:
    """The shards of one shard_map, each a thread: in a collective all give their values and take the others'."""

    current = threading.local()
    _END = object()  # what a shard gives that has come to its end

    def __init__(self, count: int):
        self.values: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def run(self, jaxpr: extend_core.Jaxpr, inputs: list[list[Any]]) -> list[list[Any]]:
        results: list[Any] = [None] * len(inputs)

        def work(index: int) -> None:
            self.current.place = self, index
            try:
                results[index] = evaluate(jaxpr, (), inputs[index])
                self.exchange(index, self._END)
            except BaseException as error:
                results[index] = error
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [r for r in results if isinstance(r, BaseException)]
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results

    def exchange(self, index: int, value: Any) -> list[Any]:
        self.values[index] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        if len({value is self._END for value in values}) > 1:
            raise Deadlock("some shards wait in a collective for others that have come to their end")
        return values


def _shard_map(params, inputs):
    """The mesh has one axis: a dimension is divided by it, or by nothing."""
    jaxpr, count = _open(params["jaxpr"])[0], params["mesh"].size
    place = lambda spec: next((k for k, names in enumerate(spec) if names), None)  # noqa: E731
    divided = []
    for value, spec in zip(inputs, params["in_specs"], strict=True):
        axis = place(spec)
        divided.append([value] * count if axis is None else np.split(value, count, axis))
    results = _Shards(count).run(jaxpr, [[value[k] for value in divided] for k in range(count)])
    outs = []
    for spec, *parts in zip(params["out_specs"], *results, strict=True):
        axis = place(spec)
        outs.append(parts[0] if axis is None else np.concatenate(parts, axis))
    return outs


def _psum(params, inputs):
    shards, index = _Shards.current.place
    return [sum(shards.exchange(index, value)) for value in inputs]


def _axis_index(params, inputs):
    return [np.asarray(_Shards.current.place[1], np.int32)]


_NESTED: dict[str, Callable[[dict[str, Any], list[Any]], list[Any]]] = {
    "jit": _call("jaxpr"),
    "pjit": _call("jaxpr"),
    "remat2": _call("jaxpr"),
    "checkpoint": _call("jaxpr"),
    "custom_jvp_call": _call("call_jaxpr"),
    "custom_vjp_call": _call("call_jaxpr"),
    "core_call": _call("call_jaxpr"),
    "closed_call": _call("call_jaxpr"),
    "eval_jaxpr": _call("call_jaxpr"),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "tap": lambda params, inputs: list(inputs),
    "shard_map": _shard_map,
    **dict.fromkeys(("psum", "psum2", "psum_invariant"), _psum),
    "axis_index": _axis_index,
    "optimization_barrier": lambda params, inputs: list(inputs),
}


def _broadcast(params, x, *_):
    shape = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        shape[place] = x.shape[axis]
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _slice(params, x):
    strides = params["strides"] or (1,) * x.ndim
    limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*limit) for limit in limits)]


def _select(params, which, *cases):
    return np.select([which == k for k in range(len(cases))], [np.broadcast_to(c, cases[0].shape) for c in cases])


def _of(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *inputs: function(*inputs)


def _identity(params, x, *_):
    return x


_SAME = ("copy", "copy_p", "name", "reduce_precision", "pvary", "pcast", "pbroadcast", "stop_gradient", "reshard")
_NUMPY = ("sin", "cos", "tanh", "exp", "log1p", "square", "sqrt", "abs", "sign")

_SIMPLE: dict[str, Callable[..., Any]] = {
    **{name: _of(getattr(np, name)) for name in _NUMPY},
    "add": _of(np.add),
    "add_any": _of(np.add),
    "sub": _of(np.subtract),
    "mul": _of(np.multiply),
    "div": lambda params, a, b: a / b if np.issubdtype(a.dtype, np.floating) else np.trunc(a / b),
    "neg": _of(np.negative),
    "max": _of(np.maximum),
    "min": _of(np.minimum),
    "lt": _of(np.less),
    "le": _of(np.less_equal),
    "gt": _of(np.greater),
    "ge": _of(np.greater_equal),
    "eq": _of(np.equal),
    "ne": _of(np.not_equal),
    "and": _of(np.bitwise_and),
    "or": _of(np.bitwise_or),
    "not": _of(np.invert),
    "clamp": lambda params, low, x, high: np.clip(x, low, high),
    "integer_pow": lambda params, x: x ** params["y"],
    "select_n": _select,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, x, *_: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "expand_dims": lambda params, x: np.expand_dims(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "rev": lambda params, x: np.flip(x, tuple(params["dimensions"])),
    "slice": _slice,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "reduce_sum": lambda params, x: x.sum(tuple(params["axes"]), dtype=x.dtype),
    "reduce_or": lambda params, x: x.any(tuple(params["axes"])),
    "reduce_and": lambda params, x: x.all(tuple(params["axes"])),
    "reduce_max": lambda params, x: x.max(tuple(params["axes"])),
    **dict.fromkeys(_SAME, _identity),
}
