"""`short_run` finds a dictionary that is known, with each penalty and each kind of threshold."""

import numpy as np
import pytest

import sae
from tests.sae import examples
from tests.sae.trainer.dictionaries import best_cosines, known_dictionary, mean_l0

pytestmark = pytest.mark.slow
FEATURES, DIMENSIONS = 1024, 256
VARIANTS = {
    "quadratic, raw": {"penalty": "quadratic", "log_threshold": False},
    "quadratic, log": {"penalty": "quadratic", "log_threshold": True},
    "linear, raw": {"penalty": "linear", "log_threshold": False},
    "linear, log": {"penalty": "linear", "log_threshold": True},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
    x, dictionary, l0 = known_dictionary(100_000, FEATURES, DIMENSIONS)
    store = examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=50_000)
    runs = [
        sae.short_run("x", 2 * FEATURES, 1200, batch_size=512, l0_target=float(l0), **variant)
        for variant in VARIANTS.values()
    ]
    autoencoders, history = sae.train(runs, store, one_device)
    return x, dictionary, l0, dict(zip(VARIANTS, autoencoders, strict=True)), history


@pytest.mark.parametrize("name", VARIANTS)
def test_it_recovers_a_known_dictionary(trained, name):
    x, dictionary, l0, autoencoders, history = trained
    cosine = best_cosines(dictionary, autoencoders[name]).mean()
    found = mean_l0(autoencoders[name], x[:5000])
    print(f"{name}: mean best cosine {cosine:.3f}, L0 {found:.2f} (true {l0:.2f})")
    assert cosine >= 0.95
    assert abs(found - l0) <= 0.1 * l0
    mine = [record for record in history if record["run"] == list(VARIANTS).index(name)]
    assert mine[0]["fvu"] > 5 * mine[-1]["fvu"]


def test_a_dictionary_is_not_found_without_training(trained):
    _, dictionary, _, autoencoders, _ = trained
    random = np.random.default_rng(1).normal(size=autoencoders["linear, raw"].W_dec.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert (dictionary @ random.T).max(axis=1).mean() < 0.4
