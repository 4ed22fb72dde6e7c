"""Hooks in scan, while, cond, and in what mishax_lite cannot rebuild."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, edit, sites, tap

X = jnp.arange(6.0).reshape(3, 2)


def cumulated(x, reverse=False):
    def body(carry, row):
        carry = tap("carry", carry + row)
        return carry, tap("y", carry * 2)

    return lax.scan(body, jnp.zeros(2), x, reverse=reverse)


def test_scan_stacks_what_is_captured():
    for run in (capture(cumulated, "*"), jax.jit(capture(cumulated, "*"))):
        (last, ys), values = run(X)
        np.testing.assert_array_equal(values["carry"], jnp.cumsum(X, 0))
        np.testing.assert_array_equal(values["y"], ys)
        np.testing.assert_array_equal(values["carry"][-1], last)


def test_reversed_scan_is_indexed_by_its_inputs():
    backwards = lambda x: cumulated(x, reverse=True)  # noqa: E731
    values = capture(backwards, "carry")(X)[1]["carry"]
    np.testing.assert_array_equal(values, jnp.cumsum(X[::-1], 0)[::-1])
    # Added to the carry at index 0, the last to run, a value shows in that row alone.
    changed = edit(backwards, {"y": lambda v, s: jnp.where(s.loop[0] == 0, 100.0, v)})(X)[1]
    np.testing.assert_array_equal(changed, (2 * values).at[0].set(100))


def test_nested_scans_have_an_axis_and_an_index_each():
    def inner(carry, v):
        return tap("c", carry + v), None

    def f(x):
        return lax.scan(lambda c, row: lax.scan(inner, c, row), 0.0, x)[0]

    assert capture(f, "c")(X)[1]["c"].shape == (3, 2)
    seen = []

    def place(v, s):
        seen.append(len(s.loop))
        return v + 10.0 * (s.loop[0] == 1) * (s.loop[1] == 1)

    np.testing.assert_array_equal(
        capture(edit(jax.jit(f), {"c": place}), "c")(X)[1]["c"],
        np.cumsum(X).reshape(3, 2) + np.array([[0, 0], [0, 10], [10, 10]]),
    )
    assert seen == [2]
    assert sites(f, X)["c"].shape == (3, 2)


def test_static_fori_loop_is_a_scan():
    f = lambda x: lax.fori_loop(0, 3, lambda i, c: tap("c", c * 2), x)  # noqa: E731
    np.testing.assert_array_equal(capture(f, "c")(1.0)[1]["c"], [2, 4, 8])


def test_edits_in_a_scan_close_over_traced_values_and_are_differentiated():
    def f(eps, x):
        hooked = edit(cumulated, {"carry": lambda v, s: v + eps * (s.loop[0] + 1)})
        return hooked(x)[0].sum()

    assert jax.grad(f)(0.0, X) == jax.jit(jax.grad(f))(0.0, X) == 2 * (1 + 2 + 3)


def looped(x, limit=20.0):
    def cond(c):
        return tap("test", c.sum()) < limit

    return lax.while_loop(cond, lambda c: tap("body", c + 1), x)


def test_while_can_be_edited_and_captured_by_choice():
    np.testing.assert_array_equal(looped(X), X + 1)
    by = jnp.asarray(4.0)
    hooked = jax.jit(lambda x, by: edit(looped, {"body": lambda v, s: v + by})(x))
    np.testing.assert_array_equal(hooked(X, by), X + 5)
    np.testing.assert_array_equal(edit(looped, {"test": lambda v, s: v + by})(X), X + 1)
    np.testing.assert_array_equal(edit(looped, {"test": lambda v, s: v + 10 * by})(X), X)
    for pattern in ("body", "test", "*"):
        with pytest.raises(ValueError, match=r"site '(body|test)'.*a while loop.*loops="):
            capture(looped, pattern)(X)
    assert [(name, type(site).__name__) for name, site in sites(looped, X).items()] == [
        ("test", "LoopValue"),
        ("body", "LoopValue"),
    ]


def branched(x):
    x = lax.cond(x.sum() > 0, lambda x: tap("branch", x), lambda x: tap("branch", -x), x)
    return lax.switch(2, [lambda x: x, lambda x: tap("one", x), lambda x: tap("two", 2 * x)], tap("between", x))


def test_cond_can_be_edited_and_captured_by_choice():
    a, b = jnp.float32(10.0), jnp.ones(2)
    edits = {"branch#0": lambda v, s: v + a, "branch#1": lambda v, s: v + b, "two": lambda v, s: v * a}
    hooked = jax.jit(lambda x: edit(branched, edits)(x))
    np.testing.assert_array_equal(hooked(X), 20 * (X + 10))
    np.testing.assert_array_equal(hooked(-X), 20 * (X + 1))
    assert list(sites(branched, X)) == ["branch#0", "branch#1", "between", "one", "two"]
    assert list(capture(branched, "between")(X)[1]) == ["between"]
    with pytest.raises(ValueError, match=r"site 'branch#0'.*branch of a cond.*loops="):
        capture(branched, "branch")(X)


def test_edits_in_cond_are_differentiated_through():
    f = lambda eps: edit(branched, {"branch": lambda v, s: v * eps})(X).sum()  # noqa: E731
    assert jax.grad(f)(2.0) == 2 * X.sum()


def test_cond_in_a_scan_and_scan_in_a_while_know_their_loops():
    def f(x):
        def body(c, row):
            return lax.cond(row.sum() > 2, lambda c: tap("hit", c + row), lambda c: c, tap("c", c)), None

        return lax.scan(body, jnp.zeros(2), x)[0]

    np.testing.assert_array_equal(edit(f, {"hit": lambda v, s: v * 0 + s.loop[0]})(X), [2, 2])
    assert sites(f, X)["c"].shape == (3, 2)


def test_what_cannot_be_rebuilt_is_said_by_name():
    solve = lambda matvec, b: b / 2  # noqa: E731
    g = lambda x: lax.custom_linear_solve(lambda v: tap("inside", v / 2), 2 * x, solve, symmetric=True)  # noqa: E731
    f = lambda x: tap("outside", 2 * g(x))  # noqa: E731
    assert list(sites(f, X)) == ["outside"]
    np.testing.assert_array_equal(capture(f, "outside")(X)[1]["outside"], 2 * X)
    for hook in (capture(f, "inside"), edit(f, {"inside": lambda v, s: v})):
        with pytest.raises(ValueError, match=r"site 'inside.*custom_linear_solve"):
            hook(X)


def test_jit_keeps_its_parameters():
    f = jax.jit(lambda x: tap("x", x) + 1, donate_argnums=0, inline=False)
    text = str(jax.make_jaxpr(capture(lambda x: f(x), "x"))(X))
    assert "donated_invars=(True,)" in text
    # A loop that is not looked into is bound as it is.
    outer = jax.make_jaxpr(edit(lambda x: (lax.scan(lambda c, v: (c, v), 0.0, x), tap("y", x)), {"y": lambda v, s: v}))
    assert "scan" in str(outer(X))
