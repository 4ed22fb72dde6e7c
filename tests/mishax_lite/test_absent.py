"""`absent`: a site that a function lacks as it is called says why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite

X = np.arange(3.0, dtype=np.float32)


def f(x, fused):
    if fused:
        mishax_lite.absent("a/scores", "fused has no scores; they exist with fused=False")
        y = 2 * x
    else:
        y = 2 * mishax_lite.tap("a/scores", x)
    return mishax_lite.tap("a/out", y)


def test_asking_for_it_gives_the_reason():
    with pytest.raises(ValueError, match=r"no site matches 'a/scores': fused has no scores; they exist with fused=F"):
        mishax_lite.capture(f, "a/scores")(X, True)
    with pytest.raises(ValueError, match="fused has no scores"):
        mishax_lite.edit(f, {"*/sc*": lambda value, site: value})(X, True)
    np.testing.assert_array_equal(mishax_lite.capture(f, "a/scores")(X, False)[1]["a/scores"], X)


def test_patterns_and_lists_of_sites_leave_it_out():
    assert list(mishax_lite.sites(f, X, True)) == ["a/out"]
    assert list(mishax_lite.capture(f, "*")(X, True)[1]) == ["a/out"]
    np.testing.assert_array_equal(mishax_lite.edit(f, {"*": lambda v, s: v + 1})(X, True), 2 * X + 1)


def test_a_name_that_is_both_is_the_one_that_is_there():
    both = lambda x: f(x, True) + f(x, False)  # noqa: E731
    assert list(mishax_lite.sites(both, X)) == ["a/out#0", "a/scores", "a/out#1"]
    with mishax_lite.scope("b/"):
        assert list(mishax_lite.sites(both, X)) == ["b/a/out#0", "b/a/scores", "b/a/out#1"]


@pytest.mark.parametrize(
    "through",
    [
        jax.jit,
        jax.checkpoint,
        jax.vmap,
        lambda g: jax.grad(lambda x: g(x).sum()),
        lambda g: jax.jit(jax.grad(lambda x: jax.checkpoint(g)(x).sum())),
        lambda g: lambda x: jax.lax.scan(lambda c, y: (c, g(y)), 0.0, x)[1],
        lambda g: lambda x: jax.lax.cond(x.sum() > 0, g, lambda y: y, x),
    ],
)
def test_it_is_found_through_transformations(through):
    fused = functools.partial(f, fused=True)
    with pytest.raises(ValueError, match="fused has no scores"):
        mishax_lite.capture(through(fused), "a/scores")(X)
    edited = mishax_lite.edit(through(fused), {"a/out": lambda value, site: value + 1})
    plain = mishax_lite.edit(through(functools.partial(f, fused=False)), {"a/out": lambda value, site: value + 1})
    np.testing.assert_allclose(edited(X), plain(X))


def test_nothing_of_it_is_left():
    text = lambda g: jax.jit(g).lower(X).as_text()  # noqa: E731
    assert text(lambda x: f(x, True)) == text(lambda x: 2 * x)
    assert not jax.make_jaxpr(lambda x: f(x, True))(X).effects


def test_it_wants_a_name_and_a_reason():
    for name, reason in (("", "why"), ("a#0", "why"), ("a", ""), (3, "why")):
        with pytest.raises(ValueError, match="expected a name without '#' and a reason"):
            mishax_lite.absent(name, reason)


def test_arrays_and_scalars_pass_by_it():
    assert f(2.0, True) == 4.0
    np.testing.assert_array_equal(jax.jit(f, static_argnums=1)(jnp.asarray(X), True), 2 * X)
