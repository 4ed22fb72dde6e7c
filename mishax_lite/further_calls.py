"""Rebuilds further equations that call a jaxpr: in place, with metadata, elsewhere, or with a rule for `vmap`.

`nested.py` has jit and scan, `turns.py` has loops and branches.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jax.extend import core as extend_core

from mishax_lite import _jax_internals
from mishax_lite.interpret import RULES, Run, interpret
from mishax_lite.nested import trace_inner
from mishax_lite.stripping import without_taps
from mishax_lite.survey import survey


def _program(params: dict[str, Any], *names: str) -> extend_core.ClosedJaxpr:
    return next(params[name] for name in names if name in params)


def _evaluated(run: Run, eqn, args, start, loops):
    """Evaluates a program in place that was traced ahead and is called by its jaxpr."""
    inner = _program(eqn.params, "call_jaxpr", "jaxpr")
    return interpret(run, inner.jaxpr, inner.consts, args, start, loops)


def _marked(run: Run, eqn, args, start, loops):
    """Rebuilds scheduling groups and other metadata for XLA, and `compute_on`, which says where each output lies."""
    inner, count = eqn.params["jaxpr"], len(eqn.outvars)
    new, extra = trace_inner(run, inner, start, loops)
    params: dict[str, Any] = dict(eqn.params, jaxpr=new)
    if "out_memory_spaces" in params:
        captured = tuple(aval.memory_space for aval in new.out_avals[count:])
        params["out_memory_spaces"] = tuple(params["out_memory_spaces"]) + captured
    outs = _jax_internals.bind(eqn, [*extra, *args], params)
    return outs[:count], outs[count:]


def _custom_vmap(run: Run, eqn, args, start, loops):
    """Rebuilds the function of a `custom_vmap`. Its rule is another program, which may lack the function's sites."""
    inner, count = eqn.params["call"], len(eqn.outvars)
    taps = len(survey(inner.jaxpr))
    if not run.edits(start, taps) and not any(run.captures(start, taps)):
        return _jax_internals.bind(eqn, args, without_taps(eqn.params)), []
    names = [action.name for action in run.actions[start : start + taps] if action.edit or action.capture]
    new, extra = trace_inner(run, inner, start, loops)

    def refuse(*_) -> NoReturn:
        raise ValueError(
            f"site {names[0]!r} is in a function with a rule for vmap (jax.custom_batching), and the hook stands "
            "inside a vmap, which runs the rule; put it outside: capture(jax.vmap(f), ...), edit(jax.vmap(f), ...)"
        )

    params = dict(
        eqn.params,
        call=new,
        rule=refuse,
        in_tree=_jax_internals.tuple_tree(len(extra) + len(args), eqn.params["in_tree"]),
        out_tree=_jax_internals.tuple_tree(len(new.out_avals), eqn.params["out_tree"]),
    )
    outs = _jax_internals.bind(eqn, [*extra, *args], params)
    return outs[:count], outs[count:]


# By name: JAX exports none of these primitives, and has some of them in some versions only.
RULES.update(
    {
        "eval_jaxpr": _evaluated,
        "xla_metadata_call": _marked,
        "compute_on": _marked,
        "custom_vmap_call": _custom_vmap,
    }
)
