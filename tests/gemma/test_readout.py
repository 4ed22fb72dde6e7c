"""The last steps to the logits, and the first-order way of a direction there, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite
from tests.gemma import small


@pytest.fixture(scope="module", params=["golden", "golden_3"])
def model(request):
    return request.getfixturevalue(request.param)[0]


def float64(params):
    return jax.tree.map(lambda w: np.asarray(w, np.float64), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unembed_gives_the_logits_of_the_last_residual_stream(model, dtype):
    params = jax.tree.map(lambda w: w.astype(dtype), model.params)
    model = dataclasses.replace(model, params=params, dtype=jnp.dtype(dtype))
    site = f"layer_{model.config.num_layers - 1}/resid_post"
    forward = model.run([[2, 23, 213, 277]], capture=site)
    got = model.unembed(forward.values[site])
    assert got.dtype == jnp.float32
    # In a program that is compiled as a whole, XLA may leave out the rounding of the norm's output to bfloat16.
    tolerance = 1e-4 if dtype == "float32" else 2e-2 * float(jnp.abs(forward.logits).max())
    np.testing.assert_allclose(got, forward.logits, atol=tolerance)
    np.testing.assert_allclose(model.unembed(forward.values[site][0, 2]), got[0, 2], atol=tolerance)


def test_unembedding_is_no_site_of_a_capture_around_it(model):
    def both(tokens):
        _, values = model.apply(tokens, capture="layer_0/resid_post")
        return model.unembed(values["layer_0/resid_post"])

    assert "final_scale" in mishax_lite.sites(both, np.array([[2, 3]]))


def by_numpy(model, site, vectors):
    """The way of vectors to the logits, written out."""
    params, kind = float64(model.params), site.rsplit("/", 1)[-1]
    if kind != site:
        block = params[site.split("/")[0]]
        if kind == "attn_z":
            c = model.config
            heads = vectors.reshape(-1, c.num_heads, c.head_dim)
            vectors = np.einsum("rnh,nhd->rd", heads, block["attn"]["attn_vec_einsum"]["w"])
            vectors = vectors * (1 + block["post_attention_norm"]["scale"])
        if kind == "mlp_hidden":
            vectors = vectors @ block["mlp"]["linear"] * (1 + block["post_ffw_norm"]["scale"])
    effects = (vectors * (1 + params["final_norm"]["scale"])) @ params["embedder"]["input_embedding"].T
    return effects - effects.mean(axis=-1, keepdims=True)


WRITING = ["attn_z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post", "resid_pre"]


@pytest.mark.parametrize("kind", ["embed", *WRITING])
def test_logit_directions_are_those_of_numpy(model, kind):
    site = kind if kind == "embed" else f"layer_2/{kind}"
    assert model.sites[site].writes_to_residual
    vectors = np.random.default_rng(0).normal(size=(3, int(np.prod(model.sites[site].shape))))
    got = model.logit_directions(site, vectors)
    assert got.dtype == jnp.float32
    want = by_numpy(model, site, vectors)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(model.logit_directions(site, vectors[1]), got[1], atol=1e-5)


def test_what_does_not_write_to_the_residual_stream_has_no_direction():
    model = small.model()
    writing = {site.kind for site in model.sites.values() if site.writes_to_residual}
    assert writing == {"embed", *WRITING}
    with pytest.raises(ValueError, match="layer_1/mlp_in does not write to the residual stream"):
        model.logit_directions("layer_1/mlp_in", jnp.ones(32))
    with pytest.raises(ValueError, match=r"vectors at layer_1/attn_z are \[..., 32\], got \[8\]"):
        model.logit_directions("layer_1/attn_z", jnp.ones(8))
    with pytest.raises(ValueError, match="did you mean layer_1/attn_z"):
        model.logit_directions("layer_1/atn_z", jnp.ones(32))
    with pytest.raises(ValueError, match=r"D = 32, the model's width, got \[3, 8\]"):
        model.unembed(jnp.ones((3, 8)))
