"""What is compared for one program: names, shapes, values and derivatives, against the program unrolled.

A check that goes wrong gives a `Failure`. The program without taps runs first: a program that JAX itself refuses is
skipped, with JAX's reason.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import random
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mishax_lite
from tests.mishax_lite.fuzz import evaluation
from tests.mishax_lite.fuzz.oracle import DIRECTIONS, Dual, Oracle, sin
from tests.mishax_lite.fuzz.plan import Plan, Site, original, plan
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


def _close(got: Any, wanted: Any, label: str = "") -> None:
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=2e-3, atol=2e-4):
        text = [np.array2string(v, precision=5, threshold=12).replace("\n", "") for v in (got, wanted)]
        raise Different(*(f"{label} {v.shape} {t}".strip() for v, t in zip((got, wanted), text, strict=True)))


def _all_close(got: Any, wanted: Sequence[Any], labels: Sequence[str]) -> None:
    leaves = jax.tree.leaves(got)
    if len(leaves) != len(wanted):
        raise Different(f"{len(leaves)} values", f"{len(wanted)}: {labels}")
    for leaf, value, label in zip(leaves, wanted, labels[: len(leaves)], strict=True):
        _close(leaf, value, label)


def _differ(got: Any, wanted: Any) -> None:
    if got != wanted:
        raise Different(got, wanted)


def matching(view: Plan, pattern: str) -> list[int]:
    """The positions of the sites that a pattern matches, by their name with or without `#k`."""
    return [
        k
        for k, (site, name) in enumerate(zip(view.sites, view.names, strict=True))
        if any(n == pattern or fnmatch.fnmatchcase(n, pattern) for n in (site.name, name))
    ]


def _capturable(view: Plan, keep: Callable[[Site], bool] = lambda site: True) -> list[int]:
    return [k for k, site in enumerate(view.sites) if not site.barrier and keep(site)]


def _run(hooked: Callable[..., Any], *args: Any, compiled: bool = False) -> tuple[Any, list[str], Any]:
    """Runs a hooked function that returns (out, values): the names come apart, since JAX sorts those of a dict."""
    names: list[str] = []

    def split(*inputs):
        out, values = hooked(*inputs)
        names[:] = values
        return out, list(values.values())

    out, values = evaluation.run(split, *args, compiled=compiled)
    return out, names, values


def _captured(case: Case, oracle: Oracle, view: Plan, chosen: list[int], names: list[str], values: Any) -> None:
    _differ(names, [view.names[k] for k in chosen])
    for k, value in zip(chosen, values, strict=True):
        wanted = [leaf for leaf, _ in oracle.captured(view.sites[k])]
        _all_close(value, wanted, [view.names[k]] * len(wanted))


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
        _differ(sorted(self.names), sorted(wanted))


def _choose(case: Case, view: Plan, how: str) -> Edits | None:
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


# The checks. Each takes a case, and raises where mishax_lite and the oracle differ.


def check_sites(case: Case, function: Any = None, view: Plan | None = None) -> None:
    """Names in program order, with shapes; sites that only `loops=` can capture may be listed too."""
    view = view or case.plain
    listed = mishax_lite.sites(function or case.f, jax.ShapeDtypeStruct((2,), jnp.float32))
    _differ(list(listed), [n for n, s in zip(view.names, view.sites, strict=True) if n in listed or not s.barrier])
    for k in _capturable(view):
        shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(listed[view.names[k]])]
        _differ((view.names[k], shapes), (view.names[k], view.sites[k].shapes()))


def check_capture(case: Case, compiled: bool = False) -> None:
    chosen = _capturable(case.plain)
    if not chosen:
        return
    hooked = mishax_lite.capture(case.f, "*" if len(chosen) == len(case.plain.sites) else _names(case.plain, chosen))
    out, names, values = _run(hooked, X, compiled=compiled)
    oracle = case.oracle()
    _close(out, oracle.out.value, "out")
    _captured(case, oracle, case.plain, chosen, names, values)


def _names(view: Plan, chosen: list[int]) -> list[str]:
    return [view.names[k] for k in chosen]


def check_capture_refused(case: Case) -> None:
    """Without `loops`, capturing in a while or a cond is an error that names the site."""
    barred = [k for k, site in enumerate(case.plain.sites) if site.barrier]
    if not barred:
        return
    k = case.random.choice(barred)
    for pattern in (case.plain.names[k], "*"):
        try:
            _, names, _ = _run(mishax_lite.capture(case.f, pattern), X)
        except ValueError as error:
            sites = barred if pattern == "*" else [k]
            if not any(repr(case.plain.names[j]) in str(error) for j in sites):
                raise Different(str(error), f"an error that names {[case.plain.names[j] for j in sites]}") from error
        else:
            raise Different(
                f"values of {names}", f"an error: {case.plain.names[k]!r} is in a {case.plain.sites[k].barrier}"
            )


def check_capture_eager(case: Case) -> None:
    """Outside jit, capture gives what it gives inside."""
    chosen = _capturable(case.plain)
    if not chosen:
        return
    out, values = mishax_lite.capture(case.f, _names(case.plain, chosen))(jnp.asarray(X))
    oracle = case.oracle()
    _close(out, oracle.out.value, "out")
    _captured(case, oracle, case.plain, chosen, list(values), list(values.values()))


def check_sites_of_derivative(case: Case) -> None:
    check_sites(case, case.derivative(case.f), case.rules)


def check_capture_of_derivative(case: Case, compiled: bool = False) -> None:
    chosen = _capturable(case.rules)
    if not chosen:
        return
    hooked = mishax_lite.capture(case.derivative(case.f), _names(case.rules, chosen))
    out, names, values = _run(hooked, X, compiled=compiled)
    oracle = case.oracle(differentiated=True)
    _all_close(out, case.expected_derivative(oracle.out), ("loss", "derivative"))
    _captured(case, oracle, case.rules, chosen, names, values)


def _check_edit(case: Case, how: str, compiled: bool = False) -> None:
    edits = _choose(case, case.plain, how)
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(case.f, edits.hooks()), X, compiled=compiled)
    _close(out, case.oracle(edits=edits.paths()).out.value, f"out, edits {edits.changes}")
    edits.check_names()


def _check_derivative_of_edit(case: Case, how: str, compiled: bool = False) -> None:
    edits = _choose(case, case.plain, how)
    if edits is None:
        return
    # A rule that lacks a site cannot show it edited.
    present = {original(site.path) for site in case.rules.sites}
    lacking = [site for site in edits.sites if site.path not in present]
    ruled = any(site.rules for site in edits.sites)
    wanted = case.oracle(differentiated=True, edits=edits.paths(number=True)).out
    by_number = case.derivative(lambda x, number: mishax_lite.edit(case.f, edits.hooks(number))(x), 0.0)
    by_input = case.derivative(lambda x: mishax_lite.edit(case.f, edits.hooks())(x))
    label = f"edits {edits.changes}"
    try:
        try:
            out = evaluation.run(by_number, X, np.float32(0), compiled=compiled)
            expected = case.expected_derivative(wanted, number=True)
        except (ValueError, evaluation.Deadlock) as error:
            # JAX sums the derivative by what a branch closes over within that branch: shards that take it wait for
            # those that do not, with hooks or without.
            if not isinstance(error, evaluation.Deadlock) and not (ruled and REFUSAL.search(str(error))):
                raise
            out, expected = evaluation.run(by_input, X, compiled=compiled), case.expected_derivative(wanted)
    except ValueError as error:
        if not (lacking and LACKING.search(str(error))) and not _rerun_refused(edits, error):
            raise
        return
    if lacking:
        raise Different(f"no error, {label}", f"an error: the rule lacks {lacking[0].name!r}")
    _all_close(out, expected, (f"loss, {label}", f"derivative, {label}", f"derivative by the number, {label}"))
    edits.check_names()


def _rerun_refused(edits: Edits, error: Exception) -> bool:
    """A rule whose backward pass runs the function again may be refused, by the name of the site."""
    rerun = [site for site in edits.sites if site.rerun]
    return any(repr(site.name)[:-1] in str(error) for site in rerun)


def _check_edit_of_derivative(case: Case, how: str, compiled: bool = False) -> None:
    edits = _choose(case, case.rules, how)
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(case.derivative(case.f), edits.hooks()), X, compiled=compiled)
    wanted = case.oracle(differentiated=True, edits=edits.paths(), way="value").out
    label = f"edits {edits.changes}"
    _all_close(out, case.expected_derivative(wanted), (f"loss, {label}", f"derivative, {label}"))
    edits.check_names()


def _check_both(case: Case, outer: str) -> None:
    """capture(edit(f)) and edit(capture(f)) both show the edited value."""
    edits, chosen = _choose(case, case.plain, "two"), _capturable(case.plain)
    if edits is None or not chosen:
        return
    names = _names(case.plain, chosen)
    if outer == "capture":
        hooked = mishax_lite.capture(mishax_lite.edit(case.f, edits.hooks()), names)
    else:
        hooked = mishax_lite.edit(mishax_lite.capture(case.f, names), edits.hooks())
    out, got, values = _run(hooked, X)
    oracle = case.oracle(edits=edits.paths())
    _close(out, oracle.out.value, f"out, edits {edits.changes}")
    if outer == "edit":  # JAX sorts the keys of a dict that goes through a transformation
        _differ(got, sorted(names))
        got, values = names, [values[got.index(name)] for name in names]
    _captured(case, oracle, case.plain, chosen, got, values)


def _check_derivative_of_capture(case: Case, ruled: bool) -> None:
    """The gradient of what is captured, in custom rules or outside of them."""
    present = {site.path for site in case.rules.sites}
    chosen = _capturable(case.plain, lambda s: bool(s.rules) == ruled and s.path in present)
    try:
        _compare_derivative_of_capture(case, chosen, ruled)
    except ValueError as error:
        if not (ruled and NO_WHILE.search(str(error))):
            raise
        # A rule hides the while from who differentiates the function, but not from who differentiates what is in it:
        # JAX refuses that in a function that returns the value, too. The other sites have derivatives.
        _compare_derivative_of_capture(case, [k for k in chosen if not case.plain.sites[k].after_while], ruled)


def _compare_derivative_of_capture(case: Case, chosen: list[int], ruled: bool) -> None:
    if not chosen:
        return
    oracle = case.oracle(differentiated=True, capturing=True)
    names = _names(case.plain, chosen)
    wanted = []
    for k in chosen:
        total = sum((t * 0.5).sum(tuple(range(1, t.ndim))) for _, t in oracle.captured(case.plain.sites[k]))
        wanted.append(total[:2] if case.way == "backward" else total[:2] @ MOVED)

    def sums(x):
        values = mishax_lite.capture(case.f, names)(x)[1]
        return [sum(0.5 * leaf.sum() for leaf in jax.tree.leaves(values[name])) for name in names]

    derivative = jax.jacrev(sums) if case.way == "backward" else lambda x: jax.jvp(sums, (x,), (jnp.asarray(MOVED),))[1]
    try:
        got = evaluation.run(derivative, X)
    except ValueError as error:
        if not (ruled and REFUSAL.search(str(error))):
            raise
        return
    _all_close(got, wanted, [f"derivative of {name!r}" for name in names])


def check_capture_last(case: Case) -> None:
    """`capture(..., loops="last")` in one while or cond: the last value, and how often there was one."""
    sites = case.plain.sites
    chosen = [k for k, s in enumerate(sites) if s.barriers == 1 and not s.test and not s.levels]
    chosen = [k for k in chosen if all(size for _, size in sites[k].nest) and not _in_shards(sites[k])]
    if not chosen:
        return
    names = _names(case.plain, chosen)

    def split(x):
        values = mishax_lite.capture(case.f, names, loops="last")(x)[1]
        values = [values[name] for name in names]
        kinds[:] = ["cond" if hasattr(v, "taken") else "while" if hasattr(v, "count") else "neither" for v in values]
        return [(v.value, v.taken if hasattr(v, "taken") else v.count) for v in values]

    kinds: list[str] = []
    values = evaluation.run(split, X)
    oracle = case.oracle()
    _differ(kinds, [sites[k].barrier for k in chosen])
    for k, (value, count) in zip(chosen, values, strict=True):
        site, name = sites[k], case.plain.names[k]
        outside = tuple(size for _, size in site.nest[: site.outside])
        inside = (0,) * (len(site.nest) - site.outside)
        counts = [oracle.counts[site.path][(*index, *inside)] for index in np.ndindex(*outside)]
        wanted = np.asarray(counts).reshape(outside)
        _close(count, wanted > 0 if site.barrier == "cond" else wanted, f"turns of {name!r}")
        for leaf, (last, _) in zip(jax.tree.leaves(value), oracle.captured(site), strict=True):
            _close(np.where(np.isnan(last), 0, leaf), np.nan_to_num(last), f"last {name!r}")


def _in_shards(site: Site) -> bool:
    return any(kind == "shard" for kind, _ in site.nest)


def _rows(case: Case) -> tuple[np.ndarray, Plan]:
    """Inputs over which the derivative is mapped, as for gradients of each example, and its sites then.

    Raises:
        Skip: JAX itself refuses that.
    """
    xs = np.stack([X, MOVED, 0.5 * MOVED - X])
    _run_bare(jax.vmap(case.derivative(build(case.program, taps=False))), xs, "mapped: ")
    return xs, plan(case.program, differentiated=True, rows=len(xs))


def _mapped_derivative(case: Case, oracle: Oracle) -> list[np.ndarray]:
    rows = [case.expected_derivative(out) for out in oracle.outs]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def check_capture_of_mapped_derivative(case: Case) -> None:
    xs, view = _rows(case)
    chosen = _capturable(view)
    if not chosen:
        return
    out, names, values = _run(mishax_lite.capture(jax.vmap(case.derivative(case.f)), _names(view, chosen)), xs)
    oracle = Oracle(case.program, xs, differentiated=True)
    _all_close(out, _mapped_derivative(case, oracle), ("loss", "derivative"))
    _captured(case, oracle, view, chosen, names, values)


def check_edit_of_mapped_derivative(case: Case) -> None:
    xs, view = _rows(case)
    edits = _choose(case, view, "two")
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(jax.vmap(case.derivative(case.f)), edits.hooks()), xs)
    oracle = Oracle(case.program, xs, differentiated=True, edits=edits.paths(), way="value")
    label = f"edits {edits.changes}"
    _all_close(out, _mapped_derivative(case, oracle), (f"loss, {label}", f"derivative, {label}"))
    edits.check_names()


def check_capture_of_edit_of_derivative(case: Case) -> None:
    edits, chosen = _choose(case, case.rules, "two"), _capturable(case.rules)
    if edits is None or not chosen:
        return
    edited = mishax_lite.edit(case.derivative(case.f), edits.hooks())
    out, names, values = _run(mishax_lite.capture(edited, _names(case.rules, chosen)), X)
    oracle = case.oracle(differentiated=True, edits=edits.paths(), way="value")
    label = f"edits {edits.changes}"
    _all_close(out, case.expected_derivative(oracle.out), (f"loss, {label}", f"derivative, {label}"))
    _captured(case, oracle, case.rules, chosen, names, values)


def check_gradients(case: Case) -> None:
    """`gradients` against the derivative by a number that is added to one site, wherever it occurs."""
    present = {original(site.path) for site in case.rules.sites}
    chosen = [k for k in _capturable(case.plain) if case.plain.sites[k].path in present]
    if not chosen or case.way != "backward":
        return
    k = case.random.choice(chosen)
    site, name = case.plain.sites[k], case.plain.names[k]
    try:
        _, values = evaluation.run(mishax_lite.gradients(lambda x: (case.f(x) * WEIGHTS).sum(), name), X)
    except ValueError as error:
        if not (site.rules and REFUSAL.search(str(error))):
            raise
        return
    edits = Edits(case.plain, {name: Change("add", 0.0)})
    wanted = case.oracle(differentiated=True, edits=edits.paths(number=True)).out
    _, captured = evaluation.run(mishax_lite.capture(case.f, name), X)
    pairs = zip(jax.tree.leaves(values[name]), jax.tree.leaves(captured[name]), strict=True)
    total = sum(_summed(np.asarray(gradient), np.asarray(value), site.nest) for gradient, value in pairs)
    _close(total, wanted.tangent[2] @ WEIGHTS, f"sum, {name!r}")


def _summed(gradient: np.ndarray, value: np.ndarray, nest: tuple[tuple[str, int], ...]) -> float:
    """The sum of a gradient; where a value is the same on all shards, each of them shows its one gradient."""
    for axis, (kind, _) in reversed(list(enumerate(nest))):
        shared = kind == "shard" and np.ptp(value, axis=axis).max(initial=0) == 0
        gradient, value = (gradient.take(0, axis) if shared else gradient.sum(axis)), value.sum(axis)
    return gradient.sum()


CHECKS: dict[str, Callable[[Case], None]] = {
    "sites(f)": check_sites,
    "capture(f)": check_capture,
    "capture(f) in while or cond": check_capture_refused,
    "edit(f), one": lambda case: _check_edit(case, "one"),
    "edit(f), patterns": lambda case: _check_edit(case, "two"),
    "capture(edit(f))": lambda case: _check_both(case, "capture"),
    "edit(capture(f))": lambda case: _check_both(case, "edit"),
}
DERIVATIVE_CHECKS: dict[str, Callable[[Case], None]] = {
    "sites(grad(f))": check_sites_of_derivative,
    "capture(grad(f))": check_capture_of_derivative,
    "grad(edit(f)), one": lambda case: _check_derivative_of_edit(case, "one"),
    "grad(edit(f)), patterns": lambda case: _check_derivative_of_edit(case, "two"),
    "edit(grad(f)), one": lambda case: _check_edit_of_derivative(case, "one"),
    "edit(grad(f)), all": lambda case: _check_edit_of_derivative(case, "all"),
    "grad(capture(f))": lambda case: _check_derivative_of_capture(case, False),
    "capture(edit(grad(f)))": check_capture_of_edit_of_derivative,
    "capture(vmap(grad(f)))": check_capture_of_mapped_derivative,
    "edit(vmap(grad(f)))": check_edit_of_mapped_derivative,
    "grad(capture(f)) in rules": lambda case: _check_derivative_of_capture(case, True),
}
if "loops" in inspect.signature(mishax_lite.capture).parameters:
    CHECKS['capture(f, loops="last")'] = check_capture_last
if hasattr(mishax_lite, "gradients"):
    DERIVATIVE_CHECKS["gradients(f)"] = check_gradients
# Compiled, or run outside jit: slower, so only some programs have them.
COMPILED_CHECKS: dict[str, Callable[[Case], None]] = {
    "capture(f) outside jit": check_capture_eager,
    "jit(capture(f))": lambda case: check_capture(case, compiled=True),
    "jit(edit(f))": lambda case: _check_edit(case, "two", compiled=True),
}
COMPILED_DERIVATIVE_CHECKS: dict[str, Callable[[Case], None]] = {
    "jit(capture(grad(f)))": lambda case: check_capture_of_derivative(case, compiled=True),
    "jit(grad(edit(f)))": lambda case: _check_derivative_of_edit(case, "two", compiled=True),
    "jit(edit(grad(f)))": lambda case: _check_edit_of_derivative(case, "all", compiled=True),
}


def check_without_hooks(case: Case) -> None:
    """The oracle against JAX: the program without taps, and its derivative.

    Raises:
        Skip: JAX refuses the program, or differentiating it.
    """
    bare = build(case.program, taps=False)
    out = _run_bare(bare, X)
    _close(out, case.oracle(hooks=False).out.value, "without taps: out")
    if case.way:
        result = _run_bare(case.derivative(bare), X, "differentiated: ")
        wanted = case.expected_derivative(case.oracle(differentiated=True, hooks=False).out)
        _all_close(result, wanted, ("without taps: loss", "without taps: derivative"))


def _run_bare(function: Callable[..., Any], x: np.ndarray, label: str = "") -> Any:
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


def check(program: Program, seed: int = 0, compiled: bool = False, only: Sequence[str] | None = None) -> list[Failure]:
    """Returns where mishax_lite and the unrolled program differ.

    Args:
        program: what to check.
        seed: chooses the edits.
        compiled: with the checks that compile, or run outside jit.
        only: names of checks; all by default.

    Raises:
        Skip: JAX itself refuses the program.
        Different: the oracle and the program without taps differ, so that the oracle is wrong.
    """
    case = Case(program, seed)
    check_without_hooks(case)
    checks = {**CHECKS, **(DERIVATIVE_CHECKS if case.way else {})}
    if compiled:
        checks |= {**COMPILED_CHECKS, **(COMPILED_DERIVATIVE_CHECKS if case.way else {})}
    failures = []
    for name, function in checks.items():
        if only is not None and name not in only:
            continue
        case.random = random.Random(f"{seed} {name}")
        try:
            function(case)
        except Skip as reason:
            warnings.warn(f"{name}: JAX without hooks: {reason}", stacklevel=1)
        except Different as difference:
            failures.append(Failure(name, difference.got, difference.wanted))
        except Exception as error:
            # JAX puts a note on frames that it hides into errors.
            notes = [n for n in getattr(error, "__notes__", ()) if "removed its internal frames" not in n]
            text = " ".join(" ".join([str(error), *notes]).split())
            failures.append(Failure(name, f"{type(error).__name__}: {text[:300]}", "no error"))
    return failures


def shrink(program: Program, seed: int, failure: Failure, tries: int = 200) -> tuple[Program, Failure]:
    """Makes a program smaller as long as the same check goes wrong in the same manner."""
    from tests.mishax_lite.fuzz.programs import smaller

    compiled = failure.check in {**COMPILED_CHECKS, **COMPILED_DERIVATIVE_CHECKS}
    while tries > 0:
        for candidate in smaller(program):
            tries -= 1
            if tries <= 0:
                break
            try:
                failures = check(candidate, seed, compiled, only=[failure.check])
            except (Skip, Different):
                continue
            same = [f for f in failures if f.kind == failure.kind]
            if same:
                program, failure = candidate, same[0]
                break
        else:
            break
    return program, failure
