"""Eight devices give what one gives, and a forward pass sums activations over devices and moves no parameter.

XLA's collectives on fake CPU devices can deadlock with several steps in flight, so every call here is waited for.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gemma
import mishax_lite
from gemma import cache, sharding
from gemma.model import param_shapes

# Of meshes, data x model.
SHAPES = [*(pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1), (4, 2))), (2, 4), (1, 8)]
GOLDEN = ["golden", "golden_3"]  # fixtures that give (gemma.Model, expected values by name)
REFERENCE = 1e-4  # absolute and relative
ROUNDING = 1e-5  # between numbers of devices, of the greatest value in an array


def on(shape, names=("data", "model")):
    return Mesh(np.asarray(jax.devices()).reshape(shape), names)


def placed(model, mesh):
    params = jax.device_put(model.params, sharding.param_shardings(model.params, mesh))
    return dataclasses.replace(model, params=params)


def same(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=ROUNDING * np.abs(want).max())


def close(got, want):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=REFERENCE, atol=REFERENCE)


def everything(model, tokens):
    """Logits and all sites."""
    return mishax_lite.capture(model.apply, ["*"])(tokens)


@pytest.fixture(scope="module", params=GOLDEN)
def case(request):
    """A model, what the reference computes of tokens [B, T], tokens [8, T] that begin with them, all sites of these."""
    model, expected = request.getfixturevalue(request.param)
    more = np.random.default_rng(0).integers(3, model.config.vocab_size, (8, expected["tokens"].shape[1]))
    tokens = np.concatenate([expected["tokens"], more.astype(np.int32)])[:8]
    return model, expected, tokens, jax.block_until_ready(jax.jit(everything)(model, tokens))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_site_and_the_logits_are_those_of_one_device(case, shape):
    model, expected, tokens, (logits, values) = case
    mesh, B = on(shape), len(expected["tokens"])
    over = sharding.site_shardings(model.config, values, mesh)
    run = jax.jit(everything, out_shardings=(over["logits"], over))
    spread, batch = placed(model, mesh), jax.device_put(tokens, sharding.batch_sharding(mesh))
    got_logits, got = jax.block_until_ready(run(spread, batch))
    assert list(got) == list(values)
    same(got_logits, logits)
    for site, value in values.items():
        same(got[site], value)
    close(got_logits[:B], expected["logits"])
    golden_sites = [name for name in expected if "/" in name]
    assert len(golden_sites) == 8 * model.config.num_layers
    for site in golden_sites:
        close(np.asarray(got[site])[:B].reshape(expected[site].shape), expected[site])


@pytest.mark.parametrize("shape", SHAPES)
def test_devices_sum_after_the_embedding_attention_and_feed_forward_and_do_nothing_else(case, shape):
    """With Gemma Scope's three sites of every layer handed out where the rules say."""
    model, _, tokens, _ = case
    config, mesh = model.config, on(shape)
    names = [f"layer_{i}/{site}" for i in range(config.num_layers) for site in ("attn_z", "mlp_out", "resid_post")]
    over = sharding.site_shardings(config, [*names, "logits"], mesh)
    run = jax.jit(
        lambda model, tokens: mishax_lite.capture(model.apply, names)(tokens),
        out_shardings=(over["logits"], {name: over[name] for name in names}),
    )
    compiled = run.lower(placed(model, mesh), jax.device_put(tokens, sharding.batch_sharding(mesh))).compile()
    sums = 1 + config.num_layers * (1 + (config.num_heads % shape[1] == 0))
    assert collectives(compiled) == {"all-reduce": sums if shape[1] > 1 else 0}


def collectives(compiled):
    """How many of each kind there are in a compiled program."""
    kinds = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", compiled.as_text())) for kind in kinds}
    return {kind: count for kind, count in found.items() if count or kind == "all-reduce"}


@pytest.mark.parametrize("shape", [(4, 2), (1, 8)])
def test_fused_attention_is_that_of_one_device(case, shape):
    model, _, tokens, (logits, _) = case
    mesh = on(shape)
    run = jax.jit(functools.partial(gemma.Model.apply, attention="fused"))
    got = jax.block_until_ready(run(placed(model, mesh), jax.device_put(tokens, sharding.batch_sharding(mesh))))
    same(got, logits)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)])
