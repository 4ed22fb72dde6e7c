"""Checks of a function as it is: its sites, captures and edits. Each takes a case, and raises where mishax_lite and the
oracle differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mishax_lite
from tests.mishax_lite.fuzz import evaluation
from tests.mishax_lite.fuzz.cases import (
    Case,
    Different,
    X,
    capturable,
    check_captured,
    choose,
    close,
    differ,
    names_of,
    run_hooked,
)
from tests.mishax_lite.fuzz.plan import Plan, Site


def check_sites(case: Case, function: Any = None, view: Plan | None = None) -> None:
    """Names in program order, with shapes; sites that only `loops=` can capture may be listed too."""
    view = view or case.plain
    listed = mishax_lite.sites(function or case.f, jax.ShapeDtypeStruct((2,), jnp.float32))
    differ(list(listed), [n for n, s in zip(view.names, view.sites, strict=True) if n in listed or not s.barrier])
    for k in capturable(view):
        shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(listed[view.names[k]])]
        differ((view.names[k], shapes), (view.names[k], view.sites[k].shapes()))


def check_capture(case: Case, compiled: bool = False) -> None:
    chosen = capturable(case.plain)
    if not chosen:
        return
    hooked = mishax_lite.capture(case.f, "*" if len(chosen) == len(case.plain.sites) else names_of(case.plain, chosen))
    out, names, values = run_hooked(hooked, X, compiled=compiled)
    oracle = case.oracle()
    close(out, oracle.out.value, "out")
    check_captured(case, oracle, case.plain, chosen, names, values)


def check_capture_refused(case: Case) -> None:
    """Without `loops`, capturing in a while or a cond is an error that names the site."""
    barred = [k for k, site in enumerate(case.plain.sites) if site.barrier]
    if not barred:
        return
    k = case.random.choice(barred)
    for pattern in (case.plain.names[k], "*"):
        try:
            _, names, _ = run_hooked(mishax_lite.capture(case.f, pattern), X)
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
    chosen = capturable(case.plain)
    if not chosen:
        return
    out, values = mishax_lite.capture(case.f, names_of(case.plain, chosen))(jnp.asarray(X))
    oracle = case.oracle()
    close(out, oracle.out.value, "out")
    check_captured(case, oracle, case.plain, chosen, list(values), list(values.values()))


def _check_edit(case: Case, how: str, compiled: bool = False) -> None:
    edits = choose(case, case.plain, how)
    if edits is None:
        return
    out = evaluation.run(mishax_lite.edit(case.f, edits.hooks()), X, compiled=compiled)
    close(out, case.oracle(edits=edits.paths()).out.value, f"out, edits {edits.changes}")
    edits.check_names()


def _check_both(case: Case, outer: str) -> None:
    """capture(edit(f)) and edit(capture(f)) both show the edited value."""
    edits, chosen = choose(case, case.plain, "two"), capturable(case.plain)
    if edits is None or not chosen:
        return
    names = names_of(case.plain, chosen)
    if outer == "capture":
        hooked = mishax_lite.capture(mishax_lite.edit(case.f, edits.hooks()), names)
    else:
        hooked = mishax_lite.edit(mishax_lite.capture(case.f, names), edits.hooks())
    out, got, values = run_hooked(hooked, X)
    oracle = case.oracle(edits=edits.paths())
    close(out, oracle.out.value, f"out, edits {edits.changes}")
    if outer == "edit":  # JAX sorts the keys of a dict that goes through a transformation
        differ(got, sorted(names))
        got, values = names, [values[got.index(name)] for name in names]
    check_captured(case, oracle, case.plain, chosen, got, values)


def check_capture_last(case: Case) -> None:
    """`capture(..., loops="last")` in one while or cond: the last value, and how often there was one."""
    sites = case.plain.sites
    chosen = [k for k, s in enumerate(sites) if s.barriers == 1 and not s.test and not s.levels]
    chosen = [k for k in chosen if all(size for _, size in sites[k].nest) and not _in_shards(sites[k])]
    if not chosen:
        return
    names = names_of(case.plain, chosen)

    def split(x):
        values = mishax_lite.capture(case.f, names, loops="last")(x)[1]
        values = [values[name] for name in names]
        kinds[:] = ["cond" if hasattr(v, "taken") else "while" if hasattr(v, "count") else "neither" for v in values]
        return [(v.value, v.taken if hasattr(v, "taken") else v.count) for v in values]

    kinds: list[str] = []
    values = evaluation.run(split, X)
    oracle = case.oracle()
    differ(kinds, [sites[k].barrier for k in chosen])
    for k, (value, count) in zip(chosen, values, strict=True):
        site, name = sites[k], case.plain.names[k]
        outside = tuple(size for _, size in site.nest[: site.outside])
        inside = (0,) * (len(site.nest) - site.outside)
        counts = [oracle.counts[site.path][(*index, *inside)] for index in np.ndindex(*outside)]
        wanted = np.asarray(counts).reshape(outside)
        close(count, wanted > 0 if site.barrier == "cond" else wanted, f"turns of {name!r}")
        for leaf, (last, _) in zip(jax.tree.leaves(value), oracle.captured(site), strict=True):
            close(np.where(np.isnan(last), 0, leaf), np.nan_to_num(last), f"last {name!r}")


def _in_shards(site: Site) -> bool:
    return any(kind == "shard" for kind, _ in site.nest)


CHECKS: dict[str, Callable[[Case], None]] = {
    "sites(f)": check_sites,
    "capture(f)": check_capture,
    "capture(f) in while or cond": check_capture_refused,
    "edit(f), one": lambda case: _check_edit(case, "one"),
    "edit(f), patterns": lambda case: _check_edit(case, "two"),
    "capture(edit(f))": lambda case: _check_both(case, "capture"),
    "edit(capture(f))": lambda case: _check_both(case, "edit"),
}
if "loops" in inspect.signature(mishax_lite.capture).parameters:
    CHECKS['capture(f, loops="last")'] = check_capture_last
# Compiled, or run outside jit: slower, so only some programs have them.
COMPILED_CHECKS: dict[str, Callable[[Case], None]] = {
    "capture(f) outside jit": check_capture_eager,
    "jit(capture(f))": lambda case: check_capture(case, compiled=True),
    "jit(edit(f))": lambda case: _check_edit(case, "two", compiled=True),
}
