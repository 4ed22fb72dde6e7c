"""Every tap of a program is known for what it is, however JAX copies the program: names, order, recomputations."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import absent, capture, edit, scope, sites, tap
from tests import compilations

X = jnp.asarray([0.3, -0.7, 1.1])
WEIGHTS = jnp.asarray([0.5, 1.2, 2.0])


def moved_to(value, new):
    """What an edit makes of a value when it is edited after differentiating: the new value, the old one's tangent."""
    return value + lax.stop_gradient(new - value)


def squared(value):
    return value * value + 0.3


def edited(value):
    return moved_to(value, squared(value))


def same(value):
    return value


block = jax.checkpoint(lambda x: jnp.sin(tap("h", x * 2)))
jitted = jax.jit(lambda x: tap("h", x * 2))


def plain(x, change):
    return jnp.sin(change(x * 2))


# Recomputations.

step = jax.checkpoint(lambda carry, w: (jnp.sin(tap("h", carry * w)), None))
nested = jax.checkpoint(lambda x: lax.scan(step, tap("emb", x * 1.1), WEIGHTS)[0])


def nested_plain(x, change):
    x = change(x * 1.1)
    for w in WEIGHTS:
        x = jnp.sin(change(x * w))
    return x.sum()


def test_a_remat_around_a_scan_of_remats_keeps_its_sites():
    loss = lambda x: nested(x).sum()  # noqa: E731
    for hooked in (loss, jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.jit(loss))):
        assert list(sites(hooked, X)) == ["emb", "h"] == list(capture(hooked, "*")(X)[1])
        assert sites(hooked, X)["h"].shape == (3, 3)


def test_and_edits_reach_them():
    got = edit(jax.grad(lambda x: nested(x).sum()), {"*": lambda v, s: squared(v)})(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: nested_plain(x, edited))(X), rtol=2e-5, atol=1e-6)


def test_a_remat_in_a_remat_is_one_occurrence():
    twice = jax.checkpoint(lambda x: block(block(x)))
    loss = lambda x: twice(x).sum()  # noqa: E731
    assert list(sites(jax.grad(loss), X)) == ["h#0", "h#1"]
    got = edit(jax.grad(loss), {"h#1": lambda v, s: squared(v)})(X)
    wanted = jax.grad(lambda x: plain(plain(x, same), edited).sum())(X)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_calls_on_the_same_input_are_told_apart(k):
    changes = [edited if k == n else same for n in range(3)]
    f = lambda x: (block(x) + 2 * block(x)).sum() + (block(x) > 0).sum()  # the third needs no recomputation  # noqa: E731
    wanted = jax.grad(lambda x: (plain(x, changes[0]) + 2 * plain(x, changes[1])).sum())(X)
    got = edit(jax.grad(f), {f"h#{k}": lambda v, s: squared(v)})(X)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


def test_so_are_calls_of_a_jitted_function_with_a_remat_inside():
    again = jax.jit(lambda x: block(x) * 2)
    f = lambda x: (again(x) + 3 * again(again(x))).sum()  # noqa: E731
    plain_again = lambda x, change: plain(x, change) * 2  # noqa: E731
    for k in range(3):
        changes = [edited if k == n else same for n in range(3)]
        wanted = jax.grad(
            lambda x, c=changes: (plain_again(x, c[0]) + 3 * plain_again(plain_again(x, c[1]), c[2])).sum()
        )(X)
        got = edit(jax.grad(f), {f"h#{k}": lambda v, s: squared(v)})(X)
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


def test_a_backward_pass_that_is_run_twice_is_edited_twice():
    def both(x):
        _, back = jax.vjp(lambda x: block(x) * 2 + block(block(x)), x)
        return back(jnp.ones(3))[0] + 2 * back(x)[0]

    def wanted(x):
        _, back = jax.vjp(lambda x: plain(x, edited) * 2 + plain(plain(x, same), same), x)
        return back(jnp.ones(3))[0] + 2 * back(x)[0]

    assert list(sites(both, X)) == ["h#0", "h#1", "h#2"]
    got = edit(both, {"h#0": lambda v, s: squared(v)})(X)
    np.testing.assert_allclose(got, wanted(X), rtol=2e-5, atol=1e-6)


