"""`Edits` in a Gemma: bound by `apply` and `losses`, and the same in generation, with a cache and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
import sae
from mishax_lite import Edits
from tests import compilations

SITE = "layer_1/resid_post"
PROMPTS = [[2, 7, 9, 30, 4], [2, 5]]
NEW = 6


@pytest.fixture(scope="module")
def model(golden):
    return golden[0]


@pytest.fixture(scope="module")
def autoencoder(model):
    """Random, for the residual stream; token 2 begins texts, 0 is padding."""
    A = model.config.d_model
    W = jax.random.normal(jax.random.key(0), (A, 64)) / np.sqrt(A)
    info = sae.Info(model.config.name, SITE, SITE, counted=sae.Counted((0, 2)))
    return sae.JumpReLU(W, jnp.zeros(64), W.T, jnp.zeros(A), jnp.full(64, 0.1), info=info)


@jax.jit
def following(model, edits, tokens):
    """The most likely token after each one, of a pass over all of them."""
    return jnp.argmax(mishax_lite.edit(model.apply, edits)(tokens), axis=-1)


def uncached(model, edits, prompt, count):
    """Token by token; what follows a token does not see the padding after it."""
    tokens = np.zeros((1, 12), np.int32)
    tokens[0, : len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + count):
        tokens[0, length] = following(model, edits, tokens)[0, length - 1]
    return tokens[0, len(prompt) : len(prompt) + count]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["steer", "clamp", "both"])
def test_generation_is_the_same_with_the_cache_and_without(model, autoencoder, kind):
    steer = sae.steer(autoencoder, {3: 30.0}, positions=slice(1, 9))
    clamp = sae.clamp(autoencoder, {5: 20.0, 6: -20.0}) | {"layer_0/mlp_out": lambda value, site: 0.5 * value}
    edits = {"steer": steer, "clamp": clamp, "both": clamp | steer}[kind]
    tokens, _ = gemma.generate(model, PROMPTS, max_new_tokens=NEW, stop_tokens=(), edits=edits)
    plain, _ = gemma.generate(model, PROMPTS, max_new_tokens=NEW, stop_tokens=())
    assert (tokens != plain).any()
    for prompt, row in zip(PROMPTS, tokens, strict=True):
        np.testing.assert_array_equal(row, uncached(model, edits, prompt, NEW))


def test_a_hundred_strengths_generate_by_one_program(model, autoencoder):
    generate = lambda k: gemma.generate(  # noqa: E731
        model, PROMPTS, max_new_tokens=2, stop_tokens=(), edits=sae.steer(autoencoder, {k % 64: 0.3 * k})
    )
    generate(0)
    with compilations.counted() as names:
        different = {generate(k).tokens.tobytes() for k in range(1, 101)}
    assert names.count("decode") == 0
    assert len(different) > 1


@pytest.mark.slow
def test_edits_are_bound_by_apply_and_losses_however_they_are_called(model, autoencoder):
    edits, tokens = sae.steer(autoencoder, {3: 30.0}), np.array([[2, 7, 9, 30], [2, 5, 7, 0]])
    positions = np.broadcast_to(np.arange(4), tokens.shape)
    want = mishax_lite.edit(lambda t: model.apply(t), edits.bind(tokens, positions))(tokens)
    assert np.abs(want - model.apply(tokens)).max() > 0.1
    for apply, args in (
        (model.apply, (tokens,)),
        (jax.jit(model.apply), (tokens,)),
        (functools.partial(model.apply, attention="fused"), (tokens,)),
        (jax.jit(gemma.Model.apply), (model, tokens)),
        (functools.partial(jax.jit(gemma.Model.apply), model), (tokens,)),
    ):
        np.testing.assert_allclose(mishax_lite.edit(apply, edits)(*args), want, atol=2e-4)
    losses = mishax_lite.edit(model.losses, edits)(tokens)
    by_hand = -jax.nn.log_softmax(want[:, :-1])[np.arange(2)[:, None], np.arange(3), tokens[:, 1:]]
    np.testing.assert_allclose(losses, by_hand, atol=1e-3)
    with pytest.raises(ValueError, match="does not say which text it reads"):
        mishax_lite.edit(lambda t: model.apply(t), edits)(tokens)


@pytest.mark.slow
def test_positions_go_on_where_a_cache_ends(model):
    seen = []

    def late(positions):
        seen.append(positions)
        return {SITE: lambda value, site: value}

    tokens = np.array([[2, 7, 9], [2, 5, 6]])
    edited = mishax_lite.edit(model.apply, late)
    cache = gemma.empty_cache(model, 2, 8)
    _, cache = edited(tokens, cache=cache)
    edited(tokens[:, :1], cache=cache)
    edited(tokens=tokens, positions=tokens)
    np.testing.assert_array_equal(seen[0], [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(seen[1], [[3], [3]])
    np.testing.assert_array_equal(seen[2], tokens)


@pytest.mark.slow
def test_a_transcoder_is_spliced_in_while_tokens_are_generated(model):
    A = model.config.d_model
    W = jax.random.normal(jax.random.key(1), (A, 64)) / np.sqrt(A)
    info = sae.Info(model.config.name, "layer_1/mlp_in", "layer_1/mlp_out", counted=sae.Counted((0, 2)))
    edits = sae.splice(sae.JumpReLU(W, jnp.zeros(64), W.T, jnp.zeros(A), jnp.full(64, 0.1), info=info))
    tokens, _ = gemma.generate(model, PROMPTS[:1], max_new_tokens=NEW, stop_tokens=(), edits=edits)
    np.testing.assert_array_equal(tokens[0], uncached(model, edits, PROMPTS[0], NEW))


def test_no_edits_are_no_edits(model):
    plain, _ = gemma.generate(model, PROMPTS, max_new_tokens=NEW)
    for edits in ({}, Edits()):
        np.testing.assert_array_equal(gemma.generate(model, PROMPTS, max_new_tokens=NEW, edits=edits).tokens, plain)
