"""Hooks in one line each of what people write with JAX: names, shapes, values and edits against code without taps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, edit, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def h(value):
    return tap("h", value)


def _checkified(mark, x):
    from jax.experimental import checkify

    def f(x):
        checkify.check(jnp.all(x < 5), "too large: {}", x.max())
        return lax.scan(lambda c, v: (mark(c + jnp.sin(v)), None), 0.0, x)[0]

    return checkify.checkify(jax.jit(f), errors=checkify.all_checks)(x)[1]


def _called_back(mark, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    jax.debug.callback(lambda v: None, mark(x))
    return jax.pure_callback(lambda v: 3 * np.asarray(v), shape, mark(x * 2), vmap_method="sequential")


def _state(mark, x):
    ref = jax.new_ref(jnp.zeros(()))
    lax.scan(lambda c, v: (ref.__setitem__(..., mark(ref[...] + v)), None), None, x)
    return ref[...]


def _saved(policy, mark, x):
    from jax.ad_checkpoint import checkpoint_name

    f = jax.checkpoint(lambda x: jnp.sin(mark(checkpoint_name(jnp.sin(x), "a"))).sum(), policy=policy)
    return jax.grad(f)(x)


def _custom_gradient(mark, x):
    @jax.custom_gradient
    def f(x):
        return mark(x**2), lambda ct: (ct * 2 * x,)

    return f(x)


def _converted(mark, x):
    f, constants = jax.closure_convert(lambda y: mark(x * y), x)
    return f(x, *constants)


POLICIES = jax.checkpoint_policies
# What is written (`mark` is a tap, or nothing), the shapes of its sites, and their values, one after the other.
CODE = {
    "map in batches": (lambda m, x: lax.map(lambda v: m(2 * v), x, batch_size=2), {"h#0": (1, 2), "h#1": (1,)}, 2 * X),
    "associative scan": (
        lambda m, x: lax.associative_scan(lambda a, b: m(a + b), x),
        {"h#0": (1,), "h#1": (1,)},
        np.cumsum(X)[1:],
    ),
    "vectorize": (lambda m, x: jnp.vectorize(lambda a, b: m(a @ b), signature="(n),(n)->()")(x, x), {"h": ()}, X @ X),
    "named call": (lambda m, x: jax.named_call(lambda x: m(2 * x), name="n")(x), {"h": (3,)}, 2 * X),
    "jvp of jit": (lambda m, x: jax.jvp(jax.jit(lambda x: m(x) ** 3), (x,), (x,)), {"h": (3,)}, X),
    "hessian": (lambda m, x: jax.hessian(lambda x: (m(x) ** 3).sum())(x), {"h": (3,)}, X),
    "jacobian": (lambda m, x: jax.jacfwd(jax.jit(lambda x: m(jnp.sin(x)) ** 2))(x), {"h": (3,)}, np.sin(X)),
    "callbacks": (_called_back, {"h#0": (3,), "h#1": (3,)}, np.concatenate([X, 2 * X])),
    "checkify": (_checkified, {"h": (3,)}, np.cumsum(np.sin(X))),
    "state": (_state, {"h": (3,)}, np.cumsum(X)),
    "save nothing": (functools.partial(_saved, POLICIES.nothing_saveable), {"h": (3,)}, np.sin(X)),
    "save everything": (functools.partial(_saved, POLICIES.everything_saveable), {"h": (3,)}, np.sin(X)),
    "save by name": (functools.partial(_saved, POLICIES.save_only_these_names("a")), {"h": (3,)}, np.sin(X)),
    "save by size": (functools.partial(_saved, POLICIES.dots_saveable), {"h": (3,)}, np.sin(X)),
    "custom gradient": (_custom_gradient, {"h": (3,)}, X**2),
    "closure convert": (_converted, {"h": (3,)}, X**2),
    "inlined jit": (lambda m, x: jax.jit(lambda x: m(2 * x), inline=True)(x), {"h": (3,)}, 2 * X),
    "static argument": (lambda m, x: jax.jit(lambda x, n: m(x * n), static_argnums=1)(x, 3), {"h": (3,)}, 3 * X),
    "fori loop": (
        lambda m, x: lax.fori_loop(0, 3, lambda i, c: m(c * 2), x),
        {"h": (3, 3)},
        np.concatenate([2 * X, 4 * X, 8 * X]),
    ),
    "pmap": (lambda m, x: jax.pmap(lambda x: m(2 * x))(x), {"h": (3,)}, 2 * X),
    "barrier": (lambda m, x: lax.optimization_barrier(m(2 * x)), {"h": (3,)}, 2 * X),
    "metadata": (lambda m, x: _with_metadata(m, x), {"h": (3,)}, 2 * X),
}


def _with_metadata(mark, x):
    from jax.experimental.xla_metadata import set_xla_metadata

    with set_xla_metadata(a="b"), jax.named_scope("scope"), jax.default_matmul_precision("highest"):
        return mark(x * 2)


def _equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CODE)
def test_names_shapes_values_and_edits(name):
    code, shapes, values_wanted = CODE[name]
    f = functools.partial(code, h)
    plain = code(lambda v: v, X)
    _equal(f(X), plain)
    assert {site: shape.shape for site, shape in sites(f, X).items()} == shapes
    for run in (capture(f, "h"), jax.jit(capture(f, "h"))):
        out, values = run(X)
        _equal(out, plain)
        assert {site: value.shape for site, value in values.items()} == shapes
        _equal(np.concatenate([np.ravel(value) for value in values.values()]), np.ravel(values_wanted))
    for run in (edit(f, {"h": lambda v, s: v + 1}), jax.jit(edit(f, {"h": lambda v, s: v + 1}))):
        _equal(run(X), code(lambda v: v + 1, X))


def test_checkify_around_a_hook_checks_what_the_hook_runs():
    from jax.experimental import checkify

    def f(x):
        checkify.check(jnp.all(h(x) < 1), "too large: {}", x.max())
        return jnp.log(h(jnp.abs(x)))

    checked = checkify.checkify(jax.jit(capture(f, "h")), errors=checkify.all_checks)
    error, (out, values) = checked(X / 2)
    assert error.get() is None and values["h#1"].shape == (3,) and np.isfinite(out).all()
    assert "too large" in checked(X)[0].get()
    negative = checkify.checkify(edit(f, {"h#1": lambda v, s: -v}), errors=checkify.nan_checks)
    assert "nan generated by primitive: log" in negative(X / 2)[0].get()


def test_tools_that_take_a_hooked_function():
    hooked, moved = capture(lambda x: h(x * 2), "h"), edit(lambda x: h(x * 2), {"h": lambda v, s: v + 1})
    assert jax.eval_shape(hooked, X)[1]["h"].shape == (3,)
    assert not jax.make_jaxpr(moved)(X).effects
    out, values = jax.jit(hooked).lower(X).compile()(X)
    _equal((out, values["h"]), (2 * X, 2 * X))
    exported = jax.export.export(jax.jit(hooked))(jax.ShapeDtypeStruct(jax.export.symbolic_shape("n"), jnp.float32))
    _equal(exported.call(X)[1]["h"], 2 * X)
    around = capture(lambda x: tap("out", exported.call(x)[0]), "*")  # what is exported is compiled: it has no sites
    assert list(around(X)[1]) == ["out"]
    _equal(jax.linear_transpose(capture(lambda x: 3 * h(x), "h"), X)((X, {"h": X}))[0], 4 * X)
    _equal(jax.linearize(hooked, X)[1](X)[1]["h"], 2 * X)
    _equal(jax.vjp(moved, X)[1](X)[0], 2 * X)
    _equal(lax.map(lambda x: hooked(x)[1]["h"], jnp.stack([X, X])), jnp.stack([2 * X, 2 * X]))
    _equal(jax.checkpoint(moved)(X), 2 * X + 1)
    _equal(jax.vmap(jax.hessian(lambda x: moved(x) ** 2))(X), np.full(3, 8.0))


def test_linear_transposes_have_no_sites():
    """Cotangents pass taps untouched, so a transposed function taps nothing."""
    back = lambda x: jax.linear_transpose(jax.jit(lambda y: h(y) * 3), x)(x)[0]  # noqa: E731
    assert sites(back, X) == {}
    with pytest.raises(ValueError, match="taps nothing"):
        capture(back, "h")(X)