def test_second_derivatives_of_a_remat():
    f = lambda x: (block(x) * block(2 * x)).sum()  # noqa: E731
    second = lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())  # noqa: E731
    assert list(sites(second(f), X)) == ["h#0", "h#1"]
    wanted = second(lambda x: (plain(x, edited) * plain(2 * x, same)).sum())(X)
    np.testing.assert_allclose(edit(second(f), {"h#0": lambda v, s: squared(v)})(X), wanted, rtol=2e-4, atol=1e-5)


# Order.


def test_branches_that_share_a_jitted_function_stand_in_the_order_of_the_source():
    f = lambda p, x: lax.cond(p, jitted, lambda x: jitted(x * 3), x)  # noqa: E731
    np.testing.assert_allclose(edit(f, {"h#0": lambda v, s: v + 1})(jnp.bool_(True), X), X * 2 + 1, rtol=1e-6)
    np.testing.assert_allclose(edit(f, {"h#0": lambda v, s: v + 1})(jnp.bool_(False), X), X * 6, rtol=1e-6)


def test_so_do_those_of_a_switch_with_two():
    f = lambda k, x: lax.switch(k, [lambda x: jitted(x * 3), jitted], x)  # noqa: E731
    np.testing.assert_allclose(edit(f, {"h#0": lambda v, s: v + 1})(0, X), X * 6 + 1, rtol=1e-6)
    np.testing.assert_allclose(edit(jax.jit(f), {"h#1": lambda v, s: v + 1})(1, X), X * 2 + 1, rtol=1e-6)


def test_and_those_that_were_traced_before_in_the_other_order():
    late, early = jax.jit(lambda x: tap("h", x + 1)), jax.jit(lambda x: tap("h", x - 1))
    f = lambda p, x: lax.cond(p, late, early, x)  # noqa: E731
    jax.make_jaxpr(early)(X), sites(early, X), sites(late, X)
    for g in (f, jax.jit(f)):
        np.testing.assert_allclose(edit(g, {"h#0": lambda v, s: v * 5})(True, X), (X + 1) * 5, rtol=1e-6)
    slope = jax.grad(lambda x: f(x.sum() > 0, x).sum())
    np.testing.assert_allclose(edit(slope, {"h#0": lambda v, s: v * 5})(X), jnp.ones(3))


# Scopes and loops.


def test_rules_run_in_the_scope_of_the_call():
    norm = jax.custom_jvp(lambda x: tap("norm", x * 2))
    norm.defjvp(lambda p, t: (norm(*p), 2 * t[0]))

    def loss(x):
        for i in range(2):
            with scope(f"layer_{i}/"):
                x = tap("mid", norm(x)) ** 2
        return x.sum()

    names = ["layer_0/norm", "layer_0/mid", "layer_1/norm", "layer_1/mid"]
    for f in (loss, jax.jit(loss), jax.jit(jax.jit(loss)), jax.checkpoint(loss)):
        assert list(sites(f, X)) == names == list(sites(jax.grad(f), X))
        assert list(capture(jax.grad(f), "layer_1/*")(X)[1]) == names[2:]


def test_so_does_the_backward_rule_of_a_jitted_function():
    norm = jax.custom_vjp(lambda x: tap("norm", x * 2))
    norm.defvjp(lambda x: (norm(x), x), lambda x, ct: (tap("back", 2 * ct),))

    @jax.jit
    def loss(x):
        for i in range(2):
            with scope(f"layer_{i}/"):
                x = jax.jit(norm)(x) ** 2
        return x.sum()

    with scope("outer/"):
        names = list(sites(jax.grad(loss), X))
    assert names == ["outer/layer_0/norm", "outer/layer_1/norm", "outer/layer_1/back", "outer/layer_0/back"]


