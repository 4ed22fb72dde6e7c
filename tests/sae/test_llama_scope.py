"""Llama Scope's folders are read as its authors' code computes: numpy normalises, encodes, decodes and denormalises."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import sae
from tests.sae import outlines

A, Z = 6, 16
RNG = np.random.default_rng(23)
HOOKS = "blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"


def write(path, norms=(1.7, 0.4), **config):
    (path / "checkpoints").mkdir(parents=True)
    shapes = {"encoder.weight": (Z, A), "encoder.bias": (Z,), "decoder.weight": (A, Z), "decoder.bias": (A,)}
    tensors = {name: RNG.normal(size=shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    stored = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(stored, path / "checkpoints" / "final.safetensors")
    facts = {"d_model": A, "d_sae": Z, "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise"}
    facts |= {"hook_point_in": HOOKS[0], "hook_point_out": HOOKS[1]}
    facts["dataset_average_activation_norm"] = dict(zip(("in", "out"), norms, strict=True))
    (path / "hyperparams.json").write_text(json.dumps(facts | config))
    return stored


@pytest.mark.parametrize("norms", [(1.7, 0.4), (2.0, 2.0)])
def test_normalisations_are_folded(tmp_path, norms):
    folder = tmp_path / "Llama3_1-8B-Base-L8M-8x"
    t = write(folder, norms)
    x = RNG.normal(size=(9, A)).astype(np.float32)
    f_in, f_out = np.sqrt(A) / norms[0], np.sqrt(A) / norms[1]
    z = (x * f_in) @ t["encoder.weight"].T + t["encoder.bias"]
    f = np.where(z > 0.3 * f_in, z, 0)
    autoencoder = sae.load(folder)
    np.testing.assert_allclose(autoencoder.encode(x), f / f_in, rtol=2e-5, atol=2e-6)
    want = (f @ t["decoder.weight"].T + t["decoder.bias"]) / f_out
    np.testing.assert_allclose(autoencoder(x), want, rtol=2e-5, atol=2e-5)
    info = autoencoder.info
    assert (info.model, info.site, info.site_out) == (
        "meta-llama/Llama-3.1-8B",
        "layer_8/mlp_normed",
        "layer_8/mlp_out",
    )
    outlines.check(folder)


def test_without_a_bias_of_the_decoder_and_in_units_of_inference(tmp_path):
    t = write(tmp_path / "a", norm_activation="inference", use_decoder_bias=False)
    autoencoder = sae.load(tmp_path / "a")
    np.testing.assert_array_equal(autoencoder.b_dec, np.zeros(A))
    np.testing.assert_array_equal(autoencoder.W_dec, t["decoder.weight"].T)
    np.testing.assert_array_equal(autoencoder.b_enc, t["encoder.bias"])
    assert autoencoder.info.model == "unknown"  # the folder's name does not say it


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"act_fn": "topk"}, "act_fn 'topk' is not read"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold must be a number, at least 0; got -1"),
        ({"norm_activation": "token-wise"}, "'token-wise' are not read"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "must be numbers above 0, got 0, 6"),
        ({"use_glu_encoder": True}, "use_glu_encoder is not read"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, config, message):
    write(tmp_path / "a", **config)
    with pytest.raises(ValueError, match=message):
        sae.load(tmp_path / "a")


def test_missing_weights_are_named(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(ValueError, match=r"final\.safetensors is no file, or is missing"):
        sae.load(tmp_path / "a")
