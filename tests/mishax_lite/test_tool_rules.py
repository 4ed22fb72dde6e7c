"""A tap is the identity to tools that interpret programs by tables of their own, and a site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, edit, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def both(hook):
    """A hooked function, outside jit and inside."""
    return hook, jax.jit(hook)


# Taylor mode


def test_jet_goes_through_taps_and_hooks():
    from jax.experimental.jet import jet

    f = lambda x: jnp.sin(tap("a", {"x": x * x, "one": 1.0})["x"])  # noqa: E731
    plain = lambda x: jnp.sin(x * x)  # noqa: E731
    terms = ((1.0, 0.0, 0.0),)
    want = jet(plain, (0.3,), terms)
    for g in (f, jax.jit(f), jax.jit(jax.jit(f))):
        for got, wanted in zip(*map(jax.tree.leaves, (jet(g, (0.3,), terms), want)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
    # A hook outside, and one inside.
    value = capture(lambda x: jet(f, (x,), terms), "a")(0.3)[1]["a"]["x"]
    np.testing.assert_allclose(value, 0.09, rtol=1e-6)
    (_, values), (_, coefficients) = jet(capture(f, "a"), (0.3,), terms)
    np.testing.assert_allclose(values["a"]["x"], 0.09, rtol=1e-6)
    np.testing.assert_allclose(coefficients["a"]["x"][:2], [0.6, 2.0], rtol=1e-5)
    double = {"a": lambda v, s: {**v, "x": 2 * v["x"]}}
    wanted = jet(lambda x: jnp.sin(2 * x * x), (0.3,), terms)
    for got, want in zip(*map(jax.tree.leaves, (jet(edit(f, double), (0.3,), terms), wanted)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


# Sparse arrays


@pytest.mark.parametrize("layout", ["BCOO", "BCSR"])
def test_a_site_in_sparsified_code_is_a_sparse_array(layout):
    sparse = pytest.importorskip("jax.experimental.sparse")
    kind = getattr(sparse, layout)
    dense = jnp.asarray([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
    matrix = kind.fromdense(dense)
    scaled = (lambda m: m * 2) if layout == "BCOO" else (lambda m: m)  # BCSR is multiplied by matrices only
    f = sparse.sparsify(lambda m, x: tap("y", tap("m", scaled(m)) @ x))
    factor = 2 if layout == "BCOO" else 1
    np.testing.assert_allclose(f(matrix, X), factor * dense @ X, rtol=1e-6)
    assert isinstance(sites(f, matrix, X)["m"], kind)
    for run in both(capture(f, "*")):
        out, values = run(matrix, X)
        assert isinstance(values["m"], kind)
        np.testing.assert_allclose(values["m"].todense(), factor * dense)
        np.testing.assert_allclose(values["y"], out)
    triple = {"m": lambda m, site: jax.tree.map(lambda leaf: 3 * leaf if leaf.dtype == m.dtype else leaf, m)}
    for run in both(edit(f, triple)):
        np.testing.assert_allclose(run(matrix, X), 3 * factor * dense @ X, rtol=1e-6)


def test_sparse_and_dense_leaves_of_one_site():
    sparse = pytest.importorskip("jax.experimental.sparse")
    dense = jnp.diag(jnp.arange(1.0, 4.0))
    f = sparse.sparsify(jax.jit(lambda m, x: (lambda t: t["m"] @ t["x"])(tap("both", {"x": x, "m": m}))))
    matrix = sparse.BCOO.fromdense(dense)
    np.testing.assert_allclose(f(matrix, X), dense @ X)
    values = capture(f, "both")(matrix, X)[1]["both"]
    np.testing.assert_allclose(values["m"].todense(), dense)
    np.testing.assert_allclose(values["x"], X)
    zero = edit(f, {"both": lambda v, s: {**v, "x": 0 * v["x"]}})
    np.testing.assert_allclose(zero(matrix, X), 0)


# Random keys that are used once


def test_the_checker_of_key_reuse_sees_through_taps():
    draw = lambda k: jax.random.uniform(tap("k", {"key": k, "other": 1.0})["key"])  # noqa: E731
    twice = lambda k: jax.random.uniform(k) + jax.random.uniform(k)  # noqa: E731
    with jax.debug_key_reuse(True):  # all of it: JAX 0.8 checks no call that was compiled before
        want = jax.random.uniform(jax.random.key(3))
        for f in (draw, jax.jit(draw), lambda k: lax.scan(lambda c, x: (c + draw(x), None), 0.0, k[None])[0]):
            np.testing.assert_allclose(f(jax.random.key(3)), want)
            np.testing.assert_allclose(edit(jax.jit(f), {"k": lambda v, s: v})(jax.random.key(3)), want)
        around = lambda k: jax.random.uniform(tap("k", k)) + jax.random.uniform(k)  # noqa: E731
        for f in (jax.jit(around), lambda k: twice(tap("k", k)), jax.jit(lambda k: twice(tap("k", k)))):
            with pytest.raises(jax.errors.KeyReuseError):
                f(jax.random.key(3))
        out, values = capture(jax.jit(draw), "k")(jax.random.key(3))
        np.testing.assert_allclose(jax.random.uniform(jax.random.clone(values["k"]["key"])), out)
        rows = jax.vmap(jax.jit(draw))(jax.random.split(jax.random.key(3), 2))
        assert rows.shape == (2,)


# Calls with a meaning of their own


def _scheduled(f):
    return pytest.importorskip("jax.experimental.scheduling_groups").scheduling_group(name="group")(f)


def _on_host(f):
    compute_on = pytest.importorskip("jax.experimental.compute_on").compute_on
    try:
        return compute_on(f, compute_type="device_host", out_memory_spaces=jax.memory.Space.Device)
    except TypeError:  # until JAX 0.11 a context

        def inside(*args):
            with compute_on("device_host"):
                return f(*args)

        return inside


def _traced_ahead(f):
    def call(x):
        traced = jax.jit(f).trace(x)
        if not callable(traced):
            pytest.skip("what is traced ahead cannot be called before JAX 0.11")
        return traced(x)

    return call


@pytest.mark.parametrize(
    "call", [_scheduled, _on_host, _traced_ahead, jax.custom_batching.sequential_vmap, jax.named_call]
)
def test_sites_in_further_calls(call):
    inner = call(lambda x: jnp.sin(tap("h", x * 2)))
    f = lambda x: tap("out", inner(x))  # noqa: E731
    assert {name: shape.shape for name, shape in sites(f, X).items()} == {"h": (3,), "out": (3,)}
    shift = jnp.asarray(1.0)
    for run in both(capture(f, "*")):
        out, values = run(X)
        np.testing.assert_allclose(values["h"], 2 * X, rtol=1e-6)
        np.testing.assert_allclose(out, jnp.sin(2 * X), rtol=1e-5)
    for run in both(edit(f, {"h": lambda v, s: v + shift})):
        np.testing.assert_allclose(run(X), jnp.sin(2 * X + 1), rtol=1e-5)
    mapped = jax.vmap(f)
    rows = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(capture(mapped, "h")(rows)[1]["h"].reshape(2, 3), 2 * rows, rtol=1e-6)
    np.testing.assert_allclose(edit(mapped, {"h": lambda v, s: v + shift})(rows), jnp.sin(2 * rows + 1), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(capture(f, "out"))(rows)[1]["out"], jnp.sin(2 * rows), rtol=1e-5)


def test_a_function_with_a_rule_for_vmap_shows_the_taps_of_what_runs():
    @jax.custom_batching.custom_vmap
    def double(x):
        return tap("one", 2 * x)

    @double.def_vmap
    def _(size, batched, x):
        return tap("all", 2 * x), batched[0]

    f = lambda x: tap("out", double(x))  # noqa: E731
    rows = jnp.stack([X, X])
    assert list(sites(f, X)) == ["one", "out"] and list(sites(jax.vmap(f), rows)) == ["all", "out"]
    np.testing.assert_allclose(jax.vmap(edit(f, {"out": lambda v, s: v + 1}))(rows), 2 * rows + 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"site 'one' is in a function with a rule for vmap.*put it outside"):
        jax.vmap(capture(f, "one"))(rows)
    np.testing.assert_allclose(jax.jvp(edit(f, {"one": lambda v, s: v**2}), (X,), (X,))[1], 8 * X**2, rtol=1e-5)
