"""Llamascopium's folders are read as it computes in training: numpy normalises, encodes, decodes and denormalises."""

import json

import numpy as np
import pytest
import safetensors.numpy

import sae
from tests.sae import outlines

A, Z, L, K = 6, 16, 3, 4
RNG = np.random.default_rng(17)
HOOKS = "blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"
SITES = "layer_8/mlp_normed", "layer_8/mlp_out"


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(7, A)


def folder(path, tensors, norms, **config):
    path.mkdir(parents=True, exist_ok=True)
    scalars = {f"dataset_average_activation_norm.{hook}": np.float32(norm) for hook, norm in norms.items()}
    safetensors.numpy.save_file(
        tensors | {n: np.array(v) for n, v in scalars.items()}, path / "sae_weights.safetensors"
    )
    config = {"sae_type": "sae", "d_model": A, "expansion_factor": Z / A, "dtype": "torch.float32"} | config
    (path / "config.json").write_text(json.dumps(config))


def largest(f, k):
    out = np.zeros_like(f)
    for row, kept in enumerate(np.argsort(-f, axis=1, kind="stable")[:, :k]):
        out[row, kept] = f[row, kept]
    return out


@pytest.mark.parametrize("norm_activation", ["dataset-wise", "inference"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_its_normalisations_are_folded(tmp_path, act_fn, scaled, norm_activation):
    t = {"W_E": normal(A, Z), "b_E": normal(Z), "W_D": normal(Z, A), "b_D": normal(A)}
    if act_fn == "jumprelu":
        t["activation_function.log_jumprelu_threshold"] = normal(Z)
    norms = {HOOKS[0]: 1.7, HOOKS[1]: 0.4}
    facts = {"act_fn": act_fn, "top_k": K, "norm_activation": norm_activation, "sparsity_include_decoder_norm": scaled}
    folder(tmp_path, t, norms, hook_point_in=HOOKS[0], hook_point_out=HOOKS[1], **facts)
    f_in, f_out = (np.sqrt(A) / norm if norm_activation == "dataset-wise" else 1.0 for norm in norms.values())
    pre = (X * f_in) @ t["W_E"] + t["b_E"]
    scores = pre * (np.linalg.norm(t["W_D"], axis=1) if scaled else 1)
    if act_fn == "topk":
        active = largest(np.maximum(scores, 0), K) > 0
    else:
        active = scores > (np.exp(t["activation_function.log_jumprelu_threshold"]) if act_fn == "jumprelu" else 0)
    f = pre * active
    loaded = sae.load(tmp_path)
    np.testing.assert_allclose(loaded(X), (f @ t["W_D"] + t["b_D"]) / f_out, rtol=1e-4, atol=1e-4)
    want = f / f_in  # in the units of x W_E
    if act_fn == "topk":  # whose latents are those that are compared
        want = want * (np.linalg.norm(t["W_D"], axis=1) if scaled else 1)
    np.testing.assert_allclose(loaded.encode(X), want, rtol=1e-4, atol=1e-4)
    assert (loaded.info.site, loaded.info.site_out, loaded.info.model) == (*SITES, "unknown")
    outlines.check(tmp_path)


@pytest.mark.parametrize("scaled", [True, False])
def test_its_cross_layer_transcoders(tmp_path, scaled):
    t = {"W_E": normal(L, A, Z), "b_E": normal(L, Z), "activation_function.log_jumprelu_threshold": normal(L, Z)}
    for target in range(L):
        t |= {f"W_D.{target}": normal(target + 1, Z, A), f"b_D.{target}": normal(A)}
    into = [f"blocks.{layer}.hook_resid_mid" for layer in range(L)]
    out = [f"blocks.{layer}.hook_mlp_out" for layer in range(L)]
    norms = {hook: 0.5 + i for i, hook in enumerate(into + out)}
    facts = {"hook_points_in": into, "hook_points_out": out, "sparsity_include_decoder_norm": scaled}
    folder(tmp_path, t, norms, sae_type="clt", act_fn="jumprelu", **facts)
    (tmp_path / "lm_config.json").write_text(json.dumps({"model_name": "google/gemma-2-2b"}))
    x = normal(5, L, A)
    scale = np.sqrt(A) / np.array(list(norms.values()))
    pre = np.einsum("bla,laz->blz", x * scale[:L, None], t["W_E"]) + t["b_E"]
    squares = np.zeros((L, Z))
    for source in range(L):
        for target in range(source, L):
            squares[source] += (t[f"W_D.{target}"][source] ** 2).sum(axis=1)
    active = pre * (np.sqrt(squares) if scaled else 1) > np.exp(t["activation_function.log_jumprelu_threshold"])
    f = pre * active
    y = np.stack(
        [
            sum(f[:, source] @ t[f"W_D.{target}"][source] for source in range(target + 1)) + t[f"b_D.{target}"]
            for target in range(L)
        ],
        axis=1,
    )
    loaded = sae.load(tmp_path)
    np.testing.assert_allclose(loaded.encode(x).reshape(5, L, Z), f / scale[:L, None], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loaded(x), y / scale[L:, None], rtol=1e-4, atol=1e-4)
    assert loaded.info.model == "gemma2-2b" and loaded.info.site[2] == "layer_2/resid_mid"
    outlines.check(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_activation": "token-wise"}, "inputs normalised 'token-wise' are not read: no weights can do that"),
        ({"act_fn": "batchtopk"}, "the act_fn 'batchtopk' of a sae is not read; relu, jumprelu, topk are"),
        ({"sae_type": "lorsa"}, "the sae_type 'lorsa' is not read; sae and clt are"),
        ({"use_glu_encoder": True}, "use_glu_encoder is not read"),
        ({"act_fn": "topk", "top_k": 2.5}, "top_k must be a whole number above 0, got 2.5"),
        (
            {"hook_point_out": "other"},
            r"dataset_average_activation_norm.other, .* must be one number above 0, got nothing",
        ),
        ({"act_fn": "jumprelu"}, "it has no activation_function.log_jumprelu_threshold"),
    ],
)
def test_what_of_it_is_not_read_is_refused_by_name(tmp_path, config, message):
    t = {"W_E": normal(A, Z), "b_E": normal(Z), "W_D": normal(Z, A), "b_D": normal(A)}
    folder(tmp_path, t, dict.fromkeys(HOOKS, 2.0), **{"hook_point_in": HOOKS[0], "hook_point_out": HOOKS[1]} | config)
    with pytest.raises(ValueError, match=message):
        sae.load(tmp_path)


def test_it_is_told_from_saelens_whose_weights_have_the_same_name(tmp_path):
    t = {"W_E": normal(A, Z), "b_E": normal(Z), "W_D": normal(Z, A), "b_D": normal(A)}
    folder(tmp_path, t, dict.fromkeys(HOOKS, 2.0), hook_point_in=HOOKS[0], hook_point_out=HOOKS[1])
    loaded = sae.load(tmp_path / "sae_weights.safetensors")
    assert isinstance(loaded, sae.ReLU) and "llamascopium" in loaded.info.training
    with pytest.raises(
        ValueError, match=r"has an autoencoder in Llamascopium's format, .*which this version reads and does not remove"
    ):
        sae.save(loaded, tmp_path, format="saelens")
    sae.save(loaded, tmp_path / "ours", format="saelens")
    assert (tmp_path / "ours" / "cfg.json").exists() and isinstance(sae.load(tmp_path / "ours"), sae.ReLU)
