"""Fused attention and the cache give what plain attention on the whole sequence gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from gemma import attention


@pytest.fixture(scope="module")
def short(tiny):
    """A local and a global layer: the first two of the shipped model."""
    params = {name: value for name, value in tiny.params.items() if name not in {f"layer_{i}" for i in range(2, 6)}}
    return gemma.Model(params, dataclasses.replace(tiny.config, num_layers=2))


@pytest.fixture(scope="module")
def tokens(tiny):
    return np.random.default_rng(0).integers(3, tiny.config.vocab_size, (2, 300)).astype(np.int32)


@pytest.fixture(scope="module")
def plain(short, tokens):
    """Logits and sites. The window is 64, so 300 tokens are well past it, and no multiple of a block of queries."""
    return jax.jit(mishax_lite.capture(short.apply, ["layer_*/attn_z", "layer_*/resid_post"]))(tokens)


@pytest.fixture(params=["cpu", "gpu"])
def blocks_of_platform(request, monkeypatch):
    """Fused attention with the blocks that it has on another platform."""
    monkeypatch.setitem(attention.BLOCKS, jax.default_backend(), attention.BLOCKS[request.param])


def close(got, want):
    np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("blocks", [(128, 4), (32, 2), (32, 1), (32, 1, True), (256, 1, True)], ids=str)
def test_fused_attention_gives_the_same_at_every_site(short, tokens, plain, blocks, monkeypatch):
    """In spans of one block, of several, and with a last block that is not full. The last are a GPU's."""
    monkeypatch.setitem(attention.BLOCKS, jax.default_backend(), attention.Blocks(*blocks))
    fused = functools.partial(short.apply, attention="fused")
    logits, values = jax.jit(mishax_lite.capture(fused, ["layer_*/attn_z", "layer_*/resid_post"]))(tokens)
    close(logits, plain[0])
    jax.tree.map(close, values, plain[1])


def test_fused_attention_with_a_mask_and_positions_of_ones_own(short, tokens, blocks_of_platform):
    """Two documents packed into one sequence, each seeing itself alone."""
    B, T = tokens.shape
    document = np.broadcast_to(np.arange(T) >= 170, (B, T))
    positions = np.where(document, np.arange(T) - 170, np.arange(T)).astype(np.int32)
    mask = (document[:, :, None] == document[:, None, :]) & np.tril(np.ones((T, T), bool))
    packed = jax.jit(short.apply)(tokens, positions=positions, mask=mask)
    fused = jax.jit(functools.partial(short.apply, attention="fused"))(tokens, positions=positions, mask=mask)
    close(fused, packed)
    close(packed[:, 170:], jax.jit(short.apply)(tokens[:, 170:]))


@pytest.mark.slow
def test_gradients_through_fused_attention(short, tokens, blocks_of_platform):
    def logit(x, mode):
        edits = {"layer_0/resid_post": lambda value, site: value + x}
        return mishax_lite.edit(functools.partial(short.apply, attention=mode), edits)(tokens)[0, -1, 5]

    gradient = jax.jit(jax.grad(logit), static_argnums=1)
    close(gradient(jnp.zeros(192), "fused"), gradient(jnp.zeros(192), "plain"))


@pytest.mark.slow
def test_memory_of_fused_attention_grows_with_the_length_and_not_with_its_square(short, blocks_of_platform):
    def temporary(mode, length):
        run = functools.partial(short.apply, attention=mode, last=True)
        compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((1, length), jnp.int32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("plain", 4096) > 3 * temporary("plain", 2048)
    assert temporary("fused", 8192) < 2.2 * temporary("fused", 4096)
    assert temporary("fused", 4096) < temporary("plain", 4096) / 8


def test_sites_that_fused_attention_lacks_are_named_with_the_mode_that_has_them(short, tokens):
    fused = functools.partial(short.apply, attention="fused")
    with pytest.raises(ValueError, match=r"layer_1/attn_pattern.*attention='plain'"):
        mishax_lite.capture(fused, ["layer_1/attn_pattern"])(tokens)
    with pytest.raises(ValueError, match=r"layer_\*/attn_scores.*attention='plain'"):
        mishax_lite.edit(fused, {"layer_*/attn_scores": lambda value, site: value})(tokens)
    lacking = set(mishax_lite.sites(short.apply, tokens)) - set(mishax_lite.sites(fused, tokens))
    assert lacking == {f"layer_{i}/{kind}" for i in range(2) for kind in ("attn_scores", "attn_pattern")}
    _, values = jax.jit(mishax_lite.capture(fused, ["layer_1/attn_*"]))(tokens)
    assert sorted(values) == ["layer_1/attn_in", "layer_1/attn_out", "layer_1/attn_z"]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "platform"), [("plain", "cpu"), ("fused", "cpu"), ("fused", "gpu")])
def test_a_cache_filled_in_pieces_gives_the_same_logits(short, tokens, plain, mode, platform, monkeypatch):
    """Pieces of one token and of several, before and after the rings are full."""
    monkeypatch.setitem(attention.BLOCKS, jax.default_backend(), attention.BLOCKS[platform])
    step = jax.jit(lambda t, c: short.apply(t, cache=c, attention=mode))
    cache, logits, start = gemma.empty_cache(short.config, 2, 300), [], 0
    assert cache.layers[0]["k"].shape[1] == 64 and cache.layers[1]["k"].shape[1] == 300
    for size in (50, 1, 100, 1, 1, 20, 127):
        out, cache = step(tokens[:, start : start + size], cache)
        logits.append(out)
        start += size
    close(np.concatenate(logits, axis=1), plain[0])
    with pytest.raises(ValueError, match="room for 300 tokens and holds 300: 1 more do not fit"):
        short.apply(tokens[:, :1], cache=cache)


def test_a_cache_and_arguments_that_do_not_go_with_it(short, tokens):
    cache = gemma.empty_cache(short.config, 2, 16)
    with pytest.raises(ValueError, match="for 2 sequences, got 1"):
        short.apply(tokens[:1, :4], cache=cache)
    with pytest.raises(ValueError, match="a mask is given with a cache: leave it out"):
        short.apply(tokens[:, :4], cache=cache, mask=np.ones((2, 4, 4), bool))
    with pytest.raises(ValueError, match="at least one sequence of one token"):
        gemma.empty_cache(short.config, 0, 16)


def test_the_last_logits_alone(short, tokens, plain):
    close(jax.jit(functools.partial(short.apply, last=True))(tokens), plain[0][:, -1:])
