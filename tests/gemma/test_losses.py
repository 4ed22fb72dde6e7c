"""Losses in blocks of the vocabulary: those of numpy's logits, forward and backward, on one device and on eight."""

import dataclasses
import doctest
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import gemma
import mishax_lite
from gemma import losses, sharding
from gemma.losses import cross_entropy

jitted = jax.jit(cross_entropy, static_argnames=("cap", "block"))


def drawn(V, D=8, shape=(2, 5), dtype=np.float32):
    rng = np.random.default_rng(V)
    x, table = 3 * rng.normal(size=(*shape, D)), rng.normal(size=(V, D))
    return jnp.asarray(x, dtype), jnp.asarray(table, dtype), rng.integers(0, V, shape)


def by_numpy(x, table, targets, cap):
    """Losses [B, T] from all logits, in float64."""
    logits = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    peak = logits.max(axis=-1, keepdims=True)
    log_sum = peak[..., 0] + np.log(np.exp(logits - peak).sum(axis=-1))
    return log_sum - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize(
    ("V", "cap", "block"),
    [(1, None, 1), (97, 5.0, 30), (97, None, 2**22), (1280, 5.0, 1), (1792, None, 7680), (256, 5.0, 2**22)],
)
def test_the_losses_are_numpys(V, cap, block):
    """Of a prime number of tokens, of multiples of 256 that blocks divide or not, and of one block alone."""
    x, table, targets = drawn(V)
    got = jitted(x, table, targets, cap=cap, block=block)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, by_numpy(x, table, targets, cap), rtol=1e-5, atol=1e-5)


def test_large_logits_neither_overflow_nor_vanish():
    x, table, targets = jnp.full((1, 2, 1), 300.0), jnp.asarray([[1.0], [-1.0], [0.999]]), np.array([[1, 2]])
    np.testing.assert_allclose(jitted(x, table, targets, block=1), by_numpy(x, table, targets, None), rtol=1e-4)


def test_sixteen_bits_are_summed_in_float32():
    x, table, targets = drawn(1280, dtype=jnp.bfloat16)
    got = jitted(x, table, targets, cap=30.0, block=2560)
    np.testing.assert_allclose(got, by_numpy(x, table, targets, 30.0), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_the_formula():
    x, table, targets = drawn(1280)
    got = jax.jit(jax.grad(lambda *of: cross_entropy(*of, targets, cap=5.0, block=2560).sum(), (0, 1)))(x, table)
    logits = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
    p = np.exp(5 * np.tanh(logits / 5))
    slope = (p / p.sum(axis=-1, keepdims=True) - np.eye(1280)[targets]) * (1 - np.tanh(logits / 5) ** 2)
    np.testing.assert_allclose(got[0], slope @ np.asarray(table, np.float64), atol=1e-5)
    np.testing.assert_allclose(got[1], np.einsum("btv,btd->vd", slope, np.asarray(x, np.float64)), atol=1e-5)


def test_what_is_no_token_has_no_loss():
    x, table, targets = drawn(97)
    targets[0, :2] = -1, 97
    got = np.asarray(jitted(x, table, targets))
    np.testing.assert_array_equal(np.isnan(got), np.arange(10).reshape(2, 5) < 2)


def test_what_does_not_belong_together_is_refused():
    x, table, targets = drawn(97)
    with pytest.raises(ValueError, match=r"with one D, got \[2, 5, 8\] and \[97, 7\]"):
        cross_entropy(x, table[:, :7], targets)
    with pytest.raises(ValueError, match=r"targets are \[B, T\] = \[2, 5\], a token for each of x, got \[2, 4\]"):
        cross_entropy(x, table, targets[:, 1:])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        cross_entropy(x, table, targets, block=0)


def test_the_examples():
    assert doctest.testmod(losses).failed == 0


def of_logits(model, tokens):
    """Losses [B, T-1] from the logits of the whole model."""
    logits = np.asarray(jax.jit(gemma.Model.apply)(model, tokens), np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=-1))
    return log_sum[:, :-1] - np.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.parametrize("name", ["golden", "golden_3"])
def test_a_models_losses_are_those_of_its_logits(name, request):
    model, expected = request.getfixturevalue(name)
    tokens = expected["tokens"]
    want = of_logits(model, tokens)
    for attention in ("plain", "fused"):
        got = jax.jit(lambda m, t, a=attention: m.losses(t, attention=a))(model, tokens)
        assert got.shape == (len(tokens), tokens.shape[1] - 1)
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_edits_reach_the_losses_and_the_logits_say_where_they_are(golden):
    model, expected = golden
    tokens = expected["tokens"]
    zero = {"layer_1/mlp_out": lambda value, _: jnp.zeros_like(value)}
    logits = np.asarray(mishax_lite.edit(model.apply, zero)(tokens), np.float64)
    want = np.log(np.exp(logits).sum(axis=-1))[0, 2] - logits[0, 2, tokens[0, 3]]
    assert mishax_lite.edit(model.losses, zero)(tokens)[0, 2] == pytest.approx(want, abs=1e-5)
    every = set(gemma.sites.names(model.config)) - {"logits"}
    assert set(mishax_lite.sites(model.losses, tokens)) == every
    with pytest.raises(ValueError, match=r"model\.losses computes logits in blocks of the vocabulary"):
        mishax_lite.capture(model.losses, ["logits"])(tokens)


def test_losses_need_two_tokens(golden):
    model, expected = golden
    with pytest.raises(ValueError, match=r"of two tokens at least, got \[B, T\] = \[1, 1\]"):
        model.losses(expected["tokens"][:1, :1])
    with pytest.raises(ValueError, match="attention is 'plain' or 'fused', got 'fast'"):
        model.losses(expected["tokens"], attention="fast")


def test_no_array_holds_all_logits(tiny):
    """Neither forward nor backward: 4,096 tokens of 4,096 ids are 64 MiB, and nothing in the program is as large."""
    x = jax.ShapeDtypeStruct((16, 256, 192), jnp.float32)
    table, targets = tiny.params["embedder"]["input_embedding"], np.zeros((16, 256), np.int32)
    loss = lambda x: cross_entropy(x, table, targets, cap=30.0, block=2**20).sum()  # noqa: E731
    for function in (loss, jax.grad(loss)):
        text = jax.jit(function).lower(x).compile().as_text()
        sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
        assert 2**20 <= max(sizes) < 2**22


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_eight_devices_give_the_losses_of_one_and_move_no_parameter(golden, shape):
    model, expected = golden
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "model"))
    tokens = np.resize(expected["tokens"], (8, expected["tokens"].shape[1]))
    params = jax.device_put(model.params, sharding.param_shardings(model.params, mesh))
    spread, batch = dataclasses.replace(model, params=params), jax.device_put(tokens, sharding.batch_sharding(mesh))
    compiled = jax.jit(gemma.Model.losses).lower(spread, batch).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    np.testing.assert_allclose(jax.block_until_ready(compiled(spread, batch)), of_logits(model, tokens), atol=1e-5)
