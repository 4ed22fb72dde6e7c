"""What fused attention is on a GPU, as far as a machine without one can tell: which implementation is chosen, that the
arguments of the platform's kernel mean what ours mean, and how large our own program is."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from gemma import attention
from gemma.model import param_shapes


def reach(T, window=None, **changes):
    order = jnp.broadcast_to(jnp.arange(T), (2, T))
    return attention.Reach(order, order, order, order, **{"window": window, "sequential": True, **changes})


def chosen(platform="gpu", capability="9.0", dtype=jnp.bfloat16, H=256, T=1024, cap=None, **changes):
    q = jax.ShapeDtypeStruct((2, T, 8, H), dtype)
    return attention.kernel(platform, capability, q, reach(8, **changes), cap)


def test_cudnn_is_for_what_it_computes():
    assert chosen() == chosen(capability="12.0") == chosen(window=512) == chosen(dtype=jnp.float16) == ("cuda", "cudnn")
    assert chosen(capability="8.0", H=128) == ("cuda", "cudnn")
    # Gemma 2's softcap, a head too wide for Ampere, float32, a mask or positions of one's own, and few tokens.
    for case in (
        {"cap": 50.0},
        {"capability": "8.0"},
        {"capability": "7.5", "H": 128},
        {"H": 260},
        {"dtype": jnp.float32},
        {"sequential": False},
        {"T": 64},
        {"platform": "cpu", "capability": None},
        {"platform": "tpu", "capability": None},
        {"capability": "gfx942"},
    ):
        assert chosen(**case) is None, case


@pytest.mark.parametrize("window", [None, 1, 40, 150, 200])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_the_kernels_arguments_mean_what_ours_mean(window, K):
    """Beside numpy: with grouped heads, a window, and one that is longer than the sequence."""
    T, N, H = 150, 4, 16
    q, k, v = (jax.random.normal(jax.random.key(i), (2, T, n, H)) for i, n in enumerate((N, K, K)))
    ours = attention.in_blocks(q, k, v, reach(T, window), None, attention.Blocks(64, 1))
    theirs = attention.by_kernel(q, k, v, window=window, implementation="xla")
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q, k, v))
    k64, v64 = (np.repeat(x, N // K, axis=2) for x in (k64, v64))
    distance = np.arange(T)[:, None] - np.arange(T)
    allowed = (distance >= 0) & (distance < (window or T))
    scores = np.where(allowed, np.einsum("btnh,bsnh->bnts", q64, k64), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    want = np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v64)
    np.testing.assert_allclose(ours, want, atol=2e-5)
    np.testing.assert_allclose(theirs, want, atol=2e-5)


@pytest.mark.slow
def test_a_model_by_the_platforms_kernel_is_the_model(golden_3, monkeypatch):
    """Gemma 3 whole, with the kernel of this platform in cuDNN's place: logits, sites and gradients."""
    model, expected = golden_3
    tokens = np.tile(expected["tokens"], (1, 3))[:, : 2 * model.config.window + 5]
    wanted = ["layer_*/attn_z", "layer_*/resid_post"]

    def results(mode):
        apply = functools.partial(model.apply, attention=mode)
        logit = lambda x: mishax_lite.edit(apply, {"layer_0/resid_post": lambda v, _: v + x})(tokens)[0, -1, 5]  # noqa: E731
        return jax.jit(mishax_lite.capture(apply, wanted))(tokens), jax.jit(jax.grad(logit))(
            jnp.zeros(tokens.shape[1])[:, None]
        )

    plain = results("plain")
    calls = []
    by_kernel = attention.by_kernel
    monkeypatch.setattr(attention, "kernel", lambda *_: (jax.default_backend(), "xla"))
    monkeypatch.setattr(attention, "by_kernel", lambda *a, **kw: calls.append(kw) or by_kernel(*a, **kw))
    fused = results("fused")
    assert {call["window"] for call in calls} == {model.config.window, None}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), fused, plain)


def test_our_blocks_on_a_gpu_are_one_loop_a_layer_without_large_arrays(monkeypatch):
    """Of two layers of Gemma 2 2B at 8 x 1,024 tokens, in bfloat16, as text: as many products as plain attention has,
    one loop for each layer, and no array of a quarter of the scores beside the MLP's."""
    config = dataclasses.replace(gemma.config("gemma2-2b"), num_layers=2, vocab_size=512)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), param_shapes(config))
    model = gemma.Model(params, config, None, jnp.dtype("bfloat16"))
    tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32)
    monkeypatch.setitem(attention.BLOCKS, jax.default_backend(), attention.BLOCKS["gpu"])

    def text(mode):
        apply = functools.partial(gemma.Model.apply, attention=mode)
        capture = mishax_lite.capture(apply, ["layer_1/resid_post"])
        return jax.jit(lambda m, t: capture(m, t)[1]).lower(model, tokens).as_text()

    plain, fused = text("plain"), text("fused")
    assert fused.count("stablehlo.dot_general") == plain.count("stablehlo.dot_general")
    assert fused.count("stablehlo.while") == 2 and plain.count("stablehlo.while") == 0

    def largest_scores(program):
        shapes = {tuple(map(int, found.split("x"))) for found in re.findall(r"tensor<([\dx]+)x(?:f32|bf16)>", program)}
        return max(np.prod(shape) for shape in shapes if shape[-1] == 1024 and len(shape) > 3)

    assert largest_scores(plain) == 8 * 8 * 1024 * 1024
    assert largest_scores(fused) == 8 * 8 * 256 * 1024


@pytest.mark.parametrize(("window", "length"), [(None, 0), (100, 100), (512, 0)])
def test_the_program_lowered_for_a_gpu_calls_cudnn_and_the_one_for_a_cpu_does_not(window, length, monkeypatch):
    """Forward and backward, of 256 tokens, as text. JAX asks the GPU's driver for versions, which are not here."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False, raising=False)
    monkeypatch.setattr(attention, "kernel", lambda *_: ("cuda", "cudnn"))
    q, k = (jax.ShapeDtypeStruct((2, 256, n, 256), jnp.bfloat16) for n in (8, 4))

    def total(q, k, v):
        return attention.fused(q, k, v, reach(256, window), None).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total)).trace(q, k, k)
    # Quotation marks stand as \\22 in a string of the text.
    on_gpu, on_cpu = (
        traced.lower(lowering_platforms=(platform,)).as_text().replace("\\22", '"') for platform in ("cuda", "cpu")
    )
    assert re.findall(r"__cudnn\$(\w+)", on_gpu) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert set(re.findall(r"mask_type\W*(\w+)", on_gpu)) == {"CAUSAL"}
    assert set(re.findall(r"sliding_window_length\W*(\d+)", on_gpu)) == {str(length)}
    assert "cudnn" not in on_cpu and "dot_general" in on_cpu
