"""Which of several values of one name a rule computes where: it may not go in the order of its function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def layer(x, w):
    return jnp.sin(tap("h", x * w))


def deep(x):
    return layer(layer(x, 2.0), 3.0)


def wide(x):
    return layer(x, 2.0) * layer(x, 3.0)


def with_rules(function, forward, backward):
    f = jax.custom_vjp(function)
    f.defvjp(forward, backward)
    return f


def deep_backwards():
    """Its backward rule goes through the layers from the last to the first, each from its input."""

    def forward(x):
        middle = layer(x, 2.0)
        return layer(middle, 3.0), (x, middle)

    def backward(inputs, cotangent):
        for x, w in zip(reversed(inputs), (3.0, 2.0), strict=True):
            (cotangent,) = jax.vjp(lambda x, w=w: layer(x, w), x)[1](cotangent)
        return (cotangent,)

    return with_rules(deep, forward, backward)


def wide_backwards():
    """Its rules compute the second value first."""

    def rule(x):
        second, first = layer(x, 3.0), layer(x, 2.0)
        return first * second

    return with_rules(wide, lambda x: (rule(x), x), lambda x, ct: jax.vjp(rule, x)[1](ct))


def again(function):
    return with_rules(function, lambda x: (function(x), x), lambda x, ct: jax.vjp(function, x)[1](ct))


def tripled(k):
    """Edits of one site, by its name or by a name that the edit asks for; and the programs with it in their place."""
    change = lambda v, index: 3 * v * v if index == k else v  # noqa: E731
    plain_deep = lambda x: jnp.sin(change(3 * jnp.sin(change(2 * x, 0)), 1))  # noqa: E731
    plain_wide = lambda x: jnp.sin(change(2 * x, 0)) * jnp.sin(change(3 * x, 1))  # noqa: E731
    by_pattern = {f"h#{k}": lambda v, site: 3 * v * v}
    by_site = {"h": lambda v, site: 3 * v * v if site.name == f"h#{k}" else v}
    return (by_pattern, by_site), plain_deep, plain_wide


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("way", [0, 1])
def test_a_value_is_known_by_how_it_is_computed(k, way):
    edits, plain_deep, plain_wide = tripled(k)
    for f, plain in ((again(deep), plain_deep), (again(wide), plain_wide), (wide_backwards(), plain_wide)):
        got = jax.jit(jax.grad(edit(lambda x, f=f: f(x).sum(), edits[way])))(X)
        np.testing.assert_allclose(got, jax.grad(lambda x, p=plain: p(x).sum())(X), rtol=1e-4)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("way", [0, 1])
def test_where_nothing_tells_which_is_which_an_edit_of_one_is_refused(k, way):
    edits, _, _ = tripled(k)
    with pytest.raises(ValueError, match="'h' occurs 2 times in a function.* in another order.*different names"):  # noqa: RUF043
        jax.grad(edit(lambda x: deep_backwards()(x).sum(), edits[way]))(X)
    got = jax.grad(edit(lambda x: deep_backwards()(x).sum(), {"h": lambda v, s: 3 * v}))(X)  # both alike
    np.testing.assert_allclose(got, jax.grad(lambda x: jnp.sin(9 * jnp.sin(6 * x)).sum())(X), rtol=1e-4)


def test_a_rule_captures_each_value_under_its_name():
    f = wide_backwards()
    loss = lambda x: (capture(f, "h")(x)[1]["h#0"] ** 2).sum()  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(loss))(X)
    np.testing.assert_allclose(value, (4 * X**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, 8 * X, rtol=1e-5)


def test_what_a_rule_runs_again_to_differentiate_it_is_edited_each_time():
    slope = lambda f, x: (f(x + 0.01) - f(x - 0.01)) / 0.02  # noqa: E731
    f = jax.custom_jvp(deep)
    f.defjvp(lambda primals, tangents: (f(*primals), slope(f, *primals) * tangents[0]))
    for name, first in (("h", 3), ("h#1", 1)):
        got = jax.jit(jax.grad(edit(lambda x: f(x).sum(), {name: lambda v, s: 3 * v})))(X)
        plain = lambda x, first=first: jnp.sin(9 * jnp.sin(2 * first * x))  # noqa: E731
        np.testing.assert_allclose(got, slope(plain, X), rtol=1e-2)


def test_a_rule_that_runs_one_of_two_values_is_known_by_its_value():
    f = with_rules(wide, lambda x: (layer(x, 3.0) * jnp.sin(x * 2.0), x), lambda x, ct: (ct,))
    loss = lambda x: (capture(f, "h#1")(x)[1]["h#1"] ** 2).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(X), 18 * X, rtol=1e-5)
    with pytest.raises(ValueError, match="'h#0' is in a function with a custom derivative rule, but not in the rule"):
        jax.grad(edit(lambda x: f(x).sum(), {"h#0": lambda v, s: v}))(X)


def test_and_where_two_have_one_value_by_the_line_that_taps_it():
    inner = jax.custom_jvp(lambda x: jnp.sin(tap("h", x)))
    inner.defjvp(lambda p, t: (jnp.sin(p[0]), jnp.cos(p[0]) * t[0]))
    body = lambda x: inner(tap("h", x))  # noqa: E731
    outer = jax.custom_jvp(body)
    outer.defjvp(lambda p, t: jax.jvp(body, p, t))
    around = with_rules(outer, lambda x: (outer(x), x), lambda x, ct: (ct,))
    loss = lambda x: (capture(around, "h#0")(x)[1]["h#0"] ** 2).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(X), 2 * X, rtol=1e-5)
