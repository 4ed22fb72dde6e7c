"""Files of other projects are read as their projects compute, and ours are such files: by numpy, from their texts."""

import doctest
import json

import numpy as np
import pytest
import safetensors.numpy

import sae
from sae.formats import folding
from sae.formats.files import main_files
from tests.sae import outlines, torch_pickles

A, Z, K = 6, 16, 3
RNG = np.random.default_rng(3)
X = RNG.normal(size=(7, A)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def relu(z):
    return np.maximum(z, 0)


def largest(f, k=K):
    out = np.zeros_like(f)
    for row, kept in enumerate(np.argsort(-f, axis=1, kind="stable")[:, :k]):
        out[row, kept] = f[row, kept]
    return out


def their_tensors(*extra, out=A):
    shapes = {"W_enc": (A, Z), "b_enc": (Z,), "W_dec": (Z, out), "b_dec": (out,), "W_skip": (out, A)}
    shapes |= {name: (Z,) for name in ("threshold", "b_gate", "b_mag", "r_mag")}
    tensors = {name: normal(*shapes[name]) for name in ("W_enc", "W_dec", "b_dec", *extra)}
    return tensors | {"threshold": np.abs(tensors["threshold"])} if "threshold" in tensors else tensors


def saelens(folder, architecture, tensors, /, **config):
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.5.1", "model_name": "google/gemma-2-2b", "hook_name": "blocks.3.hook_mlp_out"}
    config = {"architecture": architecture, "d_in": A, "d_sae": Z, "metadata": metadata} | config
    (folder / "cfg.json").write_text(json.dumps(config))
    return sae.load(folder)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("subtract", [True, False, None])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_saelens_autoencoders_compute_as_saelens_does(tmp_path, architecture, subtract):
    extra = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    t = their_tensors(*extra)
    config = {} if subtract is None else {"apply_b_dec_to_input": subtract}
    config |= {"k": K} if architecture == "topk" else {}
    loaded = saelens(tmp_path, architecture, t, **config)
    x = X if subtract is False else X - t["b_dec"]  # true where the config does not say
    z = x @ t["W_enc"] + t.get("b_enc", 0)
    if architecture == "gated":
        f = (z + t["b_gate"] > 0) * relu(x @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])
    else:
        f = {"standard": relu(z), "topk": largest(relu(z)), "jumprelu": relu(z) * (z > t.get("threshold", 0))}[
            architecture
        ]
    close(loaded.encode(X), f)
    close(loaded(X), f @ t["W_dec"] + t["b_dec"])
    assert (loaded.info.model, loaded.info.site) == ("gemma2-2b", "layer_3/mlp_out")


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_skip_transcoder"])
def test_saelens_transcoders_subtract_nothing_and_add_the_skip_transposed(tmp_path, architecture):
    extra = (
        "b_enc",
        *(["threshold"] if "jump" in architecture else []),
        *(["W_skip"] if "skip" in architecture else []),
    )
    t = their_tensors(*extra, out=5)
    loaded = saelens(tmp_path, architecture, t, d_out=5)
    z = X @ t["W_enc"] + t["b_enc"]
    f = relu(z) * (z > t.get("threshold", 0))
    close(loaded(X), f @ t["W_dec"] + t["b_dec"] + (X @ t["W_skip"].T if "W_skip" in t else 0))


@pytest.mark.parametrize("architecture", ["jumprelu", "jumprelu_transcoder"])
def test_saelens_thresholds_below_0_are_0(tmp_path, architecture):
    """Its training moves them there; its ReLU comes before the gate."""
    t = their_tensors("b_enc", "threshold")
    t["threshold"][::2] *= -1
    loaded = saelens(tmp_path, architecture, t, apply_b_dec_to_input=False, d_out=A)
    z = X @ t["W_enc"] + t["b_enc"]
    close(loaded.encode(X), relu(z) * (z > t["threshold"]))
    assert (loaded.threshold[::2] == 0).all() and (loaded.threshold[1::2] > 0).all()


