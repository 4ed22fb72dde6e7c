"""`gradients`: how the output moves with the value at a site, against derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mishax_lite import capture, edit, gradients, tap

X = jnp.asarray([0.3, -0.7, 1.1])
ROWS = jnp.arange(6.0).reshape(2, 3) / 5


def loss(x):
    hidden = tap("hidden", x * 2)
    return (jnp.sin(tap("out", hidden**2)) + hidden).sum()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: lambda x: jax.jit(f)(x)])
def test_gradients_at_sites(wrap):
    out, by_site = gradients(wrap(loss), "*")(X)
    np.testing.assert_allclose(out, loss(X))
    assert list(by_site) == ["hidden", "out"]
    np.testing.assert_allclose(by_site["out"], jnp.cos((2 * X) ** 2), rtol=1e-6)
    np.testing.assert_allclose(by_site["hidden"], 4 * X * jnp.cos(4 * X**2) + 1, rtol=1e-5)


def test_gradients_of_the_first_of_a_pair_under_jit():
    (out, aux), by_site = jax.jit(gradients(lambda x: (loss(x), tap("aux", x)), ["out", "aux"]))(X)
    np.testing.assert_allclose(out, loss(X))
    np.testing.assert_allclose(aux, X)
    np.testing.assert_allclose(by_site["aux"], 0 * X)


def test_each_turn_of_a_scan_has_a_gradient():
    weights = jnp.asarray([0.5, 1.2, 2.0])
    f = lambda x: lax.scan(lambda c, w: (jnp.sin(tap("c", c * w)), None), x, weights, reverse=True)[0].sum()  # noqa: E731

    def added(zeros):
        carry = X
        for k in (2, 1, 0):
            carry = jnp.sin(carry * weights[k] + zeros[k])
        return carry.sum()

    np.testing.assert_allclose(gradients(f, "c")(X)[1]["c"], jax.grad(added)(jnp.zeros((3, 3))), rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_each_lane_of_a_vmap_has_a_gradient_in_front(axis):
    f = lambda x: jax.vmap(lambda row: jnp.sin(tap("row", row * 2)), axis, axis)(x).sum()  # noqa: E731
    np.testing.assert_allclose(gradients(f, "row")(ROWS)[1]["row"], jnp.moveaxis(jnp.cos(2 * ROWS), axis, 0), rtol=1e-6)


def test_a_scan_of_a_vmap_and_a_vmap_of_a_scan():
    inner = jax.vmap(lambda v: jnp.sin(tap("v", v * 2)))
    f = lambda x: lax.scan(lambda c, _: (inner(c), None), x, None, length=2)[0].sum()  # noqa: E731
    g = lambda x: jax.vmap(lambda v: lax.scan(lambda c, _: (jnp.sin(tap("v", c * 2)), None), v, None, length=2)[0])(  # noqa: E731
        x
    ).sum()
    for h in (f, g):
        by_site = gradients(h, "v")(X)[1]["v"]
        assert by_site.shape == capture(h, "v")(X)[1]["v"].shape == (2, 3)
        np.testing.assert_allclose(by_site[1], jnp.cos(2 * jnp.sin(2 * X)), rtol=1e-5)
        np.testing.assert_allclose(by_site[0], 2 * jnp.cos(2 * X) * jnp.cos(2 * jnp.sin(2 * X)), rtol=1e-5)


@pytest.mark.parametrize("check", [True, False])
def test_each_shard_has_a_gradient(check):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    inner = lambda x: jnp.sin(tap("s", x * 2))  # noqa: E731
    f = jax.shard_map(inner, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check)
    y = jnp.arange(8.0)
    by_site = jax.jit(gradients(lambda y: f(y).sum(), "s"))(y)[1]["s"]
    np.testing.assert_allclose(by_site, jnp.cos(2 * y).reshape(4, 2), rtol=1e-5)


def test_a_branch_that_was_not_taken_has_no_gradient():
    f = lambda p, x: lax.cond(p, lambda x: tap("square", x**2).sum(), lambda x: tap("cube", x**3).sum(), x)  # noqa: E731
    by_site = gradients(f, "*")(True, X)[1]
    np.testing.assert_allclose(by_site["square"], [1, 1, 1])
    np.testing.assert_allclose(by_site["cube"], [0, 0, 0])


def test_gradients_of_an_edited_function_and_pytrees():
    f = lambda x: (lambda t: (t["a"] * t["b"]).sum())(tap("pair", {"a": x, "b": x + 1}))  # noqa: E731
    by_site = gradients(edit(f, {"pair": lambda v, s: {"a": v["a"] * 10, "b": v["b"]}}), "pair")(X)[1]["pair"]
    np.testing.assert_allclose(by_site["a"], X + 1)
    np.testing.assert_allclose(by_site["b"], 10 * X, rtol=1e-6)


def test_repeats_are_named_and_recomputations_are_not_counted():
    block = jax.checkpoint(lambda x: jnp.sin(tap("h", x * 3)))
    by_site = gradients(lambda x: block(block(x)).sum(), "*")(X)[1]
    last = jnp.cos(3 * jnp.sin(3 * X))
    np.testing.assert_allclose(by_site["h#1"], last, rtol=1e-5)
    np.testing.assert_allclose(by_site["h#0"], last * 3 * jnp.cos(3 * X), rtol=1e-5)


relu = jax.custom_jvp(lambda x: tap("inside", x) * 1.0)
relu.defjvp(lambda p, t: (relu(*p), t[0]))


@pytest.mark.parametrize(
    ("function", "pattern", "message"),
    [
        (lambda x: tap("x", x), "x", r"must return a floating-point scalar.*shape \(3,\)"),
        (lambda x: (1, tap("x", x).sum()), "x", "must return a floating-point scalar"),
        (lambda x: x.sum() * tap("n", jnp.int32(3)), "n", "'n' holds int32"),
        (lambda x: relu(x).sum(), "inside", "'inside' is in a function with a derivative rule"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: tap("c", c + 1), x).sum(), "c", "while loop"),
        (lambda x: tap("x", x).sum(), "y", "no site matches 'y'"),
    ],
)
def test_what_has_no_gradient_is_said(function, pattern, message):
    with pytest.raises(ValueError, match=message):
        gradients(function, pattern)(X)


def test_a_pattern_leaves_integers_out():
    f = lambda x: tap("x/n", jnp.int32(3)) * tap("x/v", x).sum()  # noqa: E731
    assert list(gradients(f, "x/*")(X)[1]) == ["x/v"]
