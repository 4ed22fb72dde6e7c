"""Released forms compute what their papers say, as independent numpy does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.acting import Set
from sae.autoencoder import Largest, check_values
from sae.released import forms
from sae.topk import keep_largest

A, Z = 6, 16


def arrays(seed: int = 0, out: int = A) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (A, Z), "b_enc": (Z,), "W_dec": (Z, out), "b_dec": (out,), "W_skip": (A, out)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gated(seed: int = 0) -> sae.Gated:
    a = arrays(seed)
    rng = np.random.default_rng(seed + 1)
    b_gate, r_mag, b_mag = rng.normal(size=(3, Z)).astype(np.float32)
    return sae.Gated(a["W_enc"], b_gate, r_mag, b_mag, a["W_dec"], a["b_dec"])


X = np.random.default_rng(7).normal(size=(4, 5, A)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, Z])
@pytest.mark.parametrize("out", [A, 4])
def test_topk_keeps_the_k_largest_above_0(k, out):
    a = arrays(out=out)
    topk = sae.TopK(**a, k=k)
    z = np.maximum(X @ a["W_enc"] + a["b_enc"], 0)
    f = np.zeros_like(z)
    for place in np.ndindex(z.shape[:-1]):
        for latent in sorted(range(Z), key=lambda i: -z[place][i])[:k]:
            f[place][latent] = z[place][latent]
    np.testing.assert_allclose(topk.encode(X), f, rtol=1e-5, atol=1e-6)
    want = f @ a["W_dec"] + a["b_dec"] + X @ a["W_skip"]
    np.testing.assert_allclose(topk(X), want, rtol=1e-4, atol=1e-5)
    assert topk.width == Z and topk.dims == (A, out)


def test_of_equal_latents_topk_keeps_the_first_and_never_more_than_k():
    kept = keep_largest(jnp.float32([[2, 1, 2, 2], [0, 0, 0, 0]]), 2)
    assert kept.tolist() == [[2, 0, 2, 0], [0, 0, 0, 0]]


def test_relu_by_hand():
    a = arrays()
    f = np.maximum(X @ a["W_enc"] + a["b_enc"], 0)
    relu = sae.ReLU(**a)
    np.testing.assert_allclose(relu.encode(X), f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(relu(X), f @ a["W_dec"] + a["b_dec"] + X @ a["W_skip"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(relu.jumprelu().encode(X), relu.encode(X))
    np.testing.assert_array_equal(relu.jumprelu()(X), relu(X))


def test_gated_by_hand():
    g = gated()
    z = X @ np.asarray(g.W_enc)
    gate = z + g.b_gate > 0
    magnitude = np.maximum(X @ (np.asarray(g.W_enc) * np.exp(g.r_mag)) + g.b_mag, 0)
    np.testing.assert_allclose(g.encode(X), gate * magnitude, rtol=1e-5, atol=1e-5)
    shut = (magnitude > 0) & ~gate
    assert shut.any() and not np.asarray(g.encode(X))[shut].any()
    np.testing.assert_allclose(g.jumprelu()(X), g(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: sae.TopK(**arrays(), k=3), lambda: sae.ReLU(**arrays()), gated])
def test_some_latents_alone_have_the_same_activations(make):
    autoencoder, latents = make(), jnp.int32([9, 2, 11])
    part = autoencoder.part(latents)
    np.testing.assert_allclose(part.encode(X), autoencoder.encode(X)[..., latents], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(part.W_dec, autoencoder.W_dec[latents])
    assert part.width == 3


def test_latents_in_another_order_make_the_same_of_an_activation():
    order = np.random.default_rng(3).permutation(Z)
    for autoencoder in (sae.TopK(**arrays(), k=3), sae.ReLU(**arrays()), gated()):
        other = autoencoder.reordered(order)
        np.testing.assert_allclose(other.encode(X), autoencoder.encode(X)[..., order], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other(X), autoencoder(X), rtol=1e-4, atol=1e-5)


def test_edits_set_latents_of_every_form():
    for autoencoder in (sae.TopK(**arrays(), k=3), gated()):
        f = np.asarray(autoencoder.encode(X))
        latent = int(np.argmax((f > 0).sum(axis=(0, 1))))
        ablate = Set(autoencoder.part(jnp.int32([latent])), jnp.zeros(1), False)
        want = X - f[..., latent, None] * np.asarray(autoencoder.W_dec[latent])
        np.testing.assert_allclose(ablate(X, X), want, rtol=1e-5, atol=1e-5)


def test_forms_are_pytrees_that_jit_and_compare_by_k():
    topk = sae.TopK(**arrays(), k=3, largest=Largest(np.ones(Z), 5))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(topk)) and len(jax.tree.leaves(topk)) == 5
    np.testing.assert_allclose(jax.jit(lambda a, x: a(x))(topk, X), topk(X), rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), topk)
    two = jax.vmap(lambda a: a(X))(stacked)
    np.testing.assert_allclose(two[0], topk(X), rtol=1e-5, atol=1e-5)
    assert "2 stacked" in repr(stacked) and repr(topk) == "TopK(6 -> 16 latents, skip, float32)"
    assert repr(gated()) == "Gated(6 -> 16 latents, float32)"


def test_what_makes_no_autoencoder_is_refused():
    a = arrays()
    for k in (0, Z + 1):
        with pytest.raises(ValueError, match=f"TopK: k is from 1 to the width, 16, got {k}"):
            sae.TopK(**a, k=k)
    with pytest.raises(ValueError, match=r"TopK: k must be a whole number, got 2.5"):
        sae.TopK(**a, k=2.5)
    with pytest.raises(ValueError, match=r"these arrays make no autoencoder: .*got .*'b_enc': \(15,\)"):
        sae.ReLU(**a | {"b_enc": a["b_enc"][1:]})
    with pytest.raises(ValueError, match=r"the largest activations are of 3 latents, the autoencoder has 16"):
        sae.ReLU(**a, largest=Largest(np.ones(3), 5))
    with pytest.raises(ValueError, match=r"r_mag must be finite, got 16 values that are not"):
        check_values(dataclasses.replace(gated(), r_mag=np.full(Z, np.nan, np.float32)))


def test_the_forms_are_registered_by_the_names_of_their_classes():
    ours = {name: form for name, form in forms.items() if form.__module__.startswith("sae.")}
    assert {name: form.__name__ for name, form in ours.items()} == {name: name for name in ours}
    assert {"JumpReLU", "Crosscoder", "TopK", "ReLU", "Gated"} <= set(ours)


def test_what_is_not_a_number_stays_visible():
    eye, none = jnp.eye(4), jnp.zeros(4)
    x = jnp.float32([[np.nan, 1, 2, 3]])
    for form in (sae.JumpReLU(eye, none, eye, none, none), sae.Gated(eye, none, none, none, eye, none)):
        assert np.isnan(np.asarray(form.encode(x))).any(), form
