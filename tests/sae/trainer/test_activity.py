"""The largest activations that a run records when it ends."""

import itertools

import numpy as np
import pytest

import sae
from sae.finish import LargestActivations
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(3000, features=64, dimensions=32)
    sites = {"x": x, "y": np.tanh(x[:, :20]), "w": np.roll(x, 3, axis=1)}
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", sites, segment_rows=1500)


def config(site="x", **changes):
    return sae.short_run(site, 64, **{"steps": 40, "l0_target": 4.0, "batch_size": 128, **changes})


def following(store, run, sites):
    """The rows of the batches after a run's last, by numpy."""
    batches = store.batches(run.batch_size, sites=sites, seed=run.data_seed, start_step=run.steps)
    taken = list(itertools.islice(batches, LargestActivations().batches(run.sizes)))
    batches.close()
    return {site: np.concatenate([np.asarray(batch[site], np.float64) for batch in taken]) for site in sites}


@pytest.mark.slow
def test_it_is_the_largest_of_the_released_autoencoder_over_the_batches_that_follow(small):
    """In raw units, of an autoencoder, a transcoder and a crosscoder; and on a mesh that splits the latents."""
    runs = [config(), config(site_out="y", skip=True), config(("x", "w"))]
    autoencoders, _ = sae.train(runs, small)
    rows = following(small, runs[0], ["x", "w"])
    for autoencoder, run in zip(autoencoders, runs, strict=True):
        x = np.stack([rows[site] for site in run.sites], axis=1)
        W = np.asarray(autoencoder.W_enc, np.float64).reshape(len(run.sites), 32, 64)
        z = np.einsum("bla,laz->bz", x, W) + np.asarray(autoencoder.b_enc, np.float64)
        want = np.where(z > np.asarray(autoencoder.threshold), z, 0.0).max(axis=0)
        assert autoencoder.largest.tokens == 4 * 128
        np.testing.assert_allclose(autoencoder.largest.values, want, rtol=1e-4, atol=1e-5)
        assert (want > 0).sum() > 8


@pytest.mark.slow
def test_a_mesh_that_splits_the_latents_records_the_same(small, meshes):
    for shape in ((1, 1), (2, 4)):
        (one,), _ = sae.train(config(seed=1), small, meshes(*shape))
        x = following(small, config(), ["x"])["x"]
        want = np.asarray(one.encode(x)).max(axis=0)
        np.testing.assert_allclose(one.largest.values, want, rtol=1e-4, atol=1e-4)


def test_a_finished_run_records_the_same_again(small, tmp_path):
    (first,), _ = sae.train(config(), small, checkpoint_dir=tmp_path / "c")
    (again,), _ = sae.train(config(), small, checkpoint_dir=tmp_path / "c")
    assert first.largest == again.largest


def test_so_many_batches_as_are_a_tenth_of_the_run():
    assert LargestActivations().batches(config(steps=400).sizes) == 40
    assert LargestActivations().batches(config(steps=3).sizes) == 1
    assert LargestActivations().batches(sae.gemma_scope("x", 64, 1_000_000).sizes) == 64  # 2^18 tokens
