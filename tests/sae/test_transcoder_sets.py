"""Sets of transcoders compute what they say, and are read from circuit-tracer's files as a whole and layer by layer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sae
from sae.formats.finding import autoencoder_folders
from tests.sae import outlines

L, A, Z, OUT = 3, 4, 5, 6
RNG = np.random.default_rng(11)
X = RNG.normal(size=(7, L, A)).astype(np.float32)
CONFIG = {
    "model_name": "google/gemma-2-2b",
    "model_kind": "transcoder_set",
    "feature_input_hook": "ln2.hook_normalized",
    "feature_output_hook": "hook_mlp_out",
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def theirs(folder, *, skip=False, threshold=True, layers=L, **config):
    """A folder as circuit-tracer has it, and its tensors by layer."""
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for layer in range(layers):
        t = {"W_enc": normal(Z, A), "W_dec": normal(Z, OUT), "b_enc": normal(Z), "b_dec": normal(OUT)}
        t |= {"activation_function.threshold": np.abs(normal(Z))} if threshold else {}
        t |= {"W_skip": normal(OUT, A)} if skip else {}
        safetensors.numpy.save_file(t, folder / f"layer_{layer}.safetensors")
        every.append(t)
    lines = [f"{name}: {json.dumps(value)}" for name, value in (CONFIG | config).items()]
    lines += ["transcoders:  # where they came from", '  - "hf://somebody/layer_0.safetensors"']
    (folder / "config.yaml").write_text("\n".join(["# A set", *lines]) + "\n")
    return every


def by_hand(t, x, k=None):
    """One layer's latents and output, as circuit-tracer computes them."""
    pre = x @ t["W_enc"].T + t["b_enc"]
    if k is None:
        f = pre * (pre > t["activation_function.threshold"]) if len(t) > 4 + ("W_skip" in t) else np.maximum(pre, 0)
    else:
        f = np.where(pre >= np.sort(pre, axis=-1)[:, -k, None], pre, 0)
    return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


