"""Traces a function at its arguments, and runs it again with actions at some of its taps."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as extend_core

# isort: off
from mishax_lite import _flax_scan, custom_rules, further_calls, nested  # noqa: F401  (they fill the tables of rules)
from mishax_lite import _jax_internals, _nnx, identity, turns

# isort: on
from mishax_lite.interpret import NOTHING, Action, Run, interpret
from mishax_lite.outputs import Output, is_array
from mishax_lite.primitive import watching
from mishax_lite.survey import Tap, first_runs, numbered, survey


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function traced at its arguments.

    Attributes:
        jaxpr: the program.
        inputs: the values that the function closes over, and the arrays among its arguments.
        taps: all its taps.
        names: the name of each tap as users see it.
        firsts: by the position of each recomputation, the position of its first run.
        output: makes the traced function's output from the outputs of `jaxpr`.
        settle: makes the user's function's output from that; it writes the new state into nnx modules, so it is called
            once, where the hook was called.
        peek: makes the user's function's output from that, and writes nothing.
    """

    jaxpr: extend_core.Jaxpr
    inputs: list[Any]
    taps: tuple[Tap, ...]
    names: list[str]
    firsts: dict[int, int]
    output: Output
    settle: Callable[[Any], Any] = lambda output: output
    peek: Callable[[Any], Any] = lambda output: output

    def result(self, outs: list[Any]) -> Any:
        """Returns the function's output from the outputs of `jaxpr`."""
        return self.settle(self.output(outs))

    def is_occurrence(self, position: int) -> bool:
        """Returns whether a tap is an occurrence of its name: no recomputation, and not absent."""
        return position not in self.firsts and self.taps[position].counts

    def matching(self, pattern: str) -> list[int]:
        """Returns the positions of the taps that a pattern matches, without recomputations.

        Raises:
            ValueError: if it matches none.
        """
        hits = [
            position
            for position, tap in enumerate(self.taps)
            if position not in self.firsts
            and not (tap.is_slope or tap.is_backward)
            and any(matches(name, pattern) for name in (tap.name, self.names[position]))
        ]
        positions = [position for position in hits if not self.taps[position].absent]
        if hits and not positions:
            raise ValueError(f"no site matches {pattern!r}: {self.taps[hits[0]].absent}")
        if not positions:
            names = list(dict.fromkeys(name for name in self.names if name))
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
            raise ValueError(
                f"no site matches {pattern!r}; "
                + (f"near names: {', '.join(near)}; " if near else "")
                + (f"the function has {len(names)} site" if names else "the function taps nothing")
                + ("s" if len(names) > 1 else "")
                + (f", the first are: {', '.join(names[:8])}" if names and not near else "")
            )
        return positions

    def reachable(self, pattern: str) -> list[int]:
        """Returns what `matching` does; a pattern that matches other sites too leaves out the unreachable ones."""
        positions = self.matching(pattern)
        return [p for p in positions if not (self.taps[p].closed and self.taps[p].uncapturable)] or positions

    def check_capture(self, position: int, pattern: str, loops: str | int | None) -> None:
        """Raises ValueError if a tap's value cannot be carried out, or if it takes `loops` to say which value."""
        tap = self.taps[position]
        site = f"capture: site {self.names[position]!r}, which pattern {pattern!r} matches, is in "
        if tap.uncapturable:
            raise ValueError(
                f"{site}{tap.uncapturable}, from where no value can be carried out; leave it out (`sites` lists the "
                "sites that can be captured)"
                + ("" if tap.closed else ", capture inside the vmap if one stands around it, or edit it")
            )
        if tap.selected:
            raise ValueError(
                f"{site}a branch of a cond that vmap made into a select: it runs for all lanes, also for those that "
                'take another branch. Capture inside the vmap: jax.vmap(capture(f, ..., loops="last")) says for each '
                "lane whether the branch was taken"
            )
        if tap.turns and loops is None:
            construct = {"while": "a while loop", "cond": "a branch of a cond or switch"}[tap.turns[-1]]
            raise ValueError(
                f'{site}{construct}, which runs as often as the data say; choose loops="last" for the last value, or '
                "loops=n for those of the first n turns of a loop, or leave the site out"
            )

    def check_edit(self, position: int, pattern: str) -> None:
        """Raises ValueError if a tap's value cannot be changed."""
        tap = self.taps[position]
        if tap.closed:
            raise ValueError(
                f"edit: site {self.names[position]!r}, which pattern {pattern!r} matches, is in "
                f"{tap.closed}; name the other sites without it"
            )