def test_saelens_topk_scaled_by_the_decoders_norms(tmp_path):
    t = their_tensors("b_enc")
    loaded = saelens(tmp_path, "topk", t, k=K, rescale_acts_by_decoder_norm=True)
    norms = np.linalg.norm(t["W_dec"], axis=1)
    f = largest(relu(((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms))
    close(loaded.encode(X), f)
    close(loaded(X), (f / norms) @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("rescaled", [False, True])
def test_saelens_topk_of_normalised_tokens(tmp_path, rescaled):
    t = their_tensors("b_enc")
    words = {"normalize_activations": "layer_norm", "rescale_acts_by_decoder_norm": rescaled}
    loaded = saelens(tmp_path, "topk", t, k=K, **words)
    mean, deviation = X.mean(axis=1, keepdims=True), X.std(axis=1, keepdims=True, ddof=1)
    norms = np.linalg.norm(t["W_dec"], axis=1) if rescaled else 1
    f = largest(relu((((X - mean) / (deviation + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms))
    close(loaded.encode(X), f * deviation)  # in raw units
    close(loaded(X), (f / norms @ t["W_dec"] + t["b_dec"]) * deviation + mean)
    assert isinstance(loaded, sae.NormedTopK)


def test_saelens_inputs_scaled_by_a_constant_are_folded(tmp_path):
    t, scale = their_tensors("b_enc"), 2.5
    with pytest.raises(ValueError, match=r"scaled by a constant .*no activation_scaler.json beside it has"):
        saelens(tmp_path, "standard", t, normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    f = relu((scale * X - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    close(sae.load(tmp_path)(X), (f @ t["W_dec"] + t["b_dec"]) / scale)


def test_saelens_configs_of_before_version_6(tmp_path):
    t = their_tensors("b_enc")
    old = {"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small", "metadata": None}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "architecture": "standard"}
    loaded = saelens(tmp_path, "standard", t, **old)
    close(loaded.encode(X), largest(relu((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"])))
    assert (loaded.info.model, loaded.info.site) == ("gpt2-small", "layer_8/resid_pre")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal"}, "the architecture 'temporal' is not read; standard, topk"),
        ({"normalize_activations": "layer_norm"}, "inputs normalised by 'layer_norm' are not read"),
        ({"architecture": "topk"}, "k must be a whole number above 0, got None"),
        ({"architecture": "gated"}, "it has no b_gate, r_mag, b_mag; it holds"),
        ({"activation_fn": "tanh-relu"}, "the activation function 'tanh-relu' is not read"),
    ],
)
def test_what_of_saelens_is_not_read_is_refused_by_name(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        saelens(tmp_path, "standard", their_tensors("b_enc"), **config)


def ours(kind, transcoder=False, **changes):
    t = their_tensors("b_enc")
    skip = {"W_skip": normal(A, A)} if "skip" in kind else {}
    sites = ("layer_3/mlp_in", "layer_3/mlp_out") if transcoder else ("layer_3/resid_post",) * 2
    more = {"info": sae.Info("gemma3-1b", *sites)} | skip | changes
    match kind.split("-")[0]:
        case "relu":
            return sae.ReLU(**t, **more)
        case "topk":
            return sae.TopK(**t, k=K, **more)
        case "jumprelu":
            return sae.JumpReLU(**t, threshold=np.abs(normal(Z)), **more)
        case "gated":
            del t["b_enc"]
            return sae.Gated(**t, b_gate=normal(Z), r_mag=normal(Z), b_mag=normal(Z), **more)


WRITTEN = [
    ("saelens", "relu", False),
    ("saelens", "relu-skip", True),
    ("saelens", "topk", False),
    ("saelens", "gated", False),
    ("saelens", "jumprelu", False),
    ("saelens", "jumprelu-skip", True),
    ("saelens", "jumprelu", True),
    ("sparsify", "topk", False),
    ("sparsify", "topk-skip", True),
    ("gemma_scope_2", "jumprelu", False),
    ("gemma_scope_2", "jumprelu-skip", True),
    ("mishax_lite", "gated", False),
    ("mishax_lite", "topk-skip", True),
]


@pytest.mark.parametrize(("format", "kind", "transcoder"), WRITTEN)
def test_what_is_saved_is_loaded_with_all_that_is_known(tmp_path, format, kind, transcoder):
    autoencoder = ours(kind, transcoder)
    sae.save(autoencoder, tmp_path, format=format)
    loaded = sae.load(tmp_path)
    assert type(loaded) is type(autoencoder) and loaded.info == autoencoder.info
    for name, array in autoencoder.arrays().items():
        if (format, name) == ("sparsify", "b_enc"):
            close(getattr(loaded, name), array)  # b_dec is folded in, and out again
        else:
            np.testing.assert_array_equal(getattr(loaded, name), array)
    (tmp_path / "info.json").unlink()
    if format in ("saelens", "gemma_scope_2"):  # by their own configs
        sites = (loaded.info.site, loaded.info.site_out)
        read = sae.load(tmp_path).info
        assert read.model == "gemma3-1b" and (transcoder or (read.site, read.site_out) == sites)


def test_sparsify_files_are_computed_as_sparsify_does(tmp_path):
    for transcoder, kind in ((False, "topk"), (True, "topk-skip")):
        autoencoder = ours(kind, transcoder)
        sae.save(autoencoder, tmp_path / kind, format="sparsify")
        t = safetensors.numpy.load_file(tmp_path / kind / "sae.safetensors")
        config = json.loads((tmp_path / kind / "cfg.json").read_text())
        assert (config["k"], config["transcode"], config["skip_connection"]) == (K, transcoder, transcoder)
        x = X if config["transcode"] else X - t["b_dec"]
        f = largest(relu(x @ t["encoder.weight"].T + t["encoder.bias"]))
        out = f @ t["W_dec"] + t["b_dec"] + (X @ t["W_skip"].T if "W_skip" in t else 0)
        close(autoencoder(X), out)


def test_biases_are_folded_as_in_float64(tmp_path):
    """The parts of the bias cancel, where sums in float32 keep three digits."""
    rng, dim, width = np.random.default_rng(0), 2304, 64
    t = {
        "W_enc": rng.normal(size=(dim, width)),
        "W_dec": rng.normal(size=(width, dim)),
        "b_dec": 30 * rng.normal(size=dim),
    }
    t = {name: value.astype(np.float32) for name, value in t.items()}
    shift = np.float64(t["b_dec"]) @ np.float64(t["W_enc"])
    t |= {name: (shift + rng.normal(size=width)).astype(np.float32) for name in ("b_enc", "b_gate", "b_mag")}
    r_mag = np.full(width, 0.25, np.float32)
    gain = np.float64(np.exp(r_mag))
    topk = saelens(
        tmp_path / "a", "topk", {n: t[n] for n in ("W_enc", "W_dec", "b_dec", "b_enc")}, k=K, d_in=dim, d_sae=width
    )
    weights = {n: t[n] for n in ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag")} | {"r_mag": r_mag}
    gated = saelens(tmp_path / "b", "gated", weights, d_in=dim, d_sae=width)
    theirs = {
        "encoder.weight": t["W_enc"].T.copy(),
        "encoder.bias": t["b_enc"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }
    (tmp_path / "c").mkdir()
    safetensors.numpy.save_file(theirs, tmp_path / "c" / "sae.safetensors")
    (tmp_path / "c" / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K}))
    sparsify = sae.load(tmp_path / "c")
    for got, name, factor in (
        (topk.b_enc, "b_enc", 1),
        (sparsify.b_enc, "b_enc", 1),
        (gated.b_gate, "b_gate", 1),
        (gated.b_mag, "b_mag", gain),
    ):
        np.testing.assert_allclose(got, t[name] - factor * shift, rtol=1e-7)
    sae.save(sparsify, tmp_path / "d", format="sparsify")
    back = safetensors.numpy.load_file(tmp_path / "d" / "sae.safetensors")["encoder.bias"]
    np.testing.assert_allclose(back, np.asarray(sparsify.b_enc) + shift, rtol=1e-7)


def test_examples_of_folding_run():
    result = doctest.testmod(folding, extraglobs={"np": np})
    assert result.attempted == 3 and not result.failed


def test_sparsifys_own_folders_say_their_site_by_their_names(tmp_path):
    t = {"encoder.weight": normal(Z, A), "encoder.bias": normal(Z), "W_dec": normal(Z, A), "b_dec": normal(A)}
    folder = tmp_path / "run" / "layers.5"
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(t, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": K, "expansion_factor": 2, "num_latents": 0, "d_in": A}))
    assert sae.load(folder).info is None
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "google/gemma-2-2b"}))
    loaded = sae.load(folder)
    assert (loaded.info.model, loaded.info.site) == ("gemma2-2b", "layer_5/resid_post")
    f = largest(relu((X - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]))
    close(loaded(X), f @ t["W_dec"] + t["b_dec"])
    for config, message in (({"activation": "groupmax"}, "'groupmax' cannot be read"), ({"signed": True}, "signed")):
        (folder / "cfg.json").write_text(json.dumps({"k": K} | config))
        with pytest.raises(ValueError, match=message):
            sae.load(folder)


def gemma_scope_2(folder, config, **extra):
    t = {"w_enc": normal(A, Z), "w_dec": normal(Z, A), "b_enc": normal(Z), "b_dec": normal(A)} | extra
    t["threshold"] = np.abs(normal(Z))
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(t, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return t, sae.load(folder)


def test_gemma_scope_2_transcoders_with_a_skip(tmp_path):
    layer = "model.layers.9.pre_feedforward_layernorm.output", "model.layers.9.post_feedforward_layernorm.output"
    config = {"architecture": "jump_relu", "affine_connection": True, "type": "transcoder", "l0": 20}
    config |= {"model_name": "google/gemma-3-270m-pt", "hf_hook_point_in": layer[0], "hf_hook_point_out": layer[1]}
    t, loaded = gemma_scope_2(tmp_path / "a", config, affine_skip_connection=normal(A, A))
    z = X @ t["w_enc"] + t["b_enc"]
    close(loaded(X), (z * (z > t["threshold"])) @ t["w_dec"] + t["b_dec"] + X @ t["affine_skip_connection"])
    info = loaded.info
    assert (info.model, info.site, info.site_out) == ("gemma3-270m", "layer_9/mlp_in", "layer_9/mlp_out")


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        ("resid_post", ("resid_post",) * 2),
        ("attn_out_all", ("attn_z",) * 2),
        ("mlp_out", ("mlp_out",) * 2),
        ("transcoder_all", ("mlp_in", "mlp_out")),
    ],
)
def test_without_a_config_gemma_scope_2s_folder_says_the_site(tmp_path, kind, sites):
    folder = tmp_path / "models--google--gemma-scope-2-1b-it" / "snapshots" / "0a" / kind / "layer_7_width_16k_l0_small"
    _, loaded = gemma_scope_2(folder, None)
    assert (loaded.info.model, loaded.info.site, loaded.info.site_out) == (
        "gemma3-1b",
        *(f"layer_7/{s}" for s in sites),
    )


LINEAR = {"encoder.weight": (Z, A), "decoder.weight": (A, Z)}
DICTIONARIES = {
    "AutoEncoder": LINEAR | {"bias": (A,), "encoder.bias": (Z,)},
    "AutoEncoderNew": LINEAR | {"encoder.bias": (Z,), "decoder.bias": (A,)},
    "GatedAutoEncoder": LINEAR | {"decoder_bias": (A,), "r_mag": (Z,), "gate_bias": (Z,), "mag_bias": (Z,)},
    "AutoEncoderTopK": LINEAR | {"b_dec": (A,), "encoder.bias": (Z,)},
    "BatchTopKSAE": LINEAR | {"b_dec": (A,), "encoder.bias": (Z,)},
    "MatryoshkaBatchTopKSAE": {"W_enc": (A, Z), "W_dec": (Z, A), "b_enc": (Z,), "b_dec": (A,)},
    "JumpReluAutoEncoder": {"W_enc": (A, Z), "W_dec": (Z, A), "b_enc": (Z,), "b_dec": (A,), "threshold": (Z,)},
}


def dictionary(folder, kind, **extra):
    """A folder of dictionary_learning's, its state dict, and what that computes for X."""
    folder.mkdir(parents=True, exist_ok=True)
    t = {name: normal(*shape) for name, shape in DICTIONARIES[kind].items()}
    t |= {"k": np.array(K), "threshold": np.array(0.7, np.float32)} if "TopK" in kind else {}
    if kind == "JumpReluAutoEncoder":
        t["threshold"] = np.abs(t["threshold"])
    torch_pickles.save(folder / "ae.pt", t | extra, transposed=("encoder.weight", "W_dec"))
    config = {"dict_class": kind, "lm_name": "google/gemma-2-2b", "layer": 8, "submodule_name": "resid_post_layer_8"}
    (folder / "config.json").write_text(json.dumps({"trainer": config}))
    W_enc = t["encoder.weight"].T if "encoder.weight" in t else t["W_enc"]
    W_dec = t["decoder.weight"].T if "decoder.weight" in t else t["W_dec"]
    b_dec = t[next(name for name in ("bias", "decoder.bias", "decoder_bias", "b_dec") if name in t)]
    z = (X if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else X - b_dec) @ W_enc
    pre = z + t.get("encoder.bias", t.get("b_enc", 0))
    match kind:
        case "GatedAutoEncoder":
            f = (z + t["gate_bias"] > 0) * relu(np.exp(t["r_mag"]) * z + t["mag_bias"])
        case "AutoEncoderTopK":
            f = largest(relu(pre))
        case "AutoEncoder" | "AutoEncoderNew":
            f = relu(pre)
        case _:
            f = relu(pre) * (pre > t["threshold"])
    return f, f @ W_dec + b_dec


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionaries_compute_as_dictionary_learning_does(tmp_path, kind):
    f, out = dictionary(tmp_path, kind)
    loaded = sae.load(tmp_path)
    close(loaded.encode(X), f)
    close(loaded(X), out)
    assert (loaded.info.model, loaded.info.site) == ("gemma2-2b", "layer_8/resid_post")
    outlines.check(tmp_path)


def test_dictionaries_thresholds_below_0_are_0(tmp_path):
    """Their training moves them there; their ReLU comes after the gate."""
    dictionary(tmp_path, "JumpReluAutoEncoder", threshold=np.full(Z, -0.5, np.float32))
    loaded = sae.load(tmp_path)
    close(loaded.encode(X), relu(X @ np.asarray(loaded.W_enc) + np.asarray(loaded.b_enc)))
    assert (loaded.threshold == 0).all()


def test_what_a_format_cannot_hold_is_refused_with_those_that_can(tmp_path):
    for format, kind, message in (
        ("gemma_scope", "topk", r"no place for a TopK, only for a JumpReLU\. .* saelens, sparsify"),
        ("gemma_scope", "gated", r"no place for a Gated, only for a JumpReLU \(its method jumprelu\(\) makes one"),
        ("gemma_scope_2", "relu", r"Gemma Scope 2's format has no place for a ReLU.*mishax_lite, saelens"),
        ("sparsify", "jumprelu", r"no place for a JumpReLU, only for a TopK\. .*gemma_scope_2"),
        ("dictionary_learning", "relu", r"has no place for any autoencoder: it is only read\. .*saelens"),
    ):
        with pytest.raises(ValueError, match=message):
            sae.save(ours(kind), tmp_path / "x", format=format)
    with pytest.raises(ValueError, match=r"SAELens's format has no place for a TopK as a transcoder\. .*sparsify"):
        sae.save(ours("topk-skip", True), tmp_path / "x", format="saelens")
    assert not (tmp_path / "x").exists()
    for kind in ("relu", "gated"):  # the same function
        sae.save(ours(kind).jumprelu(), tmp_path / kind)
        assert (tmp_path / kind / "params.npz").exists()


def test_one_folder_has_one_autoencoder(tmp_path):
    for format, kind in (("saelens", "topk"), ("sparsify", "topk"), ("gemma_scope_2", "jumprelu"), ("saelens", "relu")):
        sae.save(ours(kind), tmp_path, format=format)
        assert sum((tmp_path / name).exists() for name in main_files()) == 1
        assert type(sae.load(tmp_path)).__name__.lower() == kind
    sae.save(ours("jumprelu"), tmp_path / "other")
    (tmp_path / "other" / "params.npz").rename(tmp_path / "params.npz")
    with pytest.raises(ValueError, match=r"autoencoders of several formats, .*params.npz.*: name the file"):
        sae.load(tmp_path)
    assert isinstance(sae.load(tmp_path / "params.npz"), sae.JumpReLU)
