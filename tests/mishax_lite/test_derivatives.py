"""Hooks with grad, jvp, remat, custom_jvp and custom_vjp, inside of them and outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, edit, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def f(x):
    return (tap("b", jnp.sin(tap("a", x * 2))) ** 2).sum()


def test_taps_mark_primal_values_under_grad_and_jvp():
    for g in (jax.grad(f), jax.value_and_grad(f), lambda x: jax.jvp(f, (x,), (x,)), lambda x: jax.vjp(f, x)[1](1.0)):
        values = capture(g, "*")(X)[1]
        assert list(values) == ["a", "b"]
        np.testing.assert_allclose(values["b"], jnp.sin(2 * X), rtol=1e-6)


def test_editing_a_gradient_changes_primal_values_only():
    """The tangent of what was there goes on: d sin(a) = cos(a) da, with another a and the old da."""
    got = edit(jax.grad(f), {"a": lambda v, s: v * 0 + 1.0})(X)
    np.testing.assert_allclose(got, 2 * jnp.sin(1.0) * jnp.cos(1.0) * 2 * jnp.ones(3), rtol=1e-6)


def test_differentiating_an_edit_goes_through_it():
    got = jax.grad(edit(f, {"a": lambda v, s: v**2}))(X)
    want = jax.grad(lambda x: (jnp.sin((2 * x) ** 2) ** 2).sum())(X)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    got = jax.grad(lambda x: capture(f, "a")(x)[1]["a"].sum())(X)
    np.testing.assert_allclose(got, [2, 2, 2])


def test_second_derivatives():
    values = capture(jax.hessian(f), "b")(X)[1]
    assert list(values) == ["b"]
    np.testing.assert_allclose(jax.hessian(edit(f, {"a": lambda v, s: v}))(X), jax.hessian(f)(X), rtol=1e-5)


def rematted(x, **options):
    block = jax.checkpoint(lambda x: jnp.sin(tap("h", x * 2)), **options)
    return block(block(x)).sum()


@pytest.mark.parametrize(
    "policy", [None, jax.checkpoint_policies.everything_saveable, jax.checkpoint_policies.dots_saveable]
)
def test_remat_recomputation_is_the_same_occurrence(policy):
    loss = functools.partial(rematted, policy=policy)
    values = capture(jax.grad(loss), "h")(X)[1]
    assert list(values) == ["h#0", "h#1"]
    np.testing.assert_allclose(values["h#0"], 2 * X)
    np.testing.assert_allclose(values["h#1"], 2 * jnp.sin(2 * X), rtol=1e-6)

    def by_hand(x, scale):
        return jnp.sin(2 * jnp.sin(scale * 2 * x)).sum()

    # Tangents pass an edit untouched, so doubling the first value leaves out the factor 2 of its derivative.
    want = jax.grad(by_hand)(X, 2.0) / 2
    got = edit(jax.grad(loss), {"h#0": lambda v, s: v * 2})
    np.testing.assert_allclose(got(X), want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(got)(X), want, rtol=1e-5)
    inside = jax.grad(edit(loss, {"h#0": lambda v, s: v * 2}))
    np.testing.assert_allclose(inside(X), jax.grad(by_hand)(X, 2.0), rtol=1e-5)


def test_remat_edit_names_the_same_occurrence_both_times():
    names = []
    edit(jax.grad(rematted), {"h": lambda v, s: names.append(s.name) or v})(X)
    assert names == ["h#0", "h#1", "h#1", "h#0"]


def test_remat_in_jit_in_scan():
    def loss(x, ws):
        block = jax.checkpoint(jax.jit(lambda x, w: tap("h", jnp.sin(x * w))))
        return lax.scan(lambda x, w: (block(x, w), None), x, ws)[0].sum()

    ws = jnp.asarray([1.0, 2.0, 0.5])
    grad = jax.grad(loss)
    np.testing.assert_allclose(capture(grad, "h")(X, ws)[1]["h"], capture(loss, "h")(X, ws)[1]["h"], rtol=1e-6)
    shift = jnp.asarray([0.1, 0.2, 0.3])
    move = {"h": lambda v, s: v + shift[s.loop[0]]}
    # A shift has derivative 1, so that editing the gradient and differentiating the edit agree.
    np.testing.assert_allclose(edit(grad, move)(X, ws), jax.grad(edit(loss, move))(X, ws), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(edit(grad, move))(X, ws), jax.grad(edit(loss, move))(X, ws), rtol=1e-5)


def test_nested_remat():
    inner = jax.checkpoint(lambda x: jnp.sin(tap("h", x)))
    loss = lambda x: jax.checkpoint(lambda x: inner(inner(x)))(x).sum()  # noqa: E731
    move = {"h#1": lambda v, s: v + 0.5}
    np.testing.assert_allclose(edit(jax.grad(loss), move)(X), jax.grad(edit(loss, move))(X), rtol=1e-5)
    assert list(sites(jax.grad(loss), X)) == ["h#0", "h#1"]


@jax.custom_vjp
def power(x, y):
    return tap("p", x**2) * y


def _power_fwd(x, y):
    z = tap("p", x**2)
    return tap("only in fwd", z * y), (x, y, z)


power.defvjp(_power_fwd, lambda res, ct: (ct * 7 * res[0] * res[1], (ct * res[2]).sum()))


def test_custom_vjp_rule_is_kept():
    y = jnp.float32(3.0)
    loss = lambda x, y: power(x, y).sum()  # noqa: E731
    shift = jnp.ones(3)
    for g in (loss, jax.jit(loss)):
        hooked = edit(g, {"p": lambda v, s: v + shift})
        for h in (hooked, jax.jit(hooked)):
            value, (dx, dy) = jax.value_and_grad(h, (0, 1))(X, y)
            np.testing.assert_allclose(h(X, y), ((X**2 + 1) * 3).sum(), rtol=1e-6)
            np.testing.assert_allclose(value, ((X**2 + 1) * 3).sum(), rtol=1e-6)
            np.testing.assert_allclose(dx, 7 * X * 3, rtol=1e-6)  # the rule, which is no true derivative
            np.testing.assert_allclose(dy, (X**2 + 1).sum(), rtol=1e-6)  # through the edited residual


def test_custom_vjp_capture_and_what_runs_when():
    y = jnp.float32(3.0)
    loss = lambda x: power(x, y).sum()  # noqa: E731
    assert list(sites(loss, X)) == ["p"]
    assert list(sites(jax.grad(loss), X)) == ["p", "only in fwd"]  # while differentiating only the fwd runs
    (out, values), back = jax.vjp(capture(loss, "p"), X)
    np.testing.assert_allclose(values["p"], X**2, rtol=1e-6)
    through_p = 2 * X  # what is captured has the derivative of the function, and the output that of the rule
    np.testing.assert_allclose(back((jnp.float32(1.0), {"p": jnp.ones(3)}))[0], 21 * X + through_p, rtol=1e-6)
    np.testing.assert_allclose(back((jnp.float32(1.0), {"p": jnp.zeros(3)}))[0], 21 * X, rtol=1e-6)
    np.testing.assert_allclose(out, (3 * X**2).sum(), rtol=1e-6)


def test_editing_what_the_rule_lacks_is_an_error_when_differentiating():
    @jax.custom_vjp
    def g(x):
        return tap("lost", x * 2)

    g.defvjp(lambda x: (x * 2, None), lambda _, ct: (2 * ct,))
    hooked = edit(lambda x: g(x).sum(), {"lost": lambda v, s: v + 1})
    np.testing.assert_allclose(hooked(X), (2 * X + 1).sum(), rtol=1e-6)
    for h in (jax.grad(hooked), jax.jit(jax.grad(hooked)), jax.grad(jax.jit(hooked))):
        with pytest.raises(ValueError, match=r"'lost'.*not in the rule"):
            h(X)
    with pytest.raises(ValueError, match="no site matches 'lost'"):
        edit(jax.grad(lambda x: g(x).sum()), {"lost": lambda v, s: v})(X)


def test_differentiating_by_what_an_edit_in_a_custom_rule_closes_over_is_refused():
    loss = lambda eps: edit(lambda x: power(x, 1.0).sum(), {"p": lambda v, s: v + eps})(X)  # noqa: E731
    with pytest.raises(ValueError, match=r"closes over.*'p'"):
        jax.grad(loss)(1.0)
    assert loss(1.0) == edit(lambda x: power(x, 1.0).sum(), {"p": lambda v, s: v + 1.0})(X)


@jax.custom_jvp
def scaled(x):
    return tap("k", x * 2)


@scaled.defjvp
def _scaled_jvp(primals, tangents):
    return scaled(primals[0]), 5 * tangents[0]


def test_custom_jvp_rule_is_kept():
    hooked = edit(lambda x: scaled(x).sum(), {"k": lambda v, s: v + 1})
    for h in (hooked, jax.jit(hooked)):
        value, grad = jax.value_and_grad(h)(X)
        np.testing.assert_allclose(value, (2 * X + 1).sum(), rtol=1e-6)
        np.testing.assert_allclose(grad, [5, 5, 5])
    (_, values), (_, moved) = jax.jvp(capture(scaled, "k"), (X,), (X,))
    np.testing.assert_allclose(values["k"], 2 * X)
    np.testing.assert_allclose(moved["k"], 2 * X)


def test_custom_jvp_refuses_to_be_differentiated_by_what_an_edit_closes_over():
    loss = lambda eps: edit(lambda x: scaled(x).sum(), {"k": lambda v, s: v + eps})(X)  # noqa: E731
    with pytest.raises(ValueError, match=r"closes over.*'k'"):
        jax.grad(loss)(1.0)

    def held(eps):
        eps = lax.stop_gradient(eps)
        return edit(lambda x: scaled(x).sum(), {"k": lambda v, s: v + eps})(X)

    assert jax.grad(held)(1.0) == 0


def test_custom_rules_of_jax_itself_are_untouched():
    g = lambda x: tap("y", jax.nn.silu(jax.nn.relu(tap("x", x)))).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(edit(g, {"x": lambda v, s: v}))(X), jax.grad(g)(X), rtol=1e-6)


def test_custom_vjp_in_a_scan_edits_by_loop_index():
    def loss(x):
        return lax.scan(lambda c, y: (c + power(x, y).sum(), None), 0.0, jnp.arange(3.0))[0]

    hooked = edit(loss, {"p": lambda v, s: v * (s.loop[0] == 2)})
    np.testing.assert_allclose(hooked(X), (2 * X**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(hooked)(X), 7 * X * 3, rtol=1e-6)
    np.testing.assert_allclose(capture(loss, "p")(X)[1]["p"], jnp.stack([X**2] * 3), rtol=1e-6)


def test_a_rule_that_taps_in_a_scan_knows_its_own_loops():
    @jax.custom_vjp
    def g(x):
        return lax.scan(lambda c, v: (tap("s", c + v), None), 0.0, x)[0]

    g.defvjp(lambda x: (g(x), None), lambda _, ct: (jnp.full(3, ct),))
    hooked = edit(g, {"s": lambda v, s: v + s.loop[0]})
    value, grad = jax.value_and_grad(hooked)(X)
    np.testing.assert_allclose(value, X.sum() + 3, rtol=1e-5)
    np.testing.assert_allclose(grad, [1, 1, 1])