def matches(name: str, pattern: str) -> bool:
    """Returns whether a pattern matches a site's name: it is the name, or `fnmatch.fnmatchcase` says so."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def checked_patterns(caller: str, patterns: str | Iterable[str]) -> list[str]:
    """Returns one pattern, or several, as a list; raises ValueError in the caller's name unless they are strings."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{caller}: a pattern must be a string; got {type(pattern).__name__}: {pattern!r:.80}")
    return patterns


@_nnx.carries_state
def trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Traces `fn`: the arrays among its arguments become inputs, everything else stays unchanged."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [k for k, leaf in enumerate(leaves) if is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)]
    arrays = [jnp.asarray(leaves[k]) if isinstance(leaves[k], np.ndarray) else leaves[k] for k in places]
    output = None

    def flat(*inputs):
        nonlocal output
        identity.begin()
        filled = list(leaves)
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        call_args, call_kwargs = jax.tree.unflatten(tree, filled)
        returned = fn(*call_args, **call_kwargs)
        output = Output(returned)
        return Output.arrays(returned)

    # With jit, even where the user disabled it: JAX would unroll scans, whose sites would have other names and shapes.
    with watching(), jax.disable_jit(False):
        avals = [jax.typeof(array) if not isinstance(array, jax.ShapeDtypeStruct) else _aval(array) for array in arrays]
        jaxpr, consts = _jax_internals.trace(flat, avals, _jax_internals.no_debug_info(fn))
    taps = survey(jaxpr)
    firsts = first_runs(taps)
    # pyrefly: ignore[bad-argument-type]  tracing has set the output
    return Traced(jaxpr, [*consts, *arrays], taps, numbered(taps, firsts), firsts, output)


def _aval(struct: jax.ShapeDtypeStruct) -> Any:
    return jax.core.ShapedArray(struct.shape, struct.dtype, weak_type=struct.weak_type)


def captured_arrays(
    traced: Traced, chosen: list[bool], inputs: list[Any], loop_turns: int = 0
) -> tuple[list[Any], list[list[Any]]]:
    """Runs a traced function: returns the arrays of its output, and of the captured value of each chosen tap.

    Args:
        traced: the function.
        chosen: whether to capture each tap.
        inputs: its inputs.
        loop_turns: the number of first turns of while loops to capture, or 0 for the last turn.
    """
    actions = [Action(name, capture=yes) if yes else NOTHING for name, yes in zip(traced.names, chosen, strict=True)]
    outs, leaves = interpret(Run(actions, loop_turns), traced.jaxpr, (), inputs)
    arrays = iter(leaves)
    by_tap = [[next(arrays) for _ in range(tap.size)] for tap in itertools.compress(traced.taps, chosen)]
    return outs, by_tap


def captured(
    traced: Traced, chosen: list[bool], inputs: list[Any], loop_turns: int = 0
) -> tuple[list[Any], dict[str, Any]]:
    """Runs a traced function: returns the arrays of its output, and the captured values by name.

    The arguments are those of `captured_arrays`.
    """
    outs, by_tap = captured_arrays(traced, chosen, inputs, loop_turns)
    values = {}
    taps, names = itertools.compress(traced.taps, chosen), itertools.compress(traced.names, chosen)
    for tap, name, arrays in zip(taps, names, by_tap, strict=True):
        value = jax.tree.unflatten(tap.params["tree"], arrays[: len(tap.avals)])
        values[name] = turns.with_turns(value, arrays[len(tap.avals) :], tap.turns)
    return outs, values
