"""Writes a program of `programs.py` as Python with JAX, and makes a function of that text.

What a failure prints is what was run. The text names `tap` and `scope`, which are mishax_lite's, or nothing's: the
same program without taps says whether JAX itself can run it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import mishax_lite
from tests.mishax_lite.fuzz.programs import Block, Call, Function, Op, Outer, Program, Scope, Tap, With, calls, hooked

# Constants that `oracle.py` has too.
MIX = np.asarray([[0.8, -0.3], [0.4, 0.6]], np.float32)
ROWS = np.asarray([[0.4], [0.8], [1.2]], np.float32)
LANES = np.asarray([[1.0], [0.5], [-0.7]], np.float32)
CONSTANT = np.asarray([0.2, -0.4], np.float32)

_OPS = {
    "sin": "jnp.sin({a})",
    "tanh": "jnp.tanh({a})",
    "scale": "0.7 * {a}",
    "flip": "{a}[::-1]",
    "mix": "{a} @ MIX",
    "center": "{a} - 0.5 * {a}.mean()",
    "add": "{a} + {b}",
    "mul": "0.5 * {a} * {b}",
}
_POLICIES = {
    (): "",
    ("dots",): ", policy=jax.checkpoint_policies.dots_saveable",
    ("everything",): ", policy=jax.checkpoint_policies.everything_saveable",
}


def build(program: Program, taps: bool = True) -> Callable[[Any], Any]:
    """Returns the function of a program, from float32 [2] to float32 [2]; its own functions are traced as they come."""
    namespace = {
        "jax": jax,
        "jnp": jnp,
        "lax": lax,
        "tap": mishax_lite.tap if taps else lambda name, value: value,
        "scope": mishax_lite.scope if taps else lambda prefix: contextlib.nullcontext(),
        "MIX": MIX,
        "ROWS": ROWS,
        "LANES": LANES,
        "CONSTANT": CONSTANT,
        "P": PartitionSpec,
        "edit": mishax_lite.edit,
        "capture": mishax_lite.capture,
    }
    text = render(program, hooks=taps)
    if "MESH" in text:
        namespace["MESH"] = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    exec(compile(text, "<program>", "exec"), namespace)
    return namespace["f"]


def render(program: Program, hooks: bool = True) -> str:
    """Returns the program as Python text that defines `f`; without its own hooks if so asked."""
    writer = _Writer(program, hooks)
    used = _reachable(program)
    lacking = [index for index in used if program.functions[index].rule == "lacking"]
    for index in used:
        if lacking and index <= max(lacking):
            writer.function(f"f{index}_silent", Function("plain", program.functions[index].block), silent=True)
        writer.function(f"f{index}", program.functions[index])
    writer.function("f", Function("jit" if "f" in program.top else "plain", program.main))
    return "\n".join(writer.lines) + "\n"


def _reachable(program: Program) -> list[int]:
    used, new = set(), calls(program.main)
    while new:
        used |= new
        new = set().union(*(calls(program.functions[index].block) for index in new)) - used
    return sorted(used)


class _Writer:
    def __init__(self, program: Program, hooks: bool):
        self.program, self.hooks = program, hooks
        self.lines: list[str] = []
        self.indent = 0
        self.count = 0
        self.silent = False

    def write(self, line: str) -> None:
        self.lines.append("    " * self.indent + line)

    def name(self, letter: str = "v") -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def function(self, name: str, function: Function, silent: bool = False) -> None:
        """Writes one function with its rules."""
        self.silent = silent
        if function.kind in ("custom_jvp", "custom_vjp"):
            self._custom(name, function)
        else:
            if function.kind == "jit":
                self.write("@jax.jit")
            self._def(name, function.block, None)
            if function.kind == "remat":
                self.write(f"{name} = jax.checkpoint({name}{_POLICIES[function.options]})")
        self.silent = False

    def _def(self, name: str, block: Block, outer: list[str] | None, second: str = "", **more: Any) -> None:
        """Writes a function of one value, or of a value and `second`."""
        value = self.name()
        self.write(f"def {name}({value}{second and ', ' + second}):")
        self.indent += 1
        env = [value, *([second] if second else [])]
        result = self._block(block, env, outer, **more)
        self.write(f"return {result}")
        self.indent -= 1

    def _custom(self, name: str, function: Function) -> None:
        rule, jvp = function.rule, function.kind == "custom_jvp"
        pair = rule == "value"
        self._def(f"{name}_body", function.block, None, last=pair)
        self.write(f"{name} = jax.{function.kind}(lambda x: {name}_body(x){'[0]' if pair else ''})")
        value = {"self": f"{name}(x)", "again": f"{name}_body(x)", "lacking": f"{name}_silent(x)"}.get(rule)
        if jvp:
            lines = {
                "self": [f"return {value}, 1.2 * jnp.cos(x) * dx"],
                "lacking": [f"return {value}, 1.2 * jnp.cos(x) * dx"],
                "again": [f"y, dy = jax.jvp({name}_body, (x,), (dx,))", "return y, 1.5 * dy"],
                "value": [f"y, z = {name}_body(x)", "return y, 1.2 * jnp.cos(z) * dx"],
            }[rule]
            self.write(f"def {name}_jvp(primals, tangents):")
            self.indent += 1
            self.write("(x,), (dx,) = primals, tangents")
            for line in lines:
                self.write(line)
            self.indent -= 1
            self.write(f"{name}.defjvp({name}_jvp)")
            return
        if pair:
            self.write(f"def {name}_fwd(x):")
            self.write(f"    y, z = {name}_body(x)")
            if "only_fwd" in function.options:
                self.write("    z = tap('only_fwd', z)")
            self.write("    return y, z")
        else:
            self.write(f"{name}_fwd = lambda x: ({value}, x)")
        if rule == "again":
            self.write(f"{name}_bwd = lambda x, ct: jax.vjp({name}_body, x)[1](1.5 * ct)")
        else:
            kept = "tap('only_bwd', z)" if "only_bwd" in function.options else "z"
            self.write(f"{name}_bwd = lambda z, ct: (1.3 * jnp.cos({kept}) * ct,)")
        self.write(f"{name}.defvjp({name}_fwd, {name}_bwd)")

    def _block(
        self, block: Block, env: list[str], outer: list[str] | None, last: bool = False, shards: bool = False
    ) -> str:
        """Writes the statements; returns the expression of the result (and of the last value, with `last`)."""
        must: list[str] = []
        self._statements(block, env, outer, must, shards)
        total = " + ".join(must)
        result = f"jnp.sin({env[-1]}{f' + 0.3 * ({total})' if must else ''})"
        return f"{result}, {env[-1]}" if last else result

    def _statements(self, block: Block, env: list[str], outer: list[str] | None, must: list[str], shards: bool) -> None:
        for statement in block.statements:
            if isinstance(statement, Scope):
                self.write(f"with scope({statement.prefix!r}):" if not self.silent else "if True:")
                self.indent += 1
                self.write("pass")
                self._statements(statement.block, env, outer, must, shards)
                self.indent -= 1
                continue
            value = self._statement(statement, env, outer, shards)
            if value is not None:
                env.append(value)
                if isinstance(statement, (Call, With)):
                    must.append(value)

    def _statement(self, statement: Any, env: list[str], outer: list[str] | None, shards: bool) -> str | None:
        at = lambda index: env[index % len(env)]  # noqa: E731
        value = self.name()
        if isinstance(statement, Op):
            self.write(f"{value} = {_OPS[statement.kind].format(a=at(statement.a), b=at(statement.b))}")
        elif isinstance(statement, Outer):
            source = at(statement.a) if outer is None else outer[statement.a % len(outer)]
            # A value from outside of shard_map is made to vary over the mesh, as all others in there.
            self.write(f"{value} = {source}" + (f" + 0.1 * {env[0]}" if shards else ""))
        elif isinstance(statement, Call):
            suffix = "_silent" if self.silent else ""
            call = f"f{statement.function}{suffix}({at(statement.a)})"
            self.write(call if statement.dropped else f"{value} = {call}")
            return None if statement.dropped else value
        elif isinstance(statement, Tap):
            return self._tap(statement, value, at)
        else:
            getattr(self, "_" + statement.kind)(statement, value, at, env)
        return value

    def _tap(self, statement: Tap, value: str, at: Callable[[int], str]) -> str | None:
        tap = (lambda text: text) if self.silent else lambda text: f"tap({statement.name!r}, {text})"
        a = at(statement.a)
        if statement.form == "unused":
            self.write(tap(a))
            return None
        if statement.form == "pair":
            pair = self.name("pair")
            self.write(f"{pair} = {tap(f'({a}, {at(statement.b)})')}")
            self.write(f"{value} = {pair}[0] + 0.5 * {pair}[1]")
        elif statement.form == "constant":
            self.write(f"{value} = {a} + 0.3 * {tap('jnp.asarray(CONSTANT)')}")
        else:
            self.write(f"{value} = {tap(a)}")
        return value

    def _jit(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner = self.name("g")
        self._def(inner, statement.blocks[0], list(env))
        self.write(f"{value} = jax.jit({inner})({at(statement.a)})")

    def _remat(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner = self.name("g")
        self._def(inner, statement.blocks[0], list(env))
        self.write(f"{value} = jax.checkpoint({inner}{_POLICIES[statement.options]})({at(statement.a)})")

    def _scan(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner, n = self.name("g"), statement.size
        no_xs = "no_xs" in statement.options
        row = "" if no_xs else self.name()
        carry = self.name()
        self.write(f"def {inner}({carry}, {row or '_'}):")
        self.indent += 1
        names = [carry, *([row] if row else [])]
        self.write(f"return {self._block(statement.blocks[0], names, list(env), last=True)}")
        self.indent -= 1
        a = at(statement.a)
        xs = "None" if no_xs else f"ROWS[:{n}] * {a}"
        reverse = ", reverse=True" if "reverse" in statement.options else ""
        self.write(f"{value}, ys = lax.scan({inner}, {a}, {xs}, length={n}{reverse})")
        self.write(f"{value} = {value} + 0.5 * ys.sum(0)")

    def _fori(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner = self.name("g")
        self._def(inner, statement.blocks[0], list(env))
        self.write(f"{value} = lax.fori_loop(0, {statement.size}, lambda i, c: {inner}(c), {at(statement.a)})")

    def _while(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        test, body = self.name("g"), self.name("g")
        self._def(test, statement.blocks[0], list(env))
        self._def(body, statement.blocks[1], list(env))
        self.write(f"def {test}_more(state):")
        self.write(f"    return (state[0] < {statement.size}) & ({test}(state[1]).sum() < 1.2)")
        self.write(
            f"{value} = lax.while_loop({test}_more, lambda state: (state[0] + 1, {body}(state[1])), "
            f"(0, {at(statement.a)}))[1]"
        )

    def _cond(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        yes, no = self.name("g"), self.name("g")
        self._def(yes, statement.blocks[0], list(env))
        self._def(no, statement.blocks[1], list(env))
        limit = {("never",): 9.0, ("always",): -9.0}.get(statement.options, 0.123)
        self.write(f"{value} = lax.cond({at(statement.a)}[0] > {limit}, {yes}, {no}, {at(statement.a)})")

    def _switch(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        branches = [self.name("g") for _ in statement.blocks]
        for branch, block in zip(branches, statement.blocks, strict=True):
            self._def(branch, block, list(env))
        a = at(statement.a)
        index = f"(1.7 * {a}[0] + 1.1).astype(jnp.int32)"
        self.write(f"{value} = lax.switch({index}, [{', '.join(branches)}], {a})")

    def _vmap(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner = self.name("g")
        self._def(inner, statement.blocks[0], list(env), second=self.name())
        rows, n = f"LANES[:{statement.size}]", statement.size
        if "transposed" in statement.options:
            given, axis = f"({rows} * {at(statement.a)}).T", 1
        else:
            given, axis = f"{rows} * {at(statement.a)}", 0
        mapped = f"jax.vmap({inner}, in_axes=({axis}, None), out_axes={axis}, axis_size={n})"
        self.write(f"{value} = 0.5 * {mapped}({given}, {at(statement.b)}).sum({axis})")

    def _shard_map(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner, a = self.name("g"), at(statement.a)
        self._def(inner, statement.blocks[0], list(env), shards=True)
        mapped = f"jax.shard_map({inner}, mesh=MESH, in_specs=P('d'), out_specs=P('d'))"
        self.write(f"{value} = 0.5 * {mapped}(jnp.concatenate([{a}, 0.6 * {a}])).reshape(2, 2).sum(0)")

    def _edit(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner, a = self.name("g"), at(statement.a)
        self._def(inner, hooked(statement), list(env))
        if self.silent or not self.hooks:
            self.write(f"{value} = {inner}({a})")
            return
        new = "leaf + 0.15 + sum(0.05 * i for i in s.loop)"
        new += f" + 0.1 * {at(statement.b)}" if "closes" in statement.options else ""
        edit = f"lambda v, s: jax.tree.map(lambda leaf: {new}, v)"
        self.write(f"{value} = edit({inner}, {{'*': {edit}}})({a})")

    def _capture(self, statement: With, value: str, at: Callable[[int], str], env: list[str]) -> None:
        inner, a = self.name("g"), at(statement.a)
        bare = self.silent or not self.hooks
        self._def(inner, hooked(statement), list(env), last=bare)
        if bare:
            self.write(f"{value}, last = {inner}({a})")
        else:
            self.write(f"{value}, values = capture({inner}, '*{statement.options[0]}')({a})")
            self.write("(last,) = values.values()")
        self.write(f"{value} = {value} + 0.3 * last")
