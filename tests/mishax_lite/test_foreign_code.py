"""Patches of code that nobody here wrote, as installed from PyPI: Flax, Equinox, and JAX itself."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import Patch, Rewrite, capture, edit

X = jax.random.normal(jax.random.key(0), (1, 5, 8))
SOFTMAX = Rewrite("$w = jax.nn.softmax($x).astype(dtype)", "$w = tap('pattern', jax.nn.softmax($x).astype(dtype))")


def check_pattern(call, heads):
    """The attention pattern is captured, and moving it moves the output."""
    out, values = jax.jit(capture(call, "pattern"))(X)
    pattern = values["pattern"]
    assert pattern.shape[-3:] == (heads, 5, 5) and pattern.size == heads * 25  # JAX maps over more axes of size 1
    np.testing.assert_allclose(pattern.sum(-1), 1.0, rtol=1e-5)
    uniform = jax.jit(edit(call, {"pattern": lambda v, site: jnp.full_like(v, 1 / 5)}))(X)
    np.testing.assert_allclose(uniform - uniform[:, :1], 0, atol=1e-5)  # the same for every query
    assert not np.allclose(out, uniform)


def test_linen_attention():
    linen = pytest.importorskip("flax.linen")
    attention = importlib.import_module("flax.linen.attention")
    model = linen.MultiHeadDotProductAttention(num_heads=2)
    params = model.init(jax.random.key(1), X)
    apply = jax.jit(model.apply)
    before = apply(params, X)
    with Patch(attention, {"dot_product_attention_weights": [SOFTMAX]}):
        check_pattern(lambda x: apply(params, x), 2)
        np.testing.assert_allclose(apply(params, X), before)
        # Under grad and vmap, parameters and all.
        loss = lambda p, x: model.apply(p, x).sum()  # noqa: E731
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        values = jax.jit(capture(grads, "pattern"))(params, jnp.stack([X, 2 * X]))[1]
        assert values["pattern"].shape == (2, 1, 2, 5, 5)


def test_nnx_attention():
    nnx = pytest.importorskip("flax.nnx")
    attention = importlib.import_module("flax.nnx.nn.attention")
    model = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False, deterministic=True)
    # Without dropout it takes a fused function of JAX's, in which there is no pattern: one edit sends it past that.
    unfused = Rewrite("dropout_rate == 0.0 and $no_module", "False")
    before = model(X)
    with Patch(attention, {"dot_product_attention": [unfused], "dot_product_attention_weights": [SOFTMAX]}):
        check_pattern(model, 2)
        graph, state = nnx.split(model)
        check_pattern(jax.jit(lambda x: nnx.merge(graph, state)(x)), 2)
        np.testing.assert_allclose(model(X), before, atol=1e-5)


def test_equinox_attention_and_mlp():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")
    attention = importlib.import_module("equinox.nn._attention")
    mlp = importlib.import_module("equinox.nn._mlp")
    model = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    with Patch(attention, {"dot_product_attention_weights": [Rewrite("return $w", "return tap('pattern', $w)")]}):
        call = eqx.filter_jit(lambda x: jax.vmap(model)(x, x, x))
        values = capture(call, "pattern")(X)[1]["pattern"]
        assert values.shape == (1, 2, 5, 5)
        np.testing.assert_allclose(values.sum(-1), 1.0, rtol=1e-5)
    network = eqx.nn.MLP(8, 3, 16, 2, key=jax.random.key(0))
    loop = "for i, layer in enumerate($layers):\n    x = {}\n    ..."  # `x = layer(x)` stands in another loop too
    hidden = Rewrite(loop.format("layer(x)"), loop.format("tap('hidden', layer(x))"))
    with Patch(mlp, {"MLP.__call__": [hidden]}):
        out, values = jax.jit(capture(jax.vmap(network), "hidden"))(X[0])
        assert {name: v.shape for name, v in values.items()} == {"hidden#0": (5, 16), "hidden#1": (5, 16)}
        assert out.shape == (5, 3)
        zero = edit(network, {"hidden#1": lambda v, s: jnp.zeros_like(v)})
        assert np.allclose(zero(X[0, 0]), zero(X[0, 1]))


def test_a_plain_function_of_jax():
    functions = importlib.import_module("jax._src.nn.functions")
    call = lambda x: jax.nn.dot_product_attention(*[x.reshape(1, 5, 2, 4)] * 3)  # noqa: E731
    softmax = Rewrite("probs = softmax(...).astype($t)", "probs = tap('pattern', softmax(...).astype($t))")
    before = call(X)
    with Patch(functions, {"_dot_product_attention_core": [softmax]}):
        check_pattern(call, 2)
        np.testing.assert_allclose(call(X), before)
