"""Cross-layer transcoders compute what they say, and go through Gemma Scope 2's and circuit-tracer's files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sae
from sae.autoencoder import Largest, check_values
from sae.formats.files import outline

L, A, Z = 3, 4, 5
RNG = np.random.default_rng(5)
X = RNG.normal(size=(7, L, A)).astype(np.float32)
INTO = tuple(f"layer_{layer}/mlp_in" for layer in range(L))
OUT = tuple(f"layer_{layer}/mlp_out" for layer in range(L))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def made(skip=False, **changes):
    W_dec = normal(L, Z, L, A)
    for layer in range(L):
        W_dec[layer, :, :layer] = 0
    arrays = {"W_enc": normal(L, A, Z), "b_enc": normal(L, Z), "W_dec": W_dec, "b_dec": normal(L, A)}
    arrays |= {"threshold": np.abs(normal(L, Z))} | ({"W_skip": normal(L, A, A)} if skip else {})
    return sae.CrossLayerTranscoder(**arrays, info=sae.Info("gemma3-270m", INTO, OUT), **changes)


def by_hand(enc, b_enc, dec, b_dec, threshold, skip=None):
    """Layer by layer, of lists of arrays; `dec[i]` [Z, L - i, A] counts layers from i on."""
    out = [np.tile(b_dec[layer], (len(X), 1)) for layer in range(L)]
    latents = []
    for i in range(L):
        z = X[:, i] @ enc[i] + b_enc[i]
        latents.append(z * (z > threshold[i]))
        for step in range(L - i):
            out[i + step] += latents[i] @ dec[i][:, step]
        if skip is not None:
            out[i] += X[:, i] @ skip[i]
    return np.concatenate(latents, axis=1), np.stack(out, axis=1)


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_transcoder_by_hand(skip):
    clt = made(skip)
    later = [clt.W_dec[i, :, i:] for i in range(L)]
    f, out = by_hand(clt.W_enc, clt.b_enc, later, clt.b_dec, clt.threshold, clt.W_skip)
    np.testing.assert_allclose(clt.encode(X), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clt(X), out, rtol=1e-4, atol=1e-5)
    assert clt.width == L * Z and clt.site_count == L and clt.thresholds.shape == (L * Z,)
    latents = jnp.int32([7, 2])
    part = clt.part(latents)
    np.testing.assert_array_equal(part.encode(X), clt.encode(X)[:, latents])
    np.testing.assert_array_equal(part.W_dec, np.stack([clt.W_dec[1, 2], clt.W_dec[0, 2]]))
    check_values(clt)
    made(largest=Largest(np.ones(L * Z), 3))
    with pytest.raises(ValueError, match=r"largest activations are of 5 latents, the autoencoder has 15"):
        made(largest=Largest(np.ones(Z), 3))


@pytest.mark.parametrize(("format", "skip"), [("gemma_scope_2_layers", True), ("circuit_tracer", False)])
def test_it_comes_back_from_files_that_compute_the_same(tmp_path, format, skip):
    clt = made(skip)
    sae.save(clt, tmp_path, format=format)
    loaded = sae.load(tmp_path)
    for name, array in clt.arrays().items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
    assert loaded.info == clt.info and outline(tmp_path).W_enc.shape == (L, A, Z)
    load = lambda name: safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")  # noqa: E731
    if format == "circuit_tracer":
        t = load("W_enc_0") | load("W_enc_1") | load("W_enc_2") | load("W_dec_0") | load("W_dec_1") | load("W_dec_2")
        get = lambda name: [t[f"{name}_{i}"] for i in range(L)]  # noqa: E731
        arguments = [W.T for W in get("W_enc")], get("b_enc"), get("W_dec"), get("b_dec"), get("threshold")
    else:
        t = [load(f"params_layer_{i}") for i in range(L)]
        get = lambda name: [of[name] for of in t]  # noqa: E731
        later = [of["w_dec"][:, i:] for i, of in enumerate(t)]
        arguments = get("w_enc"), get("b_enc"), later, get("b_dec"), get("threshold"), get("affine_skip_connection")
    np.testing.assert_allclose(clt(X), by_hand(*arguments)[1], rtol=1e-4, atol=1e-5)
    (tmp_path / "info.json").unlink()
    info = sae.load(tmp_path).info
    assert (info.model, info.site, info.site_out) == ("gemma3-270m", INTO, OUT)


def test_skips_in_circuit_tracers_files_are_applied_as_they_are(tmp_path):
    """Its files after 0.5 may have them; 0.5 leaves them out, so that ours have none."""
    clt, W_skip = made(), normal(L, A, A)
    sae.save(clt, tmp_path, format="circuit_tracer")
    for layer in range(L):
        file = tmp_path / f"W_enc_{layer}.safetensors"
        t = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(t | {f"W_skip_{layer}": W_skip[layer]}, file)
    loaded = sae.load(tmp_path)
    np.testing.assert_allclose(loaded(X) - clt(X), np.einsum("BLA,LAC->BLC", X, W_skip), rtol=1e-4, atol=1e-5)
    assert outline(tmp_path).W_skip.shape == (L, A, A)
    safetensors.numpy.save_file(t, file)
    with pytest.raises(ValueError, match=r"W_enc_2.*: it and W_enc_0.safetensors differ in whether they have a W_skip"):
        sae.load(tmp_path)


def test_hooks_of_named_and_of_all_layers(tmp_path):
    clt = made()
    for hook, layers in (("model.layers.{5,9,12}.output", (5, 9, 12)), ("model.layers.{all}.output", (0, 1, 2))):
        sae.save(clt, tmp_path, format="gemma_scope_2_layers")
        (tmp_path / "info.json").unlink()
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "type": "crosscoder"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        sites = tuple(f"layer_{layer}/resid_post" for layer in layers)
        assert (sae.load(tmp_path).info.site, sae.load(tmp_path).info.site_out) == (sites, sites)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path):
    for format, gone in (("gemma_scope_2_layers", "params_layer_1"), ("circuit_tracer", "W_dec_1")):
        sae.save(made(), tmp_path / format, format=format)
        (tmp_path / format / f"{gone}.safetensors").unlink()
        with pytest.raises(ValueError, match=f"has no {gone}.safetensors, while it has"):
            sae.load(tmp_path / format)
    sae.save(made(), tmp_path / "x", format="gemma_scope_2_layers")
    other = {"w_enc": normal(A, 2), "w_dec": normal(2, L, A), "b_enc": normal(2), "b_dec": normal(A)}
    safetensors.numpy.save_file(other | {"threshold": normal(2)}, tmp_path / "x" / "params_layer_2.safetensors")
    with pytest.raises(ValueError, match=r"params_layer_2.*: w_enc \[4, 2\] is not \[.*\], as params_layer_0"):
        sae.load(tmp_path / "x")
    with pytest.raises(ValueError, match=r"no place for an affine skip .*gemma_scope_2_layers"):
        sae.save(made(skip=True), tmp_path / "y", format="circuit_tracer")
    earlier = made()
    object.__setattr__(earlier, "W_dec", np.ones((L, Z, L, A), np.float32))
    with pytest.raises(ValueError, match=r"no place for latents of layer 1 that write to an earlier one"):
        sae.save(earlier, tmp_path / "y", format="circuit_tracer")
