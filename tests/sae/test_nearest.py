"""`sae.nearest` and neighbours, against all cosines at once in numpy."""

import dataclasses
import doctest

import jax
import numpy as np
import pytest

import sae
from sae.evaluation import nearest_latents
from sae.evaluation.nearest_latents import neighbours, strongest


def autoencoder(width, dim=12, seed=0):
    W_dec = np.random.default_rng(seed).normal(size=(width, dim)).astype(np.float32)
    zeros = np.zeros(width, np.float32)
    return sae.JumpReLU(W_dec.T, zeros, W_dec, np.zeros(dim, np.float32), zeros)


def cosines(a, b):
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.float64(a.W_dec), np.float64(b.W_dec))]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize("block", [4096, 16, 7])
def test_the_nearest_is_that_of_all_cosines(block):
    a, b = autoencoder(40), autoencoder(57, seed=1)
    match, every = sae.nearest(a, b, block=block), cosines(a, b)
    np.testing.assert_array_equal(match.index, every.argmax(axis=1))
    np.testing.assert_allclose(match.similarity, every.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(match.mutual, every.argmax(axis=0)[every.argmax(axis=1)] == np.arange(40))
    assert 0 < match.mutual.sum() < 40


def test_norms_of_any_size_change_nothing():
    a, b = autoencoder(40), autoencoder(57, seed=1)
    want, size = sae.nearest(a, b), lambda count: np.float32(10.0) ** np.linspace(-43, 37, count)[:, None]
    scaled = [dataclasses.replace(x, W_dec=x.W_dec * size(len(x.W_dec)).astype(np.float32)) for x in (a, b)]
    few = np.flatnonzero(size(40)[:, 0] > 1e-37)  # smaller ones have lost digits of their direction
    every = cosines(*scaled)
    match = sae.nearest(*scaled)
    np.testing.assert_array_equal(match.index, every.argmax(axis=1))
    np.testing.assert_allclose(match.similarity, every.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(match.similarity[few], want.similarity[few], atol=0.02)


def test_equal_latents_are_mutual_all_or_none():
    a, b = autoencoder(40), autoencoder(57, seed=1)
    want = sae.nearest(a, b)
    twice = autoencoder(80)
    twice.W_dec[:] = np.concatenate([a.W_dec, 3 * a.W_dec])
    match = sae.nearest(twice, b)
    np.testing.assert_array_equal(match.mutual, np.tile(want.mutual, 2))
    assert sae.nearest(twice, twice).mutual.all()
    b.W_dec[:] = 0
    assert not sae.nearest(a, b).mutual.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    a, b = autoencoder(6), autoencoder(6, seed=1)
    b.W_dec[4, 2] = bad
    for compare, where in ((lambda: sae.nearest(a, b), " in b"), (lambda: neighbours(b, 2), "")):
        with pytest.raises(ValueError, match=f"row 4 of W_dec{where} is not finite, so it has no direction"):
            compare()


@pytest.mark.parametrize("block", [4096, 7])
def test_neighbours_are_the_nearest_but_for_the_latent_itself(block):
    a = autoencoder(30)
    every = cosines(a, a)
    np.fill_diagonal(every, -np.inf)
    index, similarity = neighbours(a, 4, block=block)
    np.testing.assert_array_equal(index, np.argsort(-every, axis=1)[:, :4])
    np.testing.assert_allclose(similarity, -np.sort(-every, axis=1)[:, :4], atol=1e-6)


def test_a_latent_without_a_direction_is_like_nothing():
    a, b = autoencoder(3), autoencoder(5, seed=1)
    a.W_dec[1] = 0
    assert sae.nearest(a, b).similarity[1] == 0 and np.isfinite(sae.nearest(b, a).similarity).all()


def test_the_similarities_of_all_pairs_are_never_held():
    """Of 40,000 latents by 40,000 they would be 6.4 GB."""
    rows, others = jax.ShapeDtypeStruct((512, 8), np.float32), jax.ShapeDtypeStruct((79, 512, 8), np.float32)
    number = jax.ShapeDtypeStruct((), np.int32)
    program = jax.jit(nearest_latents._strongest_of, static_argnames=("K", "apart"))
    memory = program.lower(rows, number, others, number, K=1, apart=False).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32 * 2**20


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths 12 in a and 8 in b"):
        sae.nearest(autoencoder(4), autoencoder(4, 8))


def test_examples_run():
    names = {"sae": sae, "autoencoder": autoencoder(6), "np": np, "strongest": strongest}
    result = doctest.testmod(nearest_latents, extraglobs=names)
    assert result.attempted == 6 and not result.failed
