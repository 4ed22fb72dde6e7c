"""Strengths in words, and steering checked before anything runs."""

import dataclasses
import doctest

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import steering
from sae.autoencoder import Largest
from tests.sae.letters import Letters
from tests.sae.models import lettered

pytestmark = pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")


@pytest.fixture(scope="module")
def model():
    return lettered.model()


def autoencoder(site="blocks/1", **changes):
    W = np.random.default_rng(0).normal(size=(8, 24)).astype(np.float32)
    zeros = np.zeros(8, np.float32)
    info = sae.Info("equinox", site, site, counted=sae.Counted(Letters.special_ids))
    return sae.JumpReLU(W.T, zeros, W, np.zeros(24, np.float32), zeros, info=info, **changes)


def test_a_multiple_of_the_largest_activation_is_added_and_said(model):
    one = autoencoder(largest=Largest(np.arange(8.0), 7))
    steered = steering.steering(one, model, 3, "2max")
    assert steered.title == (
        "with 2max of latent 3: 2 x 3 = 6 in raw units; 3 is its largest activation over the 7 tokens of its record"
    )
    (edit,) = steered.edits.bind(jnp.array([[3, 4]]), jnp.array([[0, 1]])).functions("blocks/1")
    np.testing.assert_allclose(edit(jnp.zeros((1, 2, 24)), None)[0, 1], 6 * one.W_dec[3], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "latent", "strength", "message"),
    [
        ({}, 8, "20", "mine has latents 0 to 7, got latent=8"),
        ({}, -1, "20", "got latent=-1"),
        ({}, 1, "three", "a strength is a number in raw units or, such as 3max, .*; got 'three'"),
        ({}, 1, "3max", "needs the largest activation of each latent"),
        ({"site": "blocks/1/mlp/up"}, 1, "20", "mine is of blocks/1/mlp/up, which does not write to the residual"),
    ],
)
def test_what_cannot_be_is_said(model, change, latent, strength, message):
    with pytest.raises(ValueError, match=message):
        steering.steering(autoencoder(**change), model, latent, strength, name="mine")


def test_another_models_autoencoder_and_a_crosscoder_are_refused(model):
    other = dataclasses.replace(autoencoder(), info=sae.Info("other", "blocks/1", "blocks/1"))
    with pytest.raises(ValueError, match="trained on other, the model given is equinox"):
        steering.steering(other, model, 1, "20")
    sites = ("blocks/0", "blocks/1")
    arrays = [np.zeros(shape, np.float32) for shape in ((2, 24, 8), (8,), (8, 2, 24), (2, 24), (8,))]
    crosscoder = sae.Crosscoder(*arrays, info=sae.Info("equinox", sites, sites))
    with pytest.raises(ValueError, match="is a crosscoder, of blocks/0, blocks/1"):
        steering.steering(crosscoder, model, 1, "20")


def test_examples_run(model):
    names = {"autoencoder": autoencoder(), "model": model}
    result = doctest.testmod(steering, extraglobs=names)
    assert result.attempted == 2 and not result.failed
