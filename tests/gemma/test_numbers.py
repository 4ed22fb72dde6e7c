"""What the forward pass does with padding, ids without a row, and dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from tests.gemma import small

GEMMAS = pytest.mark.parametrize("kind", [{}, small.GEMMA_3], ids=["gemma2", "gemma3"])


def padded(rows, length, left=False):
    """Tokens [B, length] and positions, which are negative where there is padding."""
    tokens, positions = np.zeros((len(rows), length), np.int32), np.full((len(rows), length), -1, np.int32)
    for i, row in enumerate(rows):
        at = slice(length - len(row), None) if left else slice(len(row))
        tokens[i, at], positions[i, at] = row, np.arange(len(row))
    return tokens, positions


def reference(model):
    """A function from a row of tokens to the logits [V] after it, without a cache. It is compiled once: what follows
    a token changes nothing at it."""
    apply = jax.jit(model.apply)

    def last(row):
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(row)] = row
        return np.asarray(apply(tokens))[0, len(row) - 1]

    return last


def stepper(model, attention="plain"):
    return jax.jit(
        lambda tokens, positions, cache: model.apply(tokens, positions=positions, cache=cache, attention=attention)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "attention"), [({}, "plain"), (small.GEMMA_3, "fused")], ids=["gemma2", "gemma3"])
@pytest.mark.parametrize("left", [False, True])
def test_padding_longer_than_the_window_pushes_nothing_out_of_a_cache(kind, attention, left):
    """Prompts of unequal length, padded on either side; then tokens one at a time."""
    model, rng = small.model(**kind), np.random.default_rng(3)
    rows = [list(rng.integers(4, 96, n)) for n in (23, 4, 11)]
    alone, step = reference(model), stepper(model, attention)
    cache = step(*padded(rows, 23, left), gemma.empty_cache(model, 3, 40))[1]
    for _ in range(7):
        new = rng.integers(4, 96, 3).astype(np.int32)
        logits, cache = step(new[:, None], None, cache)
        for i, row in enumerate(rows):
            row.append(new[i])
            np.testing.assert_allclose(logits[i, 0], alone(row), atol=2e-4, rtol=1e-4)


@GEMMAS
def test_padding_among_single_tokens_and_chunks(kind):
    """Sequences that pause, at one token or several at a time, go on where they were."""
    model, rng = small.model(**kind), np.random.default_rng(4)
    alone, step, rows = reference(model), stepper(model), [[], []]
    cache = gemma.empty_cache(model, 2, 64)
    for lengths in ((9, 3), (1, 0), (0, 1), (1, 0), (1, 0), (1, 1), (2, 9), (9, 0), (0, 9), (1, 1)):
        new = [list(rng.integers(4, 96, n)) for n in lengths]
        tokens, positions = padded(new, max(lengths))
        for i, row in enumerate(rows):
            positions[i] = np.where(positions[i] < 0, -1, positions[i] + len(row))
            row += new[i]
        logits, cache = step(tokens, positions, cache)
        for i, row in enumerate(rows):
            if lengths[i]:
                np.testing.assert_allclose(logits[i, lengths[i] - 1], alone(row), atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_positions_with_gaps_through_a_cache():
    model = small.model()
    tokens, positions = small.tokens(20), np.cumsum(np.random.default_rng(1).integers(1, 4, 20)).astype(np.int32)[None]
    want, cache, parts = jax.jit(model.apply)(tokens, positions=positions), gemma.empty_cache(model, 1, 20), []
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 20)):
        logits, cache = stepper(model)(tokens[:, start:stop], positions[:, start:stop], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [96, 255_999, -1, np.iinfo(np.int32).min])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, lambda rows: rows], ids=["numpy", "jax", "list"])
def test_ids_that_have_no_row_are_refused(wrong, make):
    with pytest.raises(ValueError, match=rf"tokens have the id {wrong}, but the vocabulary of mine is 0 to 95"):
        small.model().apply(make([[2, wrong, 7]]))


def test_ids_that_have_no_row_are_refused_beside_a_cache():
    model = small.model()
    with pytest.raises(ValueError, match=r"tokens have the id 96"):
        model.apply(np.asarray([[96]]), cache=gemma.empty_cache(model, 1, 4))


@pytest.mark.parametrize(("kind", "dtype"), [({}, jnp.float32), (small.GEMMA_3, jnp.bfloat16)])
def test_traced_ids_that_have_no_row_give_nan(kind, dtype):
    """In all of its sequence, as a masked NaN is one too; not in other sequences."""
    model = dataclasses.replace(small.model(**kind), dtype=jnp.dtype(dtype))
    tokens = np.asarray([[2, 5, 96, 7], [2, 5, -1, 7], [2, 5, 95, 7]], np.int32)
    by_row = jax.jit(jax.vmap(lambda row: model.apply(row[None])[0]))
    for logits in (jax.jit(model.apply)(tokens), by_row(tokens)):
        broken = np.isnan(np.asarray(logits)).all(-1)
        np.testing.assert_array_equal(broken, [[True] * 4] * 2 + [[False] * 4])


def test_float16_is_for_gemma_2_alone(tmp_path):
    model = small.model(**small.GEMMA_3)
    gemma.save(model, tmp_path / "3")
    said = r"is a Gemma 3, whose activations exceed float16's .*use dtype=jnp\.bfloat16"
    with pytest.raises(ValueError, match=said):
        gemma.load(tmp_path / "3", dtype=jnp.float16)
    with pytest.raises(ValueError, match=said):
        gemma.load("gemma3-270m", dtype="float16")
    half = jax.tree.map(lambda x: x.astype(jnp.float16), model.params)
    with pytest.raises(ValueError, match=said):
        gemma.Model(half, model.config, dtype=jnp.dtype("float16")).apply(small.tokens())
    gemma.save(small.model(), tmp_path / "2")
    two = gemma.load(tmp_path / "2", dtype=jnp.float16)
    want = jax.jit(small.model().apply)(small.tokens())
    np.testing.assert_allclose(jax.jit(two.apply)(small.tokens()), want, atol=0.3)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float64, jnp.int8, jnp.complex64])
def test_dtypes_without_a_forward_pass_are_refused(dtype):
    with pytest.raises(ValueError, match=r"dtype .*got (float8_e4m3fn|float64|int8|complex64)"):
        gemma.load("gemma2-tiny", dtype=dtype)


@GEMMAS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("cached", [jnp.bfloat16, jnp.float32])
def test_every_site_has_the_models_dtype_whatever_the_caches_is(kind, dtype, cached):
    config = small.model(**kind).config
    params = jax.tree.map(lambda x: x.astype(dtype), small.model(**kind).params)
    model = gemma.Model(params, config, dtype=jnp.dtype(dtype))
    sites = lambda *cache: mishax_lite.sites(lambda t: model.apply(t, cache=cache[0] if cache else None), tokens)  # noqa: E731
    tokens = small.tokens()
    without = {name: site.dtype for name, site in sites().items()}
    beside = {name: site.dtype for name, site in sites(gemma.empty_cache(config, 1, 16, cached)).items()}
    assert beside == without and beside["layer_2/resid_post"] == dtype


@pytest.mark.slow
def test_a_cache_follows_its_model():
    """A model gives its cache its dtype; what is kept stays in the cache's, so that loops can carry it."""
    model = gemma.load("gemma2-tiny", dtype=jnp.bfloat16)
    cache = gemma.empty_cache(model, 1, 8)
    assert {leaf.dtype for layer in cache.layers for leaf in layer.values()} == {jnp.dtype(jnp.bfloat16)}
    assert gemma.empty_cache(model.config, 1, 8).layers[0]["k"].dtype == jnp.float32
    after = model.apply(np.asarray([[2, 3]]), cache=cache)[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [({}, jnp.float32), (small.GEMMA_3, jnp.bfloat16)])
@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_strict_promotion_of_dtypes_and_ranks(kind, dtype, attention):
    """As equinox tests itself: nothing is promoted unsaid, also with a cache, positions and fused attention."""
    params = jax.tree.map(lambda x: x.astype(dtype), small.model(**kind).params)
    model = gemma.Model(params, small.model(**kind).config, dtype=jnp.dtype(dtype))
    tokens, positions = small.tokens(), np.arange(12, dtype=np.int32)[None]
    want = jax.jit(model.apply)(tokens)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        np.testing.assert_allclose(jax.jit(lambda t: model.apply(t, attention=attention))(tokens), want, atol=0.1)
        step = stepper(model, attention)
        logits, cache = step(tokens, positions, gemma.empty_cache(model, 1, 16))
        np.testing.assert_allclose(logits, want, atol=0.1)
        assert step(tokens[:, :1], None, cache)[0].shape == (1, 1, 96)