def test_a_scan_with_a_rule_in_a_scope():
    norm = jax.custom_jvp(lambda x: tap("norm", x * 2))
    norm.defjvp(lambda p, t: (norm(*p), 2 * t[0]))

    def body(carry, w):
        with scope("block/"):
            return norm(carry) * w, None

    loss = lambda x: lax.scan(body, x, WEIGHTS)[0].sum()  # noqa: E731
    assert {k: v.shape for k, v in sites(jax.grad(loss), X).items()} == {"block/norm": (3, 3)}


@pytest.mark.parametrize("wrap", [same, jax.jit, jax.checkpoint, lambda f: jax.checkpoint(jax.jit(f))])
def test_what_does_not_change_in_a_loop_stays_in_it(wrap):
    def f(x, w):
        body = wrap(lambda c, w: jnp.tanh(c @ tap("w", w * 2.0)))
        return (lax.scan(lambda c, _: (body(c, w), None), x, None, length=3)[0] ** 2).sum()

    w = jnp.eye(3) * 0.4
    for g in (f, jax.grad(f), jax.grad(f, 1), jax.grad(wrap(f)), jax.jit(jax.grad(f))):
        assert sites(g, X, w)["w"].shape == (3, 3, 3)
    scaled = {"w": lambda v, s: v * (s.loop[0] + 1)}

    def unrolled(x):
        for turn in range(3):
            x = jnp.tanh(x @ (w * 2 + lax.stop_gradient(w * 2 * turn)))
        return (x**2).sum()

    np.testing.assert_allclose(edit(jax.grad(f), scaled)(X, w), jax.grad(unrolled)(X), rtol=1e-5)


def test_a_tap_of_a_constant_stays_in_its_loop():
    loss = lambda x: lax.scan(lambda c, _: (c * tap("k", jnp.float32(2.0)), None), x, None, length=3)[0].sum()  # noqa: E731
    assert sites(jax.grad(loss), X)["k"].shape == (3,)
    assert sites(jax.grad(jax.checkpoint(loss)), X)["k"].shape == (3,)


# What does not compile again.


def turn(carry, w):
    return tap("c", carry * w), None


def is_small(carry):
    return tap("small", carry.sum() < 9)


def grown(carry):
    return tap("grown", carry + 1)


@pytest.mark.parametrize("wrap", [same, jax.jit, jax.checkpoint])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: lax.scan(turn, x, WEIGHTS)[0],
        lambda x: block(x) + jitted(x),
        lambda x: lax.cond(is_small(x), grown, jitted, x),
    ],
)
def test_capture_outside_jit_compiles_once(wrap, function):
    hooked = capture(wrap(function), "*", loops="last")
    hooked(X)
    with compilations.counted() as names:
        hooked(X)
    assert not names


def test_capture_outside_jit_does_not_leak():
    def body(c, w):
        return tap("c", c * w), None

    hooked = capture(lambda x: lax.scan(body, x, WEIGHTS)[0], "c")
    hooked(X)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        hooked(X)
    gc.collect()
    assert len(gc.get_objects()) - before < 20 * 20  # it was some thousand objects a call


@pytest.mark.parametrize("wrap", [same, jax.checkpoint, lambda f: jax.checkpoint(jax.checkpoint(f))])
@pytest.mark.parametrize("outside", [same, jax.jit, jax.vmap])
def test_a_tap_that_is_the_same_in_all_turns_stays_in_its_loop_where_it_runs_again(wrap, outside):
    def f(x):
        return lax.scan(lambda c, _: (c + jnp.sin(tap("h", x)), None), x, None, 3)[0].sum()

    change = {"h": lambda value, site: value + 0.5 * site.loop[0]}
    wanted = 1 + sum(jnp.cos(X + 0.5 * turn) for turn in range(3))
    np.testing.assert_allclose(edit(outside(jax.grad(wrap(f))), change)(X), wanted, rtol=1e-5)


def test_an_absent_site_in_a_remat_is_absent():
    def f(x):
        absent("scores", "they are never made")
        return jnp.sin(tap("y", x))

    with pytest.raises(ValueError, match="never made"):
        capture(jax.grad(lambda x: jax.checkpoint(f)(x).sum()), "scores")(X)
