"""What the benchmark of evaluation measures by."""

import numpy as np

from experiments.benchmarks import evaluation_cost
from tests.sae.examples import SITE


def test_the_passes_go_from_the_text_to_the_site_and_three_times_from_there_to_all_logits(tiny, monkeypatch):
    tokens, shapes = np.full((4, 8), 5, np.int32), []
    original = evaluation_cost.logits_with

    def seen(*arguments):
        shapes.append(original(*arguments).shape)
        return original(*arguments)

    monkeypatch.setattr(evaluation_cost, "logits_with", seen)
    evaluation_cost.passes(tiny, tokens, SITE, 2)
    assert shapes == [(2, 8, 4096)] * 6
    autoencoder = evaluation_cost.drawn(tiny, "layer_1/attn_z", 16, seed=0)
    assert autoencoder.W_dec.shape == (16, 192) and autoencoder.info.site == "layer_1/attn_z"


def test_memory_is_the_peak_since_it_was_forgotten():
    large = np.ones(2**25)  # 256 MiB
    del large
    evaluation_cost.forget_peak()
    start = evaluation_cost.resident("VmHWM")
    assert start < evaluation_cost.resident("VmRSS") + 2**26
    held = np.ones(2**24)
    assert 0.5 * held.nbytes < evaluation_cost.resident("VmHWM") - start < 2 * held.nbytes
