"""Hooks, the forward pass and generation, as far as jax, flax, numpy and orbax go: `make test-gpu` on a GPU, and on the
CPU with all other tests.

Tolerances are by platform. A CPU repeats a computation to a few last bits. A GPU adds up in an order that depends on
the kernel, which differs between two programs; with bfloat16 every value is rounded to 8 bits anywhere.

Programs are compiled by `compiling.jit_forward`: with XLA's defaults each would autotune its products for some seconds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from mishax_lite import compiling, tap

pytestmark = pytest.mark.gpu
CPU = jax.default_backend() == "cpu"
CLOSE = {"atol": 1e-5, "rtol": 1e-5} if CPU else {"atol": 1e-4, "rtol": 1e-4}
# Of the norm of the difference to the norm of the logits, after seven layers.
RELATIVE = {"float32": 2e-5 if CPU else 1e-4, "bfloat16": 3e-2}


@pytest.fixture(params=["golden", "golden_3"])
def reference(request):
    """(model, expected values by name) of a Gemma 2 and of a Gemma 3."""
    return request.getfixturevalue(request.param)


def network(x, w):
    """A scanned layer, a loop of unknown length, and a product, with taps."""

    def layer(carry, weight):
        carry = tap("layer", jnp.tanh(jnp.matmul(carry, weight, precision="highest")))
        return carry, carry.sum()

    x, _ = jax.lax.scan(layer, x, w)
    x = jax.lax.while_loop(lambda v: jnp.abs(v).max() > 0.1, lambda v: tap("halved", v / 2), x)
    return tap("out", x * 3.0).sum()


def arrays():
    x, w = jax.random.normal(jax.random.key(0), (8, 16)), jax.random.normal(jax.random.key(1), (3, 16, 16)) / 4
    return x, w, np.asarray(x, np.float64), np.asarray(w, np.float64)


def test_the_platform_is_the_one_that_was_asked_for():
    """`make test-gpu` means a GPU; and the options chosen for it are some that its compiler takes."""
    import os

    wanted = os.environ["JAX_PLATFORMS"].split(",")[0]
    assert jax.default_backend() == {"cuda": "gpu", "rocm": "gpu"}.get(wanted, wanted)
    for program in compiling.OPTIONS:
        assert compiling.compiler_options(program) == compiling.options(program, jax.default_backend())


def test_idle_taps_leave_nothing_in_the_compiled_program():
    bare = jax.jit(lambda x: jnp.sin(x) * 2).lower(1.0).compile().cost_analysis()
    tapped = jax.jit(lambda x: tap("b", tap("a", jnp.sin(x)) * 2)).lower(1.0).compile().cost_analysis()
    assert bare["flops"] == tapped["flops"] and bare["bytes accessed"] == tapped["bytes accessed"]


def test_capture_through_a_scan():
    x, w, x64, w64 = arrays()
    _, values = compiling.jit_forward(mishax_lite.capture(network, ["layer", "out"]))(x, w)
    want = []
    for weight in w64:
        x64 = np.tanh(x64 @ weight)
        want.append(x64)
    np.testing.assert_allclose(values["layer"], want, **CLOSE)
    while np.abs(x64).max() > 0.1:
        x64 = x64 / 2
    np.testing.assert_allclose(values["out"], x64 * 3, **CLOSE)


def test_edit_in_a_scan_a_loop_and_a_gradient():
    x, w, *_ = arrays()
    doubled = mishax_lite.edit(network, {"layer": lambda v, site: jnp.where(site.loop[0] == 1, 2 * v, v)})

    def by_hand(x, w):
        for i in range(3):
            x = jnp.tanh(jnp.matmul(x, w[i], precision="highest")) * (2 if i == 1 else 1)
        return jax.lax.while_loop(lambda v: jnp.abs(v).max() > 0.1, lambda v: v / 2, x).sum() * 3.0

    np.testing.assert_allclose(compiling.jit_forward(doubled)(x, w), by_hand(x, w), **CLOSE)
    zeroed = mishax_lite.edit(network, {"halved": lambda v, _: 0 * v})
    assert float(compiling.jit_forward(zeroed)(x, w)) == 0.0

    def scanned(x, w, size):
        return jax.lax.scan(lambda c, v: (tap("layer", size * jnp.tanh(c * v)), None), x, w)[0].sum()

    edited = mishax_lite.edit(functools.partial(scanned, size=1.0), {"layer": lambda v, _: 3.0 * v})
    got = compiling.jit_forward(jax.grad(edited, argnums=1))(x, w[:, :8])
    want = jax.grad(scanned, argnums=1)(x, w[:, :8], 3.0)
    np.testing.assert_allclose(got, want, **CLOSE)


def test_every_site_of_a_model_can_be_captured_and_edited_in_one_program(reference):
    model, expected = reference
    tokens = expected["tokens"][:, :6]
    shapes = mishax_lite.sites(model.apply, tokens)
    run = compiling.jit_forward(
        mishax_lite.capture(mishax_lite.edit(model.apply, {"layer_1/mlp_out": lambda v, _: 0 * v}), ["*"])
    )
    logits, values = run(tokens)
    assert {name: value.shape for name, value in values.items()} == {name: s.shape for name, s in shapes.items()}
    assert not np.asarray(values["layer_1/mlp_out"]).any()
    np.testing.assert_allclose(values["layer_1/resid_post"], values["layer_1/resid_mid"], **CLOSE)
    assert np.abs(np.asarray(logits) - expected["logits"][:, :6]).max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_attention_is_plain_attention(reference, dtype):
    """Longer than the windows and than a block; on a GPU, Gemma 3 in bfloat16 is by cuDNN."""
    model, _ = reference
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
    model = gemma.Model(params, model.config, dtype=jnp.dtype(dtype))
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 300)).astype(np.int32)
    run = compiling.jit_forward(gemma.Model.apply, static_argnames="attention")
    plain, fused = (np.asarray(run(model, tokens, attention=mode), np.float64) for mode in ("plain", "fused"))
    assert np.isfinite(fused).all()
    assert np.linalg.norm(fused - plain) < RELATIVE[dtype] * np.linalg.norm(plain)


@pytest.mark.slow
def test_generation_with_edits_equals_the_uncached_computation(reference):
    """A steered continuation of prompts of unequal length, the cache's and the whole sequence's."""
    model, expected = reference
    tokens = expected["tokens"][0]
    prompts, new = [tokens[:5].tolist(), tokens[:9].tolist()], 6
    edits = {"layer_1/resid_post": lambda value, _: value + 0.3}
    made = gemma.generate(model, prompts, max_new_tokens=new, stop_tokens=(), edits=edits).tokens
    apply = compiling.jit_forward(mishax_lite.edit(model.apply, edits))
    for prompt, row in zip(prompts, made, strict=True):
        whole = np.zeros((1, 16), np.int32)  # what comes later changes nothing before
        whole[0, : len(prompt)] = prompt
        for t in range(len(prompt), len(prompt) + new):
            whole[0, t] = np.argmax(apply(jnp.asarray(whole))[0, t - 1])
        np.testing.assert_array_equal(row, whole[0, len(prompt) : len(prompt) + new])
