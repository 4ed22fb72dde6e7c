import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae


def make(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "W_enc": rng.normal(size=(6, 16)),
        "b_enc": rng.normal(size=16),
        "W_dec": rng.normal(size=(16, 6)),
        "b_dec": rng.normal(size=6),
        "threshold": rng.uniform(size=16),
    }
    return sae.JumpReLU(**{k: jnp.float32(v) for k, v in arrays.items()}, **changes)


def test_round_trip(tmp_path):
    autoencoder = make(info=sae.Info("gemma2-tiny", "layer_3/resid_post", "layer_3/resid_post", training='{"a": 1}'))
    sae.save(autoencoder, tmp_path / "x")
    for path in (tmp_path / "x", tmp_path / "x" / "params.npz"):
        loaded = sae.load(path)
        assert loaded.info == autoencoder.info
        jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)


def crosscoder(**changes):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (2, 6, 16), "b_enc": (16,), "W_dec": (16, 2, 6), "b_dec": (2, 6), "threshold": (16,)}
    return sae.Crosscoder(**{name: jnp.float32(rng.normal(size=shape)) for name, shape in shapes.items()}, **changes)


def test_skips_and_crosscoders_go_into_a_file_that_nobody_misreads(tmp_path):
    sites = ("layer_1/resid_post", "layer_2/resid_post")
    info = sae.Info("gemma2-tiny", sites, sites)
    for name, autoencoder in (("skip", make(W_skip=jnp.eye(6))), ("crosscoder", crosscoder(info=info))):
        sae.save(autoencoder, tmp_path / name)
        assert (tmp_path / name / "autoencoder.npz").exists() and not (tmp_path / name / "params.npz").exists()
        loaded = sae.load(tmp_path / name)
        assert type(loaded) is type(autoencoder) and loaded.info == autoencoder.info
        jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)
    sae.save(make(), tmp_path / "skip")  # in the place of another
    assert sae.load(tmp_path / "skip").W_skip is None and not (tmp_path / "skip" / "autoencoder.npz").exists()
    with pytest.raises(ValueError, match=r"no place for a crosscoder"):
        sae.save(crosscoder(), tmp_path / "x", format="gemma_scope")


def test_a_crosscoder_by_hand():
    x = jnp.float32(np.random.default_rng(1).normal(size=(5, 2, 6)))
    c = crosscoder()
    z = np.einsum("bla,laz->bz", x, c.W_enc) + c.b_enc
    f = z * (z > c.threshold)
    np.testing.assert_allclose(c.encode(x), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(c(x), np.einsum("bz,zla->bla", f, c.W_dec) + c.b_dec, rtol=1e-4, atol=1e-4)
    assert c.width == 16
    with pytest.raises(ValueError, match=r"these arrays make no crosscoder"):
        sae.Crosscoder(c.W_enc, c.b_enc, c.W_dec, c.b_dec[:, :5], c.threshold)


def test_the_file_is_gemma_scopes(tmp_path):
    sae.save(make(), tmp_path / "x")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["params.npz"]
    with np.load(tmp_path / "x" / "params.npz") as arrays:
        assert sorted(arrays.files) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype("float32")}
    assert sae.load(tmp_path / "x").info is None


def test_encoding_by_hand():
    autoencoder = sae.JumpReLU(
        W_enc=jnp.float32([[1, 0, -1], [0, 1, 1]]),
        b_enc=jnp.float32([0, 0.5, 0]),
        W_dec=jnp.float32([[1, 0], [0, 1], [2, 2]]),
        b_dec=jnp.float32([0.1, 0.2]),
        threshold=jnp.float32([1.0, 1.0, 0.0]),
    )
    x = jnp.float32([[1.0, 0.5], [2.0, 3.0]])
    np.testing.assert_allclose(autoencoder.encode(x), [[0, 0, 0], [2, 3.5, 1]])  # 1.0 is not above 1.0
    np.testing.assert_allclose(autoencoder(x), [[0.1, 0.2], [4.1, 5.7]], rtol=1e-6)


def test_what_is_damaged_or_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no autoencoder at"):
        sae.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"unknown format 'zip': there is gemma_scope"):
        sae.save(make(), tmp_path / "x", format="zip")
    with pytest.raises(ValueError, match=r"no place for an affine skip"):
        sae.save(make(W_skip=jnp.eye(6)), tmp_path / "x", format="gemma_scope")
    (tmp_path / "params.npz").write_text("text")
    with pytest.raises(ValueError, match=r"is no npz archive"):
        sae.load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.zeros(3))
    with pytest.raises(ValueError, match=r"has no W_dec, b_enc, b_dec, threshold; it holds W_enc"):
        sae.load(tmp_path)
    sae.save(make(), tmp_path / "x")
    whole = (tmp_path / "x" / "params.npz").read_bytes()
    (tmp_path / "x" / "params.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"params.npz is damaged: it is no npz archive"):
        sae.load(tmp_path / "x")
    sae.save(make(), tmp_path / "y")
    with np.load(tmp_path / "y" / "params.npz") as arrays:
        changed = {**arrays, "b_enc": np.full(16, np.nan, np.float32)}
    np.savez(tmp_path / "y" / "params.npz", **changed)
    with pytest.raises(ValueError, match=r"b_enc must be finite float32, got float32 with 16 values"):
        sae.load(tmp_path / "y")


def test_shapes_that_do_not_belong_together_are_refused():
    good = make()
    with pytest.raises(ValueError, match=r"these arrays make no autoencoder.*'threshold': \(16,\)"):
        sae.JumpReLU(good.W_enc, good.b_enc, good.W_dec, good.b_dec, good.threshold[:-1])