@pytest.mark.parametrize(("skip", "threshold"), [(False, True), (True, True), (True, False)])
def test_circuit_tracers_sets_compute_as_circuit_tracer_does(tmp_path, skip, threshold):
    every = theirs(tmp_path, skip=skip, threshold=threshold)
    whole = sae.load(tmp_path)
    f = np.concatenate([by_hand(t, X[:, layer])[0] for layer, t in enumerate(every)], axis=1)
    out = np.stack([by_hand(t, X[:, layer])[1] for layer, t in enumerate(every)], axis=1)
    np.testing.assert_allclose(whole.encode(X), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole(X), out, rtol=1e-4, atol=1e-5)
    sites = tuple(f"layer_{i}/mlp_normed" for i in range(L)), tuple(f"layer_{i}/mlp_out" for i in range(L))
    assert (whole.info.model, whole.info.site, whole.info.site_out) == ("gemma2-2b", *sites)
    assert whole.width == L * Z and whole.dims == (A, OUT) and whole.thresholds.shape == (L * Z,)
    outlines.check(tmp_path)
    outlines.check(tmp_path / "layer_1.safetensors")
    for layer, t in enumerate(every):
        one = sae.load(tmp_path / f"layer_{layer}.safetensors")
        assert isinstance(one, sae.JumpReLU if threshold else sae.ReLU)
        np.testing.assert_allclose(one(X[:, layer]), by_hand(t, X[:, layer])[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(whole.layer(layer)(X[:, layer]), one(X[:, layer]), rtol=1e-5, atol=1e-6)
        assert one.info.site == whole.layer(layer).info.site == f"layer_{layer}/mlp_normed"
        assert one.info.site_out == f"layer_{layer}/mlp_out"


@pytest.mark.parametrize(
    ("hooks", "kinds"),
    [
        (("hook_resid_mid", "hook_mlp_out"), ("resid_mid", "mlp_out")),
        (("mlp.hook_in", "mlp.hook_out"), ("mlp_in", "mlp_out")),
    ],
)
def test_the_hooks_of_each_convention_are_its_sites(tmp_path, hooks, kinds):
    theirs(tmp_path, feature_input_hook=hooks[0], feature_output_hook=hooks[1])
    info = sae.load(tmp_path / "layer_2.safetensors").info
    assert (info.site, info.site_out) == (f"layer_2/{kinds[0]}", f"layer_2/{kinds[1]}")


def test_a_set_of_topk_is_read_layer_by_layer(tmp_path):
    every = theirs(tmp_path, threshold=False, activation="topk", k=2)
    for layer, t in enumerate(every):
        one = sae.load(tmp_path / f"layer_{layer}.safetensors")
        pre = X[:, layer] @ t["W_enc"].T + t["b_enc"]
        assert one.k == 2
        largest = np.sort(np.maximum(pre, 0), axis=-1)[:, -2:]
        np.testing.assert_allclose(np.sort(one.encode(X[:, layer]), axis=-1)[:, -2:], largest, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"has a TopK for each layer, .* name one of its files, such as .*layer_0"):
        sae.load(tmp_path)


def made(skip=True, layers=tuple(range(L)), model="gemma3-1b", training="{}"):
    sites = [tuple(f"layer_{layer}/{kind}" for layer in layers) for kind in ("mlp_in", "mlp_out")]
    arrays = {"W_enc": normal(L, A, Z), "b_enc": normal(L, Z), "W_dec": normal(L, Z, OUT), "b_dec": normal(L, OUT)}
    arrays |= {"threshold": np.abs(normal(L, Z))} | ({"W_skip": normal(L, A, OUT)} if skip else {})
    return sae.TranscoderSet(**arrays, info=sae.Info(model, *sites, training=training))


def test_our_sets_are_circuit_tracers_files(tmp_path):
    ours = made()
    sae.save(ours, tmp_path, format="circuit_tracer_set")
    for layer in range(L):
        t = safetensors.numpy.load_file(tmp_path / f"layer_{layer}.safetensors")
        assert {name: value.shape for name, value in t.items()} == {
            "W_enc": (Z, A),
            "W_dec": (Z, OUT),
            "b_enc": (Z,),
            "b_dec": (OUT,),
            "activation_function.threshold": (Z,),
            "W_skip": (OUT, A),
        }
        np.testing.assert_allclose(by_hand(t, X[:, layer])[1], ours(X)[:, layer], rtol=1e-4, atol=1e-5)
    (tmp_path / "info.json").unlink()
    info = sae.load(tmp_path).info
    assert (info.model, info.site, info.site_out) == (ours.info.model, ours.info.site, ours.info.site_out)
    with pytest.raises(ValueError, match=r"crosscoders, which read several sites"):
        autoencoder_folders(tmp_path)
    with pytest.raises(ValueError, match=r"which layers: its files are of the layers 0 to 2, not of layer_5/mlp_in"):
        sae.save(made(layers=(5, 9, 12)), tmp_path / "x", format="circuit_tracer_set")


def test_rows_and_parts_of_a_set(tmp_path):
    ours, latents = made(skip=False), jnp.int32([7, 2])
    rows = np.zeros((2, L, OUT), np.float32)
    rows[0, 1], rows[1, 0] = ours.W_dec[1, 2], ours.W_dec[0, 2]
    np.testing.assert_array_equal(ours.rows(latents), rows)
    f = np.zeros((1, L * Z), np.float32)
    f[0, 7] = 3.0
    np.testing.assert_allclose(ours.decode(f)[0] - ours.b_dec, 3 * rows[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"the layers of this set are 0 to 2, got 3"):
        ours.layer(3)


def test_what_of_a_set_does_not_fit_is_named(tmp_path):
    theirs(tmp_path)
    t = safetensors.numpy.load_file(tmp_path / "layer_1.safetensors")
    for changed, message in (
        (t | {"W_dec": normal(Z, OUT + 1), "b_dec": normal(OUT + 1)}, r"layer_1.*: (W_dec|b_dec) .* is not \["),
        (t | {"W_skip": normal(OUT, A)}, r"layer_1.*has a W_skip, and the other has none"),
        (t | {"activation_function.threshold": normal(Z + 1)}, r"layer_1.*: the threshold must be \[5\], got \[6\]"),
        (t | {"W_enc": normal(2, Z, A)}, r"layer_1.*: W_enc must have 2 axes, got \[2, 5, 4\]"),
    ):
        safetensors.numpy.save_file(changed, tmp_path / "layer_1.safetensors")
        with pytest.raises(ValueError, match=message):
            sae.load(tmp_path)
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no layer_1.safetensors, while it has layer_2.safetensors"):
        sae.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    with pytest.raises(
        ValueError, match=r"the files are of the kind transcoder_set, and it says .cross_layer_transcoder"
    ):
        sae.load(tmp_path)
