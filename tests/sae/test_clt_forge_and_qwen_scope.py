"""CLT-Forge's and Qwen-Scope's files are read as their projects compute: by numpy, from their definitions."""

import json

import numpy as np
import pytest
import safetensors.numpy

import sae
from tests.sae import outlines, torch_pickles

L, A, Z, K = 3, 4, 8, 3
RNG = np.random.default_rng(19)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(7, L, A)


def clt_forge(folder, decoders, **config):
    folder.mkdir(parents=True, exist_ok=True)
    t = {"W_enc": normal(L, A, Z), "b_enc": normal(L, Z), "log_threshold": normal(L, Z)}
    t |= {"W_dec": normal(decoders, Z, A), "b_dec": normal(decoders, A), "feature_count": np.zeros((L, Z), np.int64)}
    t["estimated_norm_scaling_factor_in"] = np.float32([0.5, 1.5, 2.0])
    t["estimated_norm_scaling_factor_out"] = np.float32([3.0, 0.25, 1.25])
    safetensors.numpy.save_file(t, folder / "clt_weights.safetensors")
    config = {"model_name": "google/gemma-2-2b", "n_layers": L, "d_in": A, "d_latent": Z} | config
    (folder / "clt_cfg.json").write_text(json.dumps(config))
    return t


@pytest.mark.parametrize("cross", [True, False])
def test_clt_forges_factors_are_folded(tmp_path, cross):
    t = clt_forge(tmp_path, L * (L + 1) // 2 if cross else L, cross_layer_decoders=cross)
    x = X * t["estimated_norm_scaling_factor_in"][:, None]
    pre = np.einsum("bla,laz->blz", x, t["W_enc"]) + t["b_enc"]
    f = pre * (pre > np.exp(t["log_threshold"]))
    y, place = np.zeros_like(X), 0
    for source in range(L):
        for target in range(source, L if cross else source + 1):
            y[:, target] += f[:, source] @ t["W_dec"][place] + t["b_dec"][place]
            place += 1
    loaded = sae.load(tmp_path)
    assert isinstance(loaded, sae.CrossLayerTranscoder if cross else sae.TranscoderSet)
    np.testing.assert_allclose(loaded.encode(X).reshape(f.shape), f, rtol=1e-4, atol=1e-5)
    want = y / t["estimated_norm_scaling_factor_out"][:, None]
    np.testing.assert_allclose(loaded(X), want, rtol=1e-4, atol=1e-4)
    assert (loaded.info.model, loaded.info.site[1]) == ("gemma2-2b", "layer_1/mlp_normed")
    outlines.check(tmp_path)


def test_what_of_clt_forges_is_not_read_is_refused_by_name(tmp_path):
    clt_forge(tmp_path, L * (L + 1) // 2, activation_fn="topk")
    with pytest.raises(ValueError, match=r"the activation 'topk' is not read; jumprelu is"):
        sae.load(tmp_path)
    clt_forge(tmp_path, L)
    with pytest.raises(ValueError, match=r"W_dec must be \[6, 8, 4\], got \[3, 8, 4\]"):
        sae.load(tmp_path)
    (tmp_path / "clt_cfg.json").unlink()
    with pytest.raises(ValueError, match=r"has no clt_cfg.json beside it"):
        sae.load(tmp_path)


def qwen_scope(folder, layer, **config):
    folder.mkdir(parents=True, exist_ok=True)
    t = {"W_enc": normal(Z, A), "b_enc": normal(Z), "W_dec": normal(A, Z), "b_dec": normal(A)}
    torch_pickles.save(folder / f"layer{layer}.sae.pt", t)
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "topk_sae", "hook_point": "resid_post"} | config))
    return t


@pytest.mark.parametrize("config", [{"k": K, "base_model": "Qwen/Qwen3-8B-Base"}, {}])
def test_qwen_scopes_layers_are_read_one_by_one(tmp_path, config):
    folder = tmp_path / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}"
    every = {layer: qwen_scope(folder, layer, **config) for layer in (0, 2, 10)}
    x = 3 * np.abs(X[:, 0])
    for layer, t in every.items():
        pre = x @ t["W_enc"].T + t["b_enc"]
        f = np.where(pre >= np.sort(pre, axis=1)[:, -K, None], np.maximum(pre, 0), 0)
        loaded = sae.load(folder / f"layer{layer}.sae.pt")
        np.testing.assert_allclose(loaded.encode(x), f, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(loaded(x), f @ t["W_dec"].T + t["b_dec"], rtol=1e-4, atol=1e-4)
        info = loaded.info
        assert (loaded.k, info.model, info.site) == (K, "Qwen/Qwen3-8B-Base", f"layer_{layer}/resid_post")
    outlines.check(folder / "layer2.sae.pt")
    with pytest.raises(ValueError, match=r"has 3 autoencoders, layer0.sae.pt, layer2.sae.pt, layer10.sae.pt: name one"):
        sae.load(folder)


def test_what_of_qwen_scopes_is_not_read_is_refused_by_name(tmp_path):
    for config, message in (
        ({}, "k must be a whole number above 0, got None"),
        ({"k": K, "model_type": "relu_sae"}, "the model_type 'relu_sae' is not read; topk_sae is"),
        ({"k": K, "hook_point": "mlp_out"}, "the hook_point 'mlp_out' is not read; resid_post is"),
        ({"k": Z + 1, "base_model": "m"}, f"k is from 1 to the width, {Z}, got {Z + 1}"),
    ):
        qwen_scope(tmp_path, 0, **config)
        with pytest.raises(ValueError, match=message):
            sae.load(tmp_path)
