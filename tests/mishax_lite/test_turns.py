"""Captures in while loops and branches: the values, with how often they were computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import BranchValue, LoopValue, capture, edit, sites, tap

X = jnp.asarray([0.5, -1.0, 2.0])


def halved(x, limit=1.0):
    """Halves x until its largest entry is at most `limit`."""
    return lax.while_loop(lambda c: tap("size", jnp.abs(c).max()) > limit, lambda c: tap("half", c / 2), x)


def assert_same(got, wanted):
    """Two pytrees are equal, in structure and values."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted), (got, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(lambda x: jax.jit(f)(x))])
def test_the_last_turn_of_a_while(wrap):
    out, values = capture(wrap(halved), "*", loops="last")(8 * X)
    np.testing.assert_allclose(out, X / 2)
    assert_same(values, {"size": LoopValue(1.0, 5), "half": LoopValue(X / 2, 4)})
    assert values["half"].count.dtype == jnp.int32


def test_the_first_turns_of_a_while():
    values = jax.jit(capture(halved, "*", loops=3))(8 * X)[1]
    assert_same(values["half"], LoopValue(jnp.stack([4 * X, 2 * X, X]), 4))
    assert_same(values["size"], LoopValue(jnp.asarray([16.0, 8.0, 4.0]), 5))
    values = capture(halved, "*", loops=6)(8 * X)[1]
    assert_same(values["half"], LoopValue(jnp.stack([4 * X, 2 * X, X, X / 2, 0 * X, 0 * X]), 4))


def test_a_loop_without_a_turn():
    assert_same(capture(halved, "*", loops="last")(X / 4)[1], {"size": LoopValue(0.5, 1), "half": LoopValue(0 * X, 0)})


def test_the_condition_runs_once_more_for_hooks_further_out():
    both = edit(
        capture(halved, ["size", "half"], loops="last"), {"half": lambda v, s: v / 2, "size": lambda v, s: v + 1}
    )
    out, values = both(8 * X)
    wanted = edit(
        halved,
        {"half": lambda v, s: v / 2, "size": lambda v, s: v + 1},
    )(8 * X)
    np.testing.assert_allclose(out, wanted)
    assert_same(values["half"], LoopValue(out, values["half"].count))
    np.testing.assert_allclose(values["size"].value, jnp.abs(out).max() + 1)
    assert list(sites(capture(halved, "*", loops="last"), X)) == ["size", "half"]


def chosen(p, x):
    return lax.cond(p, lambda x: tap("yes", x * 2), lambda x: tap("no", x.sum()) + x, x)


def test_branches_say_whether_they_were_taken():
    for p in (True, False):
        values = jax.jit(capture(chosen, "*", loops="last"))(p, X)[1]
        wanted = {"yes": BranchValue(X * 2 * p, p), "no": BranchValue(X.sum() * (not p), not p)}
        assert_same(values, jax.tree.map(jnp.asarray, wanted))


def test_branches_under_vmap_say_it_for_each_lane():
    p = jnp.asarray([True, False])
    values = jax.vmap(capture(chosen, "*", loops="last"), (0, None))(p, X)[1]
    np.testing.assert_array_equal(values["yes"].taken, p)
    np.testing.assert_allclose(values["yes"].value, jnp.stack([X * 2, 0 * X]))
    np.testing.assert_allclose(values["no"].value, [0, X.sum()])


@pytest.mark.parametrize("mapped", [jax.vmap(chosen, (0, None)), jax.jit(jax.vmap(jax.jit(chosen), (0, None)))])
def test_a_cond_that_vmap_made_a_select_is_refused_and_edited(mapped):
    p = jnp.asarray([True, False])
    assert sites(mapped, p, X) == {}
    for pattern in ("yes", "*"):
        with pytest.raises(ValueError, match=r"made into a select.*jax\.vmap\(capture"):
            capture(mapped, pattern, loops="last")(p, X)
    np.testing.assert_allclose(edit(mapped, {"yes": lambda v, s: v + 1})(p, X), jnp.stack([X * 2 + 1, X + X.sum()]))


