"""One program, ready to be checked: the program and its oracle, edits for both, and comparisons."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.mishax_lite.fuzz import evaluation
from tests.mishax_lite.fuzz.oracle import DIRECTIONS, Dual, Oracle, sin
from tests.mishax_lite.fuzz.plan import Plan, Site, plan
from tests.mishax_lite.fuzz.programs import Program
from tests.mishax_lite.fuzz.rendering import build

X = np.asarray([0.31, -0.72], np.float32)
MOVED = np.asarray([0.9, -0.4], np.float32)  # the tangent of the input where a program is differentiated forwards
WEIGHTS = np.asarray([1.0, 0.7], np.float32)
# A custom rule knows nothing of a value that an edit closes over or that is captured: an error that says so is right.
REFUSAL = re.compile(r"custom (derivative )?rule|closes over|custom_jvp|custom_vjp", re.S)
NO_WHILE = re.compile(r"Reverse-mode differentiation does not work for lax.while_loop")
LACKING = re.compile(r"not in the rule|lacks|no site matches", re.S)
PATTERNS = ("*", "a", "b", "e", "k*", "a*", "s/*", "*c", "t/*", "only_*", "*b")


@dataclasses.dataclass(frozen=True)
class Failure:
    """One disagreement."""

    check: str
    got: str
    wanted: str

    @property
    def kind(self) -> tuple[str, str]:
        """What stays the same while a program is made smaller: the check, and an error without its details."""
        error = re.match(r"(\w+(Error|Exception|Failure)\w*): (.{0,40})", self.got)
        if error:
            return self.check, error[1] + re.sub(r"['\"0-9].*", "", error[3])
        return self.check, "difference"


class Skip(Exception):
    """JAX itself refuses the program; the message is its reason."""


class Different(AssertionError):
    def __init__(self, got: Any, wanted: Any):
        super().__init__(f"got {got}, wanted {wanted}")
        self.got, self.wanted = str(got), str(wanted)


@dataclasses.dataclass(frozen=True)
class Change:
    """An edit for both runs: "shift" has derivative one, "wave" has not; both know the loop, which "add" does not."""

    kind: str
    constant: float

    def new(self, value: Any, loop: Sequence[Any], number: Any = 0.0) -> Any:
        added = number + self.constant
        if self.kind == "add":
            return value + added
        for depth, index in enumerate(loop):
            added = added + 0.07 * (depth + 1) * index
        if self.kind == "shift":
            return value + added
        # Bounded: a polynomial, applied at each of many taps, would make rounding errors as large as the values.
        return 0.9 * (sin if isinstance(value, Dual) else jnp.sin)(1.3 * value) + added


@dataclasses.dataclass
class Case:
    """One program, ready to be checked."""

    program: Program
    seed: int

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.f = build(self.program)
        self.plain = plan(self.program)
        self.rules = plan(self.program, differentiated=True)
        both = self.rules.forward and self.rules.backward
        self.way = "" if both else "forward" if self.rules.forward else "backward"

    def derivative(self, function: Callable[..., Any], *more: Any) -> Callable[..., Any]:
        """The derivative of the weighted sum of a function's result: (value, derivatives by the arguments)."""
        loss = lambda x, *rest: (function(x, *rest) * WEIGHTS).sum()  # noqa: E731
        if self.way == "backward":
            result = jax.value_and_grad(loss, tuple(range(1 + len(more))))
        else:
            result = lambda x, *rest: jax.jvp(  # noqa: E731
                loss, (x, *rest), (jnp.asarray(MOVED), *(jnp.ones_like(jnp.asarray(r)) for r in rest))
            )
        return jax.jit(result) if "derivative" in self.program.top else result

    def expected_derivative(self, out: Dual, number: bool = False) -> list[np.ndarray]:
        """What `derivative` gives: the loss, then by the input, then by the number that an edit closes over."""
        slopes = out.tangent @ WEIGHTS
        loss = out.value @ WEIGHTS
        if self.way == "backward":
            return [loss, slopes[:2], *([slopes[2]] if number else [])]
        return [loss, slopes[:2] @ MOVED + (slopes[2] if number else 0.0)]

    def oracle(self, **options: Any) -> Oracle:
        return Oracle(self.program, X, **options)


def close(got: Any, wanted: Any, label: str = "") -> None:
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=2e-3, atol=2e-4):
        text = [np.array2string(v, precision=5, threshold=12).replace("\n", "") for v in (got, wanted)]
        raise Different(*(f"{label} {v.shape} {t}".strip() for v, t in zip((got, wanted), text, strict=True)))


