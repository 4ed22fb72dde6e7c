"""Edits and captures in functions with derivative rules: the backward rule, and the derivatives of what is captured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.ode import odeint
from jax.sharding import Mesh, PartitionSpec

from mishax_lite import capture, edit, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def with_backward(inner, calls=1):
    """A custom_vjp whose backward rule differentiates the function when it runs, as adjoint methods do."""
    block = jax.custom_vjp(inner)

    def backward(x, cotangent):
        for _ in range(calls - 1):
            inner(x)
        return jax.vjp(inner, x)[1](cotangent)

    block.defvjp(lambda x: (inner(x), x), backward)
    return block


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.vmap(f)])
def test_what_the_backward_rule_runs_again_is_edited(wrap, calls):
    block = wrap(with_backward(lambda x: jnp.sin(tap("h", 2 * x)), calls))
    shift = jnp.float32(1.0)
    hooked = lambda x, shift: edit(lambda x: block(x).sum(), {"h": lambda v, s: v + shift})(x)  # noqa: E731
    for f in (hooked, jax.jit(hooked)):
        np.testing.assert_allclose(jax.grad(f)(X, lax.stop_gradient(shift)), 2 * jnp.cos(2 * X + 1), rtol=1e-5)


def test_several_taps_are_edited_each_where_it_is():
    block = with_backward(lambda x: tap("a", jnp.sin(tap("a", 2 * x))) * tap("b", x))
    plain = lambda x: (jnp.sin(2 * x) + 10) * x  # noqa: E731
    hooked = edit(lambda x: block(x).sum(), {"a#1": lambda v, s: v + 10})
    np.testing.assert_allclose(jax.grad(hooked)(X), jax.grad(lambda x: plain(x).sum())(X), rtol=1e-5)


def test_a_backward_rule_in_a_scan_edits_by_loop_index():
    block = with_backward(lambda x: jnp.sin(tap("h", 2 * x)))
    loss = lambda x: lax.scan(lambda c, _: (block(c), None), x, None, length=2)[0].sum()  # noqa: E731
    hooked = edit(loss, {"h": lambda v, s: v + s.loop[0]})
    plain = lambda x: jnp.sin(2 * jnp.sin(2 * x) + 1).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(hooked)(X), jax.grad(plain)(X), rtol=1e-5)


def test_a_mapped_rule_is_edited_with_its_axes_wherever_they_are():
    block = with_backward(lambda x: jnp.sin(tap("h", 2 * x)))
    rows = jnp.stack([X, X + 1, X + 2])  # square: axes that are mixed up would not show in a shape
    mapped = jax.vmap(lambda x: block(x), in_axes=1, out_axes=1)
    hooked = edit(lambda rows: mapped(rows).sum(), {"h": lambda v, s: v + jnp.arange(3.0)})
    wanted = 2 * jnp.cos(2 * rows + jnp.arange(3.0)[:, None])
    np.testing.assert_allclose(jax.grad(hooked)(rows), wanted, rtol=1e-5)


def test_an_edited_ode_has_the_gradient_of_the_edited_ode():
    rate = lambda y, t: tap("rate", -y)  # noqa: E731
    final = lambda y: odeint(rate, y, jnp.asarray([0.0, 0.5]))[-1].sum()  # noqa: E731
    hooked = edit(final, {"rate": lambda v, s: 2 * v})
    np.testing.assert_allclose(hooked(X), (X * jnp.exp(-1.0)).sum(), rtol=1e-3)
    np.testing.assert_allclose(jax.grad(hooked)(X), jnp.full(3, jnp.exp(-1.0)), rtol=1e-3)


def test_a_backward_rule_that_cannot_be_matched_is_refused():
    inner = lambda x: tap("a", 2 * x) * tap("a", 3 * x)  # noqa: E731
    block = jax.custom_vjp(inner)
    block.defvjp(lambda x: (inner(x), x), lambda x, ct: (12 * tap("a", x) * ct,))
    with pytest.raises(ValueError, match="occurs 2 times in a function.* and 1 time in its backward rule"):  # noqa: RUF043
        jax.grad(edit(lambda x: block(x).sum(), {"a#0": lambda v, s: v + 1}))(X)


def test_a_tap_that_only_the_backward_rule_runs_is_seen():
    block = jax.custom_vjp(lambda x: tap("forward", 2 * x))
    block.defvjp(lambda x: (block(x), None), lambda _, ct: (tap("backward", 2 * ct),))
    slope = jax.grad(lambda x: jax.jit(block)(x).sum())
    assert list(sites(slope, X)) == ["forward", "backward"]
    np.testing.assert_allclose(edit(slope, {"backward": lambda v, s: v * 5})(X), [10, 10, 10])


# Derivatives of what is captured.

log1p = jax.custom_jvp(lambda x: jnp.log1p(tap("p", jnp.exp(x))))
log1p.defjvp(lambda p, t: (log1p(*p), t[0] * jax.nn.sigmoid(p[0])))
power = jax.custom_vjp(lambda x, n: tap("p", x**n) * 2)
power.defvjp(lambda x, n: (tap("p", x**n) * 2, (x, n)), lambda r, ct: (ct * 100, None))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap])
def test_what_is_captured_in_a_rule_has_the_gradient_of_the_function(wrap):
    captured = lambda x: capture(wrap(log1p), "p")(x)[1]["p"].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(captured)(X), jnp.exp(X), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(jax.jit(captured))(X), jnp.exp(X), rtol=1e-5)
    captured = lambda x: capture(wrap(lambda x: power(x, 3)), "p")(x)[1]["p"].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(captured)(X), 3 * X**2, rtol=1e-5)


def test_both_the_output_and_the_capture_are_differentiated():
    def f(x):
        out, values = capture(lambda x: power(x, 3), "p")(x)
        return (out + values["p"]).sum()

    np.testing.assert_allclose(jax.grad(f)(X), 100 + 3 * X**2, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jvp(lambda x: capture(log1p, "p")(x)[1]["p"], (X,), (X,))[1], X * jnp.exp(X), rtol=1e-5
    )


def test_an_edited_capture_is_differentiated_as_edited():
    captured = lambda x: capture(edit(log1p, {"p": lambda v, s: v**2}), "p")(x)[1]["p"].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(captured)(X), 2 * jnp.exp(2 * X), rtol=1e-5)


def test_a_function_without_derivatives_of_its_own_can_still_be_captured():
    search = jax.custom_vjp(lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, tap("start", x * 2)))
    search.defvjp(lambda x: (search(x), None), lambda _, ct: (ct * 7,))
    (_, values), back = jax.vjp(lambda x: capture(lambda x: search(x).sum(), "start")(x), X)
    np.testing.assert_allclose(values["start"], X * 2)
    assert back((jnp.float32(1), {"start": 0 * X}))[0].shape == (3,)
    np.testing.assert_allclose(jax.grad(lambda x: capture(search, "start")(x)[0].sum())(X), [7, 7, 7])


def with_tangent(inner):
    """A custom_jvp whose rule is of its own making: 100 times the tangents."""
    block = jax.custom_jvp(inner)
    block.defjvp(lambda primals, tangents: (block(*primals), 100 * tangents[0]))
    return block


def with_cotangent(inner):
    """The same as a custom_vjp."""
    block = jax.custom_vjp(inner)
    block.defvjp(lambda x: (block(x), None), lambda _, ct: (100 * ct,))
    return block


def again(inner):
    """A custom_vjp whose backward rule differentiates the function, and gives 1.5 times that."""
    block = jax.custom_vjp(inner)
    block.defvjp(lambda x: (inner(x), x), lambda x, ct: jax.vjp(inner, x)[1](1.5 * ct))
    return block


def halved(x):
    return lax.while_loop(lambda x: x.sum() > 1, lambda x: jnp.sin(x) / 2, x)


@pytest.mark.parametrize("outer", [with_tangent, with_cotangent, again])
@pytest.mark.parametrize("inner", [with_tangent, with_cotangent, again])
def test_of_rules_in_rules_those_count_that_stand_before_what_is_captured(outer, inner):
    inner = inner(lambda x: jnp.sin(tap("leaf", x)))
    turns = lambda x: lax.scan(lambda x, _: (inner(x), x), x, None, length=2)  # noqa: E731
    block = outer(lambda x: turns(x)[0])
    captured = lambda x: capture(block, "leaf")(x)[1]["leaf"].sum()  # noqa: E731
    by_hand = jax.grad(lambda x: turns(x)[1].sum())(X)  # `leaf` is what goes into each turn
    np.testing.assert_allclose(jax.grad(captured)(X), by_hand, rtol=1e-5)


@pytest.mark.parametrize("outer", [with_tangent, with_cotangent, again])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap])
def test_a_while_loop_after_what_is_captured_in_rules_in_rules_is_not_differentiated(outer, wrap):
    inner = again(lambda x: halved(tap("h", jnp.sin(x))))
    block = outer(lambda x: jnp.sin(wrap(inner)(x)))
    captured = lambda x: capture(block, "h")(x)[1]["h"].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(captured)(X), jnp.cos(X), rtol=1e-5)


@pytest.mark.parametrize("outer", [with_tangent, with_cotangent])
def test_a_while_loop_in_the_turns_before_is_refused_as_in_a_function_that_returns_the_value(outer):
    turns = lambda x: lax.scan(lambda x, _: (halved(tap("h", x)), x), x, None, length=2)  # noqa: E731
    block = outer(lambda x: turns(tap("before", jnp.sin(x)))[0])
    captured = lambda x, name: capture(block, name)(x)[1][name].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(captured)(X, "before"), jnp.cos(X), rtol=1e-5)
    for f in (lambda x: turns(x)[1].sum(), lambda x: captured(x, "h")):
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work for lax.while_loop"):  # noqa: RUF043
            jax.grad(f)(X)


# custom_vjp(..., optimize_remat=True).


def optimized():
    g = jax.custom_vjp(lambda x: tap("p", jnp.sin(x)))
    g.defvjp(lambda x: (tap("p", jnp.sin(x)), x), lambda x, ct: (jnp.cos(x) * ct,), optimize_remat=True)
    return g


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap])
def test_an_optimized_rule_is_captured_and_edited(wrap):
    slope = jax.grad(lambda x: (wrap(optimized())(x) ** 2).sum())
    assert list(sites(slope, X)) == ["p"]
    np.testing.assert_allclose(capture(slope, "p")(X)[1]["p"], jnp.sin(X), rtol=1e-6)
    np.testing.assert_allclose(edit(slope, {"p": lambda v, s: v * 10})(X), 20 * jnp.sin(X) * jnp.cos(X), rtol=1e-5)


# Rules that differentiate their function wherever it is handy: the derivative follows the edit.


def square(x):
    return tap("h", jnp.sin(x)) ** 2


def in_forward():
    f = jax.custom_vjp(square)
    f.defvjp(lambda x: jax.vjp(square, x), lambda pull, ct: pull(ct))
    return f


def in_jvp():
    f = jax.custom_jvp(square)
    f.defjvp(lambda primals, tangents: jax.jvp(square, primals, tangents))
    return f


def in_jit():
    f = jax.custom_vjp(square)

    def backward(x, ct):
        pull = jax.vjp(square, x)[1]
        return jax.jit(lambda ct: pull(ct)[0])(ct), None

    f.defvjp(lambda x: (square(x), x), lambda x, ct: backward(x, ct)[:1])
    return f


def in_scan():
    f = jax.custom_vjp(square)

    def backward(x, ct):
        pull = jax.vjp(square, x)[1]
        return (lax.scan(lambda carry, _: (pull(ct)[0], None), ct, None, length=2)[0],)

    f.defvjp(lambda x: (square(x), x), backward)
    return f


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap])
@pytest.mark.parametrize("rule", [in_forward, in_jvp, in_jit, in_scan])
def test_a_rule_that_differentiates_its_function_follows_the_edit(rule, wrap):
    f = wrap(rule())
    hooked = edit(lambda x: f(x).sum(), {"h": lambda v, s: v * v + 0.3 * v})
    wanted = jax.grad(lambda x: ((jnp.sin(x) ** 2 + 0.3 * jnp.sin(x)) ** 2).sum())(X)
    np.testing.assert_allclose(jax.grad(hooked)(X), wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(hooked))(X), wanted, rtol=1e-5)


@pytest.mark.parametrize("rule", [in_forward, in_jvp, in_jit])
def test_what_was_differentiated_before_it_is_edited_keeps_its_derivative(rule):
    f = rule()
    got = edit(jax.grad(lambda x: f(x).sum()), {"*": lambda v, s: v * 3})(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: (moved_to(jnp.sin(x), 3 * jnp.sin(x)) ** 2).sum())(X), rtol=1e-5)
    second = jax.grad(lambda x: jax.grad(lambda x: in_jvp()(x).sum())(x).sum())
    assert np.isfinite(capture(second, "*")(X)[0]).all()


def moved_to(value, new):
    return value + lax.stop_gradient(new - value)


def test_residuals_that_are_shapes_and_choices_stay_what_they_are():
    f = jax.custom_vjp(lambda x: tap("h", jnp.sin(x)))
    f.defvjp(
        lambda x: (tap("h", jnp.sin(x)), (x, x.shape[0], True)),
        lambda res, ct: (jnp.zeros(res[1]) + jnp.cos(res[0]) * ct if res[2] else ct,),
    )
    hooked = edit(lambda x: f(x).sum(), {"h": lambda v, s: v * 2})
    for g in (jax.grad(hooked), jax.jit(jax.grad(hooked)), jax.grad(jax.jit(hooked))):
        np.testing.assert_allclose(g(X), jnp.cos(X), rtol=1e-5)


def test_two_sites_of_a_derivative_made_elsewhere_cannot_be_told_apart():
    twice = lambda x: tap("a", tap("a", x * 2) * 3)  # noqa: E731
    f = jax.custom_vjp(twice)
    f.defvjp(lambda x: jax.vjp(twice, x), lambda pull, ct: pull(ct))
    plain = lambda x: jax.grad(edit(lambda x: f(x).sum(), {"a": lambda v, s: v * 2}))(x)  # noqa: E731
    np.testing.assert_allclose(plain(X), [24, 24, 24])
    with pytest.raises(ValueError, match="made in one place and used in another"):
        jax.grad(edit(lambda x: f(x).sum(), {"a#0": lambda v, s: v * 2}))(X)


def itself_forward():
    """A custom_vjp whose forward rule calls it again, as a wrapper of a kernel does."""
    block = jax.custom_vjp(lambda x: jnp.sin(tap("h", x)))
    block.defvjp(lambda x: (block(x), x), lambda x, cotangent: (jnp.cos(x) * cotangent,))
    return block


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_call_whose_result_nobody_uses_stays_in_its_loop(wrap):
    block = wrap(itself_forward())

    def f(x):
        def turn(carry, row):
            block(row)
            return carry * 0.5, None

        return lax.scan(turn, x, jnp.ones((2, 3)) * x)[0].sum()

    assert sites(f, X)["h"].shape == sites(jax.grad(f), X)["h"].shape == (2, 3)
    slope, values = capture(jax.grad(f), "h")(X)
    np.testing.assert_allclose(slope, [0.25] * 3)
    np.testing.assert_allclose(values["h"], [X, X])


@pytest.mark.parametrize("block", [itself_forward(), with_backward(lambda x: jnp.sin(tap("h", x)))])
def test_capture_in_shards_that_nobody_traces(block):
    mesh = Mesh(np.asarray(jax.devices()[:1]), "d")
    f = jax.shard_map(block, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d"))
    out, values = capture(f, "h")(X)
    np.testing.assert_allclose(out, jnp.sin(X), rtol=1e-6)
    np.testing.assert_allclose(values["h"][0], X)
    np.testing.assert_allclose(edit(f, {"h": lambda v, s: v + 1})(X), jnp.sin(X + 1), rtol=1e-6)
    slope = jax.grad(lambda x: capture(f, "h")(x)[0].sum())(X)
    np.testing.assert_allclose(slope, jnp.cos(X), rtol=1e-6)


# Functions with rules that call functions with rules.


def calling(rule, body, around=lambda f: f):
    """A function whose rule differentiates it, forwards or in its backward rule, and which calls another such one."""
    inner = with_backward(body)
    block = lambda x: jnp.cos(around(inner)(tap("h", x))) + x  # noqa: E731
    if rule == "jvp":
        f = jax.custom_jvp(block)
        f.defjvp(lambda primals, tangents: jax.jvp(block, primals, tangents))
        return f
    return with_backward(block)


def turns(f):
    return lambda x: lax.scan(lambda carry, _: (f(carry), None), x, None, length=3)[0]


def shards(f):
    mesh = Mesh(np.asarray(jax.devices()[:1]), "d")
    return jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d"))


@pytest.mark.parametrize("rule", ["jvp", "backward"])
@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint, turns, shards])
@pytest.mark.parametrize("name", ["h", "k"])
def test_what_a_rule_differentiates_is_edited_in_the_rules_of_what_it_calls(rule, around, name):
    """A `jax.jvp` in the outer rule leaves the inner backward rule as a Python function, which JAX calls later.

    By index, and moved by a value that is closed over: that is no edit for a tap in other loops, or in no shard.
    """
    f = calling(rule, lambda x: jnp.sin(tap(name, 2 * x)), around)

    def hooked(x, shift):
        return edit(lambda x: f(x).sum(), {"*": lambda v, s: 0.5 * v * v + shift + sum(s.loop)})(x)

    def plain(x, shift):
        edited = lambda v, n: 0.5 * v * v + shift + n  # noqa: E731
        y = edited(x, 0)
        for n in range(3 if around is turns else 1):
            y = jnp.sin(edited(2 * y, n))
        return (jnp.cos(y) + x).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(hooked))(X, 0.3), jax.grad(plain)(X, 0.3), rtol=1e-4, atol=1e-5)


def test_two_edits_of_what_a_rule_differentiates_compose():
    f = calling("jvp", lambda x: jnp.sin(tap("k", 2 * x)), turns)
    once = edit(lambda x: f(x).sum(), {"k": lambda v, s: v * v + s.loop[0]})
    twice = edit(once, {"k": lambda v, s: jnp.sin(v) - s.loop[0]})

    def plain(x):
        y = x
        for n in range(3):
            y = jnp.sin(jnp.sin(4 * y * y + n) - n)
        return (jnp.cos(y) + x).sum()

    np.testing.assert_allclose(jax.grad(twice)(X), jax.grad(plain)(X), rtol=1e-4, atol=1e-5)


def test_one_site_of_several_is_edited_in_the_rule_of_what_a_rule_differentiates():
    f = calling("jvp", lambda x: tap("k", tap("k", 2 * x) * x))
    got = jax.grad(edit(lambda x: f(x).sum(), {"k#1": lambda v, s: 3 * v}))(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: (jnp.cos(6 * x * x) + x).sum())(X), rtol=1e-4)
    # The outer one is no candidate: it is in no function that the outer function calls.
    f = calling("jvp", lambda x: jnp.sin(tap("h", 2 * x)))
    got = jax.grad(edit(lambda x: f(x).sum(), {"h#1": lambda v, s: 3 * v}))(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: (jnp.cos(jnp.sin(6 * x)) + x).sum())(X), rtol=1e-4)


def test_a_backward_rule_in_a_branch_that_vmap_made_a_select_is_numbered_where_it_runs():
    """After what the forward pass runs behind the cond, as without vmap."""

    def body(x):
        return jnp.sin(tap("a", x))

    rule = jax.custom_vjp(body)
    rule.defvjp(lambda x: (body(x), x), lambda x, ct: jax.vjp(body, x)[1](1.5 * ct))

    def f(x):
        y = jax.lax.switch((x[0] > 0).astype(int), [jnp.cos, lambda x: rule(x), lambda x: 2 * rule(x)], x)
        return jnp.sum(tap("a", 3 * y))

    x = jnp.asarray([[0.5, 1.0], [-0.5, 2.0]])
    inside = sites(jax.grad(f), x[0])
    behind = [name for name, value in inside.items() if hasattr(value, "shape")]
    assert len(inside) == 5 and behind == ["a#2"]  # two branches, what stands behind them, their backward rules
    _, values = capture(jax.vmap(jax.grad(f)), "a#2")(x)
    want = [3 * np.sin(x[0]), 3 * np.cos(x[1])]
    np.testing.assert_allclose(values["a#2"], want, rtol=1e-6)
    with pytest.raises(ValueError, match=r"site 'a#3', .* is in a branch of a cond that vmap made into a select"):
        capture(jax.vmap(jax.grad(f)), "a#3")(x)
