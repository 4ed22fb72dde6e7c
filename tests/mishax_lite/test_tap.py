"""`tap` is the identity under every transformation, and costs nothing when compiled."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mishax_lite
from mishax_lite import tap


def tapped(x):
    """Taps in every place that JAX has a construct for."""
    x = tap("in", jnp.sin(x))
    tap("unused", x * 2)
    carry, ys = lax.scan(lambda c, v: (tap("carry", c + v), tap("y", c * v)), x[0], x)
    carry = lax.cond(x[0, 0] > 0, lambda c: tap("yes", c), lambda c: tap("no", c * 3), carry)
    carry = lax.while_loop(lambda c: tap("go", c.sum()) < 9, lambda c: tap("more", c**2 + 1), carry)
    return tap("out", jax.checkpoint(lambda c: jnp.sin(tap("again", c * 2)))(carry)), ys


def plain(x):
    x = jnp.sin(x)
    carry, ys = lax.scan(lambda c, v: (c + v, c * v), x[0], x)
    carry = lax.cond(x[0, 0] > 0, lambda c: c, lambda c: c * 3, carry)
    carry = lax.while_loop(lambda c: c.sum() < 9, lambda c: c**2 + 1, carry)
    return jax.checkpoint(lambda c: jnp.sin(c * 2))(carry), ys


X = jnp.arange(6.0).reshape(2, 3) / 5


def test_value_comes_back_under_eager_and_jit():
    for run in (tapped, jax.jit(tapped)):
        for got, want in zip(run(X), plain(X), strict=True):
            np.testing.assert_array_equal(got, want)


def test_compiled_program_is_that_without_taps():
    texts = [jax.jit(lambda x, f=f: f(x)).lower(X).compile().as_text() for f in (tapped, plain)]
    bare = []
    for text in texts:
        lines = (line.split(", metadata=")[0] for line in text.splitlines() if line.startswith(("  ", "ENTRY", "%")))
        bare.append("\n".join(lines))
    assert bare[0] == bare[1]


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.vmap(f),
        lambda f: lambda x: jax.vmap(jax.vmap(f))(jnp.stack([x, -x])),
        lambda f: jax.jit(jax.vmap(f, in_axes=2)),
        lambda f: lambda x: jax.jvp(f, (x[0],), (x[1],)),
        lambda f: lambda x: jax.linearize(f, x[0])[1](x[1]),
    ],
    ids=["vmap", "vmap of vmap", "jit of vmap of axis 2", "jvp", "linearize"],
)
def test_transformations_see_through(transform):
    x = jnp.stack([X, X + 1])
    for got, want in zip(jax.tree.leaves(transform(tapped)(x)), jax.tree.leaves(transform(plain)(x)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradient_and_transpose():
    f = lambda x: (tap("a", jnp.sin(x)) * jax.checkpoint(lambda y: tap("b", y**2))(x)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(f)(X), jax.grad(lambda x: (jnp.sin(x) * x**2).sum())(X), rtol=1e-6)
    linear = lambda x: 3 * tap("c", {"x": x, "one": 1.0})["x"]  # noqa: E731
    (back,) = jax.linear_transpose(linear, X)(X)
    np.testing.assert_allclose(back, 3 * X)
    assert jax.hessian(lambda x: tap("d", x) ** 3)(2.0) == 12


def test_pytrees_and_scalars_keep_their_structure():
    value = {"a": X, "b": (1, 2.5, True), "c": None}
    back = tap("tree", value)
    assert back["b"] == (1, 2.5, True) and type(back["b"][0]) is int and back["c"] is None
    assert back["a"] is X
    inside = jax.jit(lambda: tap("tree", {"b": (1, 2.5, True)}))()
    assert inside["b"][0] == 1 and inside["b"][2].dtype == bool
    assert tap("empty", None) is None
    keys = tap("keys", jax.random.split(jax.random.key(0)))
    assert jax.jit(lambda k: jax.random.uniform(tap("key", k)))(keys[0]).shape == ()


def test_weak_types_stay_weak():
    assert jax.eval_shape(lambda x: tap("s", 2.0) * x, jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["", "a#0", 3, None])
def test_bad_names(name):
    with pytest.raises(ValueError, match="name must be a string"):
        tap(name, X)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"tap 'x'.*leaf of type str"):
        tap("x", {"a": "text"})


def test_scopes_nest_and_are_part_of_the_trace():
    inner = jax.jit(lambda x: tap("x", x))

    def f(x):
        with mishax_lite.scope("a/"):
            x = inner(x)
            with mishax_lite.scope("b/"):
                x = inner(x)
        return inner(x)

    assert list(mishax_lite.sites(f, X)) == ["a/x", "a/b/x", "x"]
    with mishax_lite.scope("outside/"):
        assert list(mishax_lite.sites(f, X)) == ["outside/a/x", "outside/a/b/x", "outside/x"]
    with pytest.raises(ValueError, match="prefix"), mishax_lite.scope("a#"):
        pass


def test_scopes_belong_to_a_thread():
    found = []
    with mishax_lite.scope("main/"):
        thread = threading.Thread(target=lambda: found.extend(mishax_lite.sites(lambda x: tap("x", x), X)))
        thread.start()
        thread.join()
    assert found == ["x"]


def test_a_compiled_function_with_taps_has_no_effects():
    """An effect would cost the fast way of calling compiled functions."""
    assert not jax.make_jaxpr(tapped)(X).effects
    assert not jax.make_jaxpr(mishax_lite.capture(tapped, "in"))(X).effects
    assert not jax.make_jaxpr(mishax_lite.edit(tapped, {"in": lambda v, s: v}))(X).effects