def all_close(got: Any, wanted: Sequence[Any], labels: Sequence[str]) -> None:
    leaves = jax.tree.leaves(got)
    if len(leaves) != len(wanted):
        raise Different(f"{len(leaves)} values", f"{len(wanted)}: {labels}")
    for leaf, value, label in zip(leaves, wanted, labels[: len(leaves)], strict=True):
        close(leaf, value, label)


def differ(got: Any, wanted: Any) -> None:
    if got != wanted:
        raise Different(got, wanted)


def matching(view: Plan, pattern: str) -> list[int]:
    """The positions of the sites that a pattern matches, by their name with or without `#k`."""
    return [
        k
        for k, (site, name) in enumerate(zip(view.sites, view.names, strict=True))
        if any(n == pattern or fnmatch.fnmatchcase(n, pattern) for n in (site.name, name))
    ]


def capturable(view: Plan, keep: Callable[[Site], bool] = lambda site: True) -> list[int]:
    return [k for k, site in enumerate(view.sites) if not site.barrier and keep(site)]


def names_of(view: Plan, chosen: list[int]) -> list[str]:
    return [view.names[k] for k in chosen]


def run_hooked(hooked: Callable[..., Any], *args: Any, compiled: bool = False) -> tuple[Any, list[str], Any]:
    """Runs a hooked function that returns (out, values): the names come apart, since JAX sorts those of a dict."""
    names: list[str] = []

    def split(*inputs):
        out, values = hooked(*inputs)
        names[:] = values
        return out, list(values.values())

    out, values = evaluation.run(split, *args, compiled=compiled)
    return out, names, values


def check_captured(case: Case, oracle: Oracle, view: Plan, chosen: list[int], names: list[str], values: Any) -> None:
    differ(names, [view.names[k] for k in chosen])
    for k, value in zip(chosen, values, strict=True):
        wanted = [leaf for leaf, _ in oracle.captured(view.sites[k])]
        all_close(value, wanted, [view.names[k]] * len(wanted))


class Edits:
    """Edits of one program for both runs."""

    def __init__(self, view: Plan, changes: dict[str, Change]):
        self.view, self.changes = view, changes
        self.names: set[str] = set()
        self.positions = {pattern: matching(view, pattern) for pattern in changes}

    @property
    def sites(self) -> list[Site]:
        return [self.view.sites[k] for k in sorted({k for ks in self.positions.values() for k in ks})]

    def hooks(self, number: Any = 0.0) -> dict[str, Any]:
        def hook(change, value, site):
            self.names.add(site.name)
            return jax.tree.map(lambda leaf: change.new(leaf, site.loop, number), value)

        return {pattern: functools.partial(hook, change) for pattern, change in self.changes.items()}

    def paths(self, number: bool = False) -> dict[Any, list[Any]]:
        """For the oracle: by the path of the site; `number` is the direction in which the edits' number moves."""
        moving = np.zeros((DIRECTIONS, 2))
        moving[2] = number
        dual = Dual(np.zeros(2), moving)
        edits: dict[Any, list[Any]] = {}
        for pattern, change in self.changes.items():
            for k in self.positions[pattern]:
                edit = lambda value, loop, change=change: change.new(value, loop, dual)  # noqa: E731
                edits.setdefault(self.view.sites[k].path, []).append(edit)
        return edits

    def check_names(self) -> None:
        """An edit is told the name of each site that it changes."""
        wanted = {self.view.names[k] for ks in self.positions.values() for k in ks}
        differ(sorted(self.names), sorted(wanted))


def choose(case: Case, view: Plan, how: str) -> Edits | None:
    """Edits by a pattern, by two, or of one occurrence; None where there is nothing to edit."""
    if not view.sites:
        return None
    if how == "one":
        patterns = [case.random.choice(view.names)]
    else:
        hits = [pattern for pattern in PATTERNS if matching(view, pattern)]
        patterns = ["*"] if how == "all" else case.random.sample(hits, min(len(hits), 2))
    sites = [view.sites[k] for pattern in patterns for k in matching(view, pattern)]
    kind = "shift" if any(site.rerun for site in sites) else case.random.choice(("wave", "wave", "shift"))
    return Edits(view, {pattern: Change(kind, 0.2 + 0.1 * k) for k, pattern in enumerate(patterns)})


def run_bare(function: Callable[..., Any], x: np.ndarray, label: str = "") -> Any:
    """Runs a program without taps; where JAX refuses it, compiled too, the check is skipped."""
    try:
        return evaluation.run(function, x)
    except Exception as error:
        try:
            jax.jit(function)(x)
        except Exception as refusal:
            raise Skip(label + _reason(refusal)) from error
        raise


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
