"""The record of each latent's largest activation, kept beside an autoencoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.autoencoder import Largest, bare

VALUES = np.float32([0.0, 2.5, 1e-3, 40.0])


def four(**changes):
    """An autoencoder with four latents."""
    rng = np.random.default_rng(0)
    arrays = {name: jnp.float32(rng.normal(size=size)) for name, size in (("W_enc", (3, 4)), ("W_dec", (4, 3)))}
    zeros = {"b_enc": jnp.zeros(4), "b_dec": jnp.zeros(3), "threshold": jnp.ones(4)}
    return sae.JumpReLU(**arrays, **zeros, **changes)


def six():
    """A crosscoder of two sites with four latents."""
    shapes = {"W_enc": (2, 3, 4), "b_enc": (4,), "W_dec": (4, 2, 3), "b_dec": (2, 3), "threshold": (4,)}
    return sae.Crosscoder(**{name: jnp.ones(shape) for name, shape in shapes.items()}, largest=Largest(VALUES, 7))


def test_a_record_is_kept_beside_the_parameters(tmp_path):
    for name, autoencoder in (("one", four(largest=Largest(VALUES, 3_000_000_000))), ("cross", six())):
        sae.save(autoencoder, tmp_path / name)
        loaded = sae.load(tmp_path / name)
        assert loaded.largest == autoencoder.largest and loaded.largest.tokens == autoencoder.largest.tokens
        np.testing.assert_array_equal(loaded.largest.values, VALUES)
        jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)
    with np.load(tmp_path / "one" / "params.npz") as arrays:  # Gemma Scope's own five, and nothing else
        assert set(arrays.files) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def test_another_autoencoder_in_its_place_takes_no_record_over(tmp_path):
    sae.save(four(largest=Largest(VALUES, 7)), tmp_path)
    file = tmp_path / "largest.npz"
    before = file.stat().st_mtime_ns
    sae.save(four(largest=Largest(VALUES, 7)), tmp_path)
    assert file.stat().st_mtime_ns == before  # the same record stays as it is
    sae.save(four(largest=Largest(VALUES, 8)), tmp_path)
    assert sae.load(tmp_path).largest.tokens == 8
    sae.save(four(), tmp_path)
    assert sae.load(tmp_path).largest is None and not file.exists()


def test_a_damaged_record_is_named(tmp_path):
    sae.save(four(largest=Largest(VALUES, 7)), tmp_path)
    file = tmp_path / "largest.npz"
    for content, message in (
        ({"largest": VALUES[:3], "tokens": 7}, "it has 3 latents, and the autoencoder beside it has 4"),
        ({"largest": VALUES}, "tokens"),
        ({"largest": VALUES * np.float32(np.nan), "tokens": 7}, "finite and at least 0"),
        ({"largest": VALUES, "tokens": 0}, "over one token at least, got 0"),
    ):
        np.savez(file, **content)
        with pytest.raises(
            ValueError, match=rf"largest.npz is damaged: .*{message}.*Delete it; .*experiments.evaluate"
        ):
            sae.load(tmp_path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"largest.npz is damaged: "):
        sae.load(tmp_path)
    sae.save(four(largest=Largest(VALUES, 9)), tmp_path)
    assert sae.load(tmp_path).largest.tokens == 9


def test_what_cannot_be_a_record_is_refused():
    for values in (VALUES[None], -VALUES, np.full(4, np.inf)):
        with pytest.raises(ValueError, match=r"the largest activations are \[Z\], finite and at least 0"):
            Largest(values, 7)
    for autoencoder in (four(), six()):
        with pytest.raises(ValueError, match="are of 3 latents, the autoencoder has 4"):
            dataclasses.replace(autoencoder, largest=Largest(VALUES[:3], 7))


def test_a_record_compiles_nothing_anew():
    """It is no leaf, and two with the same values are the same to jit."""
    traced = []

    @jax.jit
    def width(autoencoder):
        traced.append(autoencoder)
        return autoencoder.threshold.sum()

    for _ in range(2):
        width(four(largest=Largest(VALUES, 7)))
    assert len(traced) == 1
    width(bare(four(largest=Largest(VALUES, 8))))
    width(bare(four(info=sae.Info("m", "s", "s"))))
    assert len(traced) == 2
