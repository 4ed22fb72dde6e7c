"""OpenAI's torch files are read as OpenAI computes them: by numpy, from its model's definition."""

import numpy as np
import pytest

import sae
from sae.formats.files import outline
from tests.sae import outlines, torch_pickles

A, Z, K = 6, 16, 3
RNG = np.random.default_rng(13)
X = (3 + 5 * RNG.normal(size=(7, A))).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def theirs(file, **entries):
    t = {
        "pre_bias": normal(A),
        "latent_bias": normal(Z),
        "encoder.weight": normal(Z, A),
        "decoder.weight": normal(A, Z),
    }
    statistics = {"stats_last_nonzero": np.zeros(Z, np.int64), "latents_mean_square": np.zeros(Z, np.float32)}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch_pickles.save(file, t | statistics | entries, transposed=("decoder.weight",))
    return t


TOPK = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def test_topk_normalises_each_token_and_gives_it_its_moments_back(tmp_path):
    file = tmp_path / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders" / "8.pt"
    t = theirs(file, **TOPK)
    x = X * np.float32([1, 1, 1, 1, 1, 1, 1e-4])[:, None]  # where 1e-5 shows, which is added on the way in alone
    mean, deviation = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True, ddof=1)
    pre = ((x - mean) / (deviation + 1e-5) - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    z = np.zeros_like(pre)
    for row, kept in enumerate(np.argsort(-pre, axis=1)[:, :K]):
        z[row, kept] = np.maximum(pre[row, kept], 0)
    out = (z @ t["decoder.weight"].T + t["pre_bias"]) * deviation + mean
    loaded = sae.load(file)
    np.testing.assert_allclose(loaded.encode(x), z * deviation, rtol=1e-4, atol=1e-7)  # in raw units
    np.testing.assert_allclose(loaded(x) / deviation, out / deviation, rtol=1e-4, atol=1e-4)
    assert (loaded.info.model, loaded.info.site, loaded.k) == ("gpt2-small", "layer_8/resid_post", K)
    # What a latent adds to an activation is its own row of W_dec, as of every form.
    without = out - deviation * z[:, [5]] @ t["decoder.weight"].T[[5]]
    f = np.array(loaded.encode(x))
    f[:, 5] = 0
    np.testing.assert_allclose(loaded(x) + loaded.decode(f) - loaded.decode(loaded.encode(x)), without, atol=1e-3)
    outlines.check(file)


@pytest.mark.parametrize("entries", [{}, {"activation": "ReLU", "activation_state_dict": {}}])
def test_relu_subtracts_and_adds_the_bias_and_normalises_nothing(tmp_path, entries):
    file = tmp_path / "mlp_post_act" / "autoencoders" / "3.pt"
    t = theirs(file, **entries)
    f = np.maximum((X - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"], 0)
    loaded = sae.load(file.parent)  # the only one in its folder
    np.testing.assert_allclose(loaded.encode(X), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loaded(X), f @ t["decoder.weight"].T + t["pre_bias"], rtol=1e-4, atol=1e-4)
    outlines.check(file.parent)
    assert isinstance(loaded, sae.ReLU) and loaded.info.site == "layer_3/mlp_hidden"
    theirs(file.with_name("10.pt"))
    with pytest.raises(ValueError, match=r"autoencoders has 2 autoencoders, 3.pt, 10.pt: name one"):
        sae.load(file.parent)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"activation": "Identity"}, "the activation 'Identity' is not read; ReLU and TopK are"),
        (TOPK | {"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "'Identity' after TopK is not read"),
        (TOPK | {"activation_state_dict": {"k": 2.5}}, "k must be a whole number above 0, got 2.5"),
        ({"pre_bias": "text"}, "it has no tensor pre_bias; it holds pre_bias, latent_bias"),
    ],
)
def test_what_of_openais_is_not_read_is_refused_by_name(tmp_path, entries, message):
    theirs(tmp_path / "0.pt", **entries)
    for read in (sae.load, outline):
        with pytest.raises(ValueError, match=rf"0\.pt: {message}"):
            read(tmp_path / "0.pt")


def test_a_normed_topk_moves_no_shift_into_its_bias():
    arrays = {"W_enc": normal(A, Z), "b_enc": normal(Z), "W_dec": normal(Z, A), "b_dec": normal(A)}
    with pytest.raises(ValueError, match=r"has no bias that a shift of activations goes into"):
        sae.NormedTopK(**arrays, k=K).shifted(normal(A))
    with pytest.raises(ValueError, match=r"NormedTopK: k is from 1 to the width, 16, got 17"):
        sae.NormedTopK(**arrays, k=17)
    shifted = X + normal(7, 1)  # a constant of each token's changes nothing but the mean
    ours = sae.NormedTopK(**arrays, k=K)
    np.testing.assert_allclose(ours.encode(shifted), ours.encode(X), rtol=1e-3, atol=1e-3)