def test_decoding_with_a_cache_is_the_whole_pass_of_one_device(case, shape):
    """Prefill, then token by token; capacity and window are such that local layers keep rings."""
    model, _, tokens, (logits, _) = case
    mesh, (B, T) = on(shape), tokens.shape
    assert model.config.window < T
    make = functools.partial(cache.empty, model.config, B, T)
    kept = jax.jit(make, out_shardings=sharding.cache_shardings(jax.eval_shape(make), mesh))()
    step, spread = jax.jit(lambda model, tokens, kept: model.apply(tokens, cache=kept)), placed(model, mesh)
    for start, stop in [(0, T - 6), *((t, t + 1) for t in range(T - 6, T))]:
        part = jax.device_put(tokens[:, start:stop], sharding.batch_sharding(mesh))
        got, kept = jax.block_until_ready(step(spread, part, kept))
        same(got, logits[:, start:stop])


@pytest.mark.slow
def test_greedy_continuation_on_a_mesh(case):
    model, expected, _, _ = case
    prompt, want, mesh = expected["greedy_prompt"], expected["greedy_tokens"], on((1, 8))
    make = functools.partial(cache.empty, model.config, 1, want.shape[1])
    kept = jax.jit(make, out_shardings=sharding.cache_shardings(jax.eval_shape(make), mesh))()
    step, spread = jax.jit(lambda model, tokens, kept: model.apply(tokens, cache=kept)), placed(model, mesh)
    tokens = prompt
    while tokens.shape[1] < want.shape[1]:
        new = tokens if tokens.shape == prompt.shape else tokens[:, -1:]
        logits, kept = jax.block_until_ready(step(spread, new, kept))
        tokens = np.concatenate([tokens, np.argmax(logits[:, -1:], axis=-1)], axis=1)
    np.testing.assert_array_equal(tokens, want)


def test_where_the_parameters_lie():
    mesh = on((2, 4))
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(param_shapes(gemma.config("gemma2-9b")), mesh))
    attention, mlp = specs["layer_0"]["attn"], specs["layer_0"]["mlp"]
    assert specs["embedder"]["input_embedding"] == PartitionSpec("model", None)
    assert attention["q_einsum"]["w"] == attention["attn_vec_einsum"]["w"] == PartitionSpec("model", None, None)
    assert attention["kv_einsum"]["w"] == PartitionSpec(None, "model", None, None)
    assert mlp["gating_einsum"] == PartitionSpec(None, None, "model")
    assert mlp["linear"] == PartitionSpec("model", None)
    assert specs["final_norm"]["scale"] == specs["layer_0"]["post_ffw_norm"]["scale"] == PartitionSpec(None)


def test_what_does_not_divide_evenly_lies_everywhere():
    attention = sharding.param_shardings(param_shapes(gemma.config("gemma3-1b")), on((2, 4)))["layer_0"]["attn"]
    assert attention["q_einsum"]["w"].spec == PartitionSpec("model", None, None)  # N = 4
    assert attention["kv_einsum"]["w"].is_fully_replicated  # K = 1
    layer = sharding.param_shardings(param_shapes(gemma.config("gemma3-1b")), on((1, 8)))["layer_0"]
    assert layer["attn"]["q_einsum"]["w"].is_fully_replicated
    assert layer["mlp"]["linear"].spec == PartitionSpec("model", None)


@pytest.mark.parametrize(
    "shape, names, over, batch",
    [
        ((2, 4), ("data", "latent"), "latent", "data"),
        ((2, 2, 2), ("latent", "data", "model"), ("latent", "model"), "data"),
        ((8,), ("model",), "model", None),
        ((8,), ("data",), None, "data"),
    ],
)
def test_axes_other_than_data_share_the_parameters(shape, names, over, batch):
    mesh, config = on(shape, names), gemma.config("gemma2-2b")
    found = sharding.param_shardings(param_shapes(config), mesh)["embedder"]["input_embedding"]
    assert found == NamedSharding(mesh, PartitionSpec(over, None))
    assert sharding.batch_sharding(mesh).spec == PartitionSpec(batch)
    hidden = sharding.site_shardings(config, ["layer_0/mlp_hidden"], mesh)["layer_0/mlp_hidden"]
    assert hidden.spec == PartitionSpec(batch, None, over)


def test_where_the_cache_lies():
    make = functools.partial(cache.empty, gemma.config("gemma2-2b"), 4, 32, jnp.bfloat16)
    found = sharding.cache_shardings(jax.eval_shape(make), on((2, 4)))
    assert found.layers[0]["k"].spec == PartitionSpec("data", None, "model", None)
    assert found.next_positions.spec == PartitionSpec("data")
    assert found.step.is_fully_replicated


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with pytest.raises(ValueError, match="must be automatic"):
        sharding.batch_sharding(mesh)
