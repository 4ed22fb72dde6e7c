"""Checks of derivatives with hooks in them, or around them, and of `gradients`. Each takes a case, and raises where
mishax_lite and the oracle differ."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import mishax_lite
from tests.mishax_lite.fuzz import evaluation
from tests.mishax_lite.fuzz.cases import (
    LACKING,
    MOVED,
    NO_WHILE,
    REFUSAL,
    WEIGHTS,
    Case,
    Change,
    Different,
    Edits,
    X,
    all_close,
    capturable,
    check_captured,
    choose,
    close,
    names_of,
    run_bare,
    run_hooked,
)
from tests.mishax_lite.fuzz.oracle import Oracle
from tests.mishax_lite.fuzz.plain_checks import check_sites
from tests.mishax_lite.fuzz.plan import Plan, original, plan
from tests.mishax_lite.fuzz.rendering import build


def check_sites_of_derivative(case: Case) -> None:
    check_sites(case, case.derivative(case.f), case.rules)


def check_capture_of_derivative(case: Case, compiled: bool = False) -> None:
    chosen = capturable(case.rules)
    if not chosen:
        return
    hooked = mishax_lite.capture(case.derivative(case.f), names_of(case.rules, chosen))
    out, names, values = run_hooked(hooked, X, compiled=compiled)
    oracle = case.oracle(differentiated=True)
    all_close(out, case.expected_derivative(oracle.out), ("loss", "derivative"))
    check_captured(case, oracle, case.rules, chosen, names, values)


def _check_derivative_of_edit(case: Case, how: str, compiled: bool = False) -> None:
    edits = choose(case, case.plain, how)
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
    all_close(out, expected, (f"loss, {label}", f"derivative, {label}", f"derivative by the number, {label}"))
    edits.check_names()


def _rerun_refused(edits: Edits, error: Exception) -> bool:
    """A rule whose backward pass runs the function again may be refused, by the name of the site."""
    rerun = [site for site in edits.sites if site.rerun]
    return any(repr(site.name)[:-1] in str(error) for site in rerun)


def _check_edit_of_derivative(case: Case, how: str, compiled: bool = False) -> None:
    edits = choose(case, case.rules, how)
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(case.derivative(case.f), edits.hooks()), X, compiled=compiled)
    wanted = case.oracle(differentiated=True, edits=edits.paths(), way="value").out
    label = f"edits {edits.changes}"
    all_close(out, case.expected_derivative(wanted), (f"loss, {label}", f"derivative, {label}"))
    edits.check_names()


def _check_derivative_of_capture(case: Case, ruled: bool) -> None:
    """The gradient of what is captured, in custom rules or outside of them."""
    present = {site.path for site in case.rules.sites}
    chosen = capturable(case.plain, lambda s: bool(s.rules) == ruled and s.path in present)
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
    names = names_of(case.plain, chosen)
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
    all_close(got, wanted, [f"derivative of {name!r}" for name in names])


def _rows(case: Case) -> tuple[np.ndarray, Plan]:
    """Inputs over which the derivative is mapped, as for gradients of each example, and its sites then.

    Raises:
        Skip: JAX itself refuses that.
    """
    xs = np.stack([X, MOVED, 0.5 * MOVED - X])
    run_bare(jax.vmap(case.derivative(build(case.program, taps=False))), xs, "mapped: ")
    return xs, plan(case.program, differentiated=True, rows=len(xs))


def _mapped_derivative(case: Case, oracle: Oracle) -> list[np.ndarray]:
    rows = [case.expected_derivative(out) for out in oracle.outs]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def check_capture_of_mapped_derivative(case: Case) -> None:
    xs, view = _rows(case)
    chosen = capturable(view)
    if not chosen:
        return
    out, names, values = run_hooked(mishax_lite.capture(jax.vmap(case.derivative(case.f)), names_of(view, chosen)), xs)
    oracle = Oracle(case.program, xs, differentiated=True)
    all_close(out, _mapped_derivative(case, oracle), ("loss", "derivative"))
    check_captured(case, oracle, view, chosen, names, values)


def check_edit_of_mapped_derivative(case: Case) -> None:
    xs, view = _rows(case)
    edits = choose(case, view, "two")
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(jax.vmap(case.derivative(case.f)), edits.hooks()), xs)
    oracle = Oracle(case.program, xs, differentiated=True, edits=edits.paths(), way="value")
    label = f"edits {edits.changes}"
    all_close(out, _mapped_derivative(case, oracle), (f"loss, {label}", f"derivative, {label}"))
    edits.check_names()


def check_capture_of_edit_of_derivative(case: Case) -> None:
    edits, chosen = choose(case, case.rules, "two"), capturable(case.rules)
    if edits is None or not chosen:
        return
    edited = mishax_lite.edit(case.derivative(case.f), edits.hooks())
    out, names, values = run_hooked(mishax_lite.capture(edited, names_of(case.rules, chosen)), X)
    oracle = case.oracle(differentiated=True, edits=edits.paths(), way="value")
    label = f"edits {edits.changes}"
    all_close(out, case.expected_derivative(oracle.out), (f"loss, {label}", f"derivative, {label}"))
    check_captured(case, oracle, case.rules, chosen, names, values)


def check_gradients(case: Case) -> None:
    """`gradients` against the derivative by a number that is added to one site, wherever it occurs."""
    present = {original(site.path) for site in case.rules.sites}
    chosen = [k for k in capturable(case.plain) if case.plain.sites[k].path in present]
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
    close(total, wanted.tangent[2] @ WEIGHTS, f"sum, {name!r}")


def _summed(gradient: np.ndarray, value: np.ndarray, nest: tuple[tuple[str, int], ...]) -> float:
    """The sum of a gradient; where a value is the same on all shards, each of them shows its one gradient."""
    for axis, (kind, _) in reversed(list(enumerate(nest))):
        shared = kind == "shard" and np.ptp(value, axis=axis).max(initial=0) == 0
        gradient, value = (gradient.take(0, axis) if shared else gradient.sum(axis)), value.sum(axis)
    return gradient.sum()


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
if hasattr(mishax_lite, "gradients"):
    DERIVATIVE_CHECKS["gradients(f)"] = check_gradients
# Compiled: slower, so only some programs have them.
COMPILED_DERIVATIVE_CHECKS: dict[str, Callable[[Case], None]] = {
    "jit(capture(grad(f)))": lambda case: check_capture_of_derivative(case, compiled=True),
    "jit(grad(edit(f)))": lambda case: _check_derivative_of_edit(case, "two", compiled=True),
    "jit(edit(grad(f)))": lambda case: _check_edit_of_derivative(case, "all", compiled=True),
}