def test_a_cond_of_a_shared_predicate_is_captured_under_vmap():
    mapped = jax.vmap(chosen, (None, 0))
    values = capture(mapped, "yes", loops="last")(True, jnp.stack([X, -X]))[1]
    assert_same(values["yes"], BranchValue(jnp.stack([2 * X, -2 * X]), jnp.asarray(True)))


def test_a_while_whose_lanes_stop_apart_is_refused_outside_vmap_and_right_inside():
    rows = jnp.stack([X, 8 * X])
    with pytest.raises(ValueError, match="until the last of its lanes"):
        capture(jax.vmap(halved), "half", loops="last")(rows)
    values = jax.vmap(capture(halved, "half", loops="last"))(rows)[1]
    assert_same(values["half"], LoopValue(jnp.stack([X / 2, X / 2]), jnp.asarray([1, 4])))


def test_loops_in_loops():
    def f(x):
        def body(carry):
            n, x = carry
            x = lax.scan(lambda c, w: (tap("inner", c * w), None), x, jnp.asarray([2.0, 3.0]))[0]
            x = lax.cond(n == 1, lambda x: tap("odd", x + 1), lambda x: x, x)
            return n + 1, x

        return lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1]

    values = capture(f, "*", loops=2)(1.0)[1]
    assert_same(values["inner"], LoopValue(jnp.asarray([[2.0, 6.0], [12.0, 36.0]]), 2))
    assert_same(values["odd"], LoopValue(BranchValue(jnp.asarray([0.0, 37.0]), jnp.asarray([False, True])), 2))
    last = capture(f, "*", loops="last")(1.0)[1]
    assert_same(last["odd"], LoopValue(BranchValue(37.0, jnp.asarray(True)), 2))


def test_a_while_in_a_scan_and_in_a_while():
    f = lambda x: lax.scan(lambda c, w: (halved(c * w), None), x, jnp.asarray([8.0, 16.0]))[0]  # noqa: E731
    values = capture(f, "half", loops="last")(X)[1]
    assert_same(values["half"], LoopValue(jnp.stack([X / 2, X / 2]), jnp.asarray([4, 4])))

    def doubled(carry):
        return carry[0] + 1, halved(carry[1] * 8)

    g = lambda x: lax.while_loop(lambda c: c[0] < 2, doubled, (0, x))[1]  # noqa: E731
    values = capture(g, "half", loops="last")(X)[1]
    assert_same(values["half"], LoopValue(LoopValue(X / 2, 3), 2))


def test_pytrees_keys_and_integers():
    def body(carry):
        n, key = carry
        tapped = tap("state", {"n": n, "key": key})
        return tapped["n"] + 1, jax.random.split(tapped["key"])[0]

    f = lambda key: lax.while_loop(lambda c: c[0] < 3, body, (jnp.int32(0), key))[1]  # noqa: E731
    for loops in ("last", 4):
        value, count = capture(f, "state", loops=loops)(jax.random.key(0))[1]["state"]
        assert count == 3
        assert jnp.issubdtype(value["key"].dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(value["n"], 2 if loops == "last" else [0, 1, 2, 0])


def test_derivatives_of_what_is_captured_in_a_branch():
    f = lambda x: capture(lambda x: chosen(x[0] > 0, x), "yes", loops="last")(x)[1]["yes"].value.sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(f)(X), [2, 2, 2])
    np.testing.assert_allclose(jax.grad(f)(-X), [0, 0, 0])


def test_captures_of_a_differentiated_branch_and_of_the_tangents_of_a_loop():
    slope = jax.grad(lambda x: chosen(x[0] > 0, x).sum())
    assert_same(capture(slope, "yes", loops="last")(X)[1]["yes"], BranchValue(2 * X, jnp.asarray(True)))
    moved = lambda x: jax.jvp(halved, (x,), (x,))  # noqa: E731
    assert_same(capture(moved, "half", loops="last")(8 * X)[1]["half"], LoopValue(X / 2, 4))


@pytest.mark.parametrize("loops", ["first", 0, -1, True, 1.0])
def test_other_choices_are_refused(loops):
    with pytest.raises(ValueError, match='loops must be "last"'):
        capture(halved, "half", loops=loops)
