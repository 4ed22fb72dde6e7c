import numpy as np
import pytest

import mishax_lite
from sae.evaluation import latents
from sae.text import is_text
from tests.sae.examples import SITE, autoencoder_for, sequences


def test_statistics_equal_a_direct_count(tiny):
    tokens, autoencoder = sequences(tiny, 37), autoencoder_for(tiny, 192)
    found = latents.latent_statistics(autoencoder, tiny, tokens, SITE, examples=3)
    text = is_text(tokens, tiny.tokenizer.special_ids)
    _, captured = mishax_lite.capture(tiny.apply, [SITE])(tokens)
    f = np.asarray(autoencoder.encode(captured[SITE])) * text[..., None]
    assert found.tokens == text.sum()
    assert np.abs(found.fired - (f > 0).sum(axis=(0, 1))).max() <= 1  # a value at its threshold may fall either way
    np.testing.assert_allclose(found.largest, f.max(axis=(0, 1)), rtol=1e-3)
    np.testing.assert_array_equal(found.histogram.sum(axis=1), found.fired)
    peaks = -np.sort(-f.max(axis=1), axis=0)[:3].T  # [Z, 3]
    got = np.take_along_axis(found.example_activation, np.maximum(found.example_peak, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(got, peaks, rtol=1e-3, atol=1e-3)
    for z in range(0, 576, 50):
        for e in range(3):
            row = found.example_sequence[z, e]
            if row >= 0:
                np.testing.assert_allclose(found.example_activation[z, e], f[row, :, z], rtol=1e-3, atol=1e-3)
        inside = f[..., z][f[..., z] > 0]
        want, _ = np.histogram(inside, bins=latents.BINS, range=(0, found.histogram_range[z]))
        assert np.abs(want - found.histogram[z]).sum() <= 2  # values on an edge


def test_logit_effects_are_the_derivative_of_the_uncapped_logits(tiny):
    """For `resid_post` of the last layer, the effect of a small step along a row, times the norm's division."""
    autoencoder = autoencoder_for(tiny, 192, "layer_5/resid_post")
    effects = latents.logit_effects(autoencoder, tiny, "layer_5/resid_post")
    row = autoencoder.W_dec[7] * (1.0 + tiny.params["final_norm"]["scale"])
    want = np.asarray(tiny.params["embedder"]["input_embedding"] @ row)
    np.testing.assert_allclose(effects[7], want - want.mean(), atol=1e-4)


def test_logit_effects_of_heads_go_through_the_output_projection(tiny):
    autoencoder = autoencoder_for(tiny, 192, "layer_4/attn_z")
    effects = latents.logit_effects(autoencoder, tiny, "layer_4/attn_z")
    block = tiny.params["layer_4"]
    heads = np.asarray(autoencoder.W_dec[3]).reshape(4, 48)
    out = sum(heads[n] @ np.asarray(block["attn"]["attn_vec_einsum"]["w"][n]) for n in range(4))
    out = (
        out
        * (1 + np.asarray(block["post_attention_norm"]["scale"]))
        * (1 + np.asarray(tiny.params["final_norm"]["scale"]))
    )
    want = np.asarray(tiny.params["embedder"]["input_embedding"]) @ out
    np.testing.assert_allclose(effects[3], want - want.mean(), atol=1e-3)
    with pytest.raises(ValueError, match="does not write to the residual stream"):
        latents.logit_effects(autoencoder, tiny, "layer_4/mlp_in")


def test_a_histogram_doubles_its_range():
    histogram = np.zeros((2, latents.BINS), np.int64)
    histogram[:, :4] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    reach = np.array([1.0, 1.0])
    latents._grow(histogram, reach, np.array([3.5, 0.5]))
    np.testing.assert_array_equal(reach, [4.0, 1.0])
    np.testing.assert_array_equal(histogram[0, :2], [10, 0])
    np.testing.assert_array_equal(histogram[1, :4], [5, 6, 7, 8])


def test_top_tokens_are_the_ends_of_the_logit_effects(tiny, monkeypatch):
    autoencoder = autoencoder_for(tiny, 192)
    effects = latents.logit_effects(autoencoder, tiny, "layer_5/resid_post")
    monkeypatch.setattr(latents, "_EFFECTS_HELD", 7 * 4096)  # in eight parts, the last one short
    top = latents.top_tokens(autoencoder, tiny, "layer_5/resid_post", count=5)
    rising = np.argsort(effects, axis=1)
    np.testing.assert_array_equal(top.promoted, rising[:, ::-1][:, :5])
    np.testing.assert_array_equal(top.suppressed, rising[:, :5])
    np.testing.assert_allclose(top.promotion, np.sort(effects, axis=1)[:, ::-1][:, :5], atol=1e-6)
    np.testing.assert_allclose(top.suppression, np.sort(effects, axis=1)[:, :5], atol=1e-6)
