"""`lens` and `direct_logits`: what a value of the residual stream, or a part of it, says of the next token."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import gemma.model
import mishax_lite
from gemma import sites
from tests.gemma import small

TOKENS = [[2, 23, 213, 277]]


@pytest.fixture(scope="module", params=["golden", "golden_3"])
def model(request):
    return request.getfixturevalue(request.param)[0]


def float64(params):
    return jax.tree.map(lambda w: np.asarray(w, np.float64), params)


def test_the_lens_is_the_last_norm_and_the_unembedding_of_numpy(model):
    forward = model.run(TOKENS, capture=["*/resid_post", "embed"])
    got, params, cap = model.lens(forward.values), float64(model.params), model.config.final_softcap
    assert list(got) == sorted(forward.values)  # as jax.tree has dicts
    for site, logits in got.items():
        x = np.asarray(forward.values[site], np.float64)
        normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * (1 + params["final_norm"]["scale"])
        want = normed @ params["embedder"]["input_embedding"].T
        want = want if cap is None else np.tanh(want / cap) * cap
        np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())
    last = f"layer_{model.config.num_layers - 1}/resid_post"
    np.testing.assert_allclose(got[last], forward.logits, atol=1e-4)


def parts(model):
    """The sites whose values the residual stream is the sum of."""
    return ["embed", *(f"layer_{i}/{kind}" for i in range(model.config.num_layers) for kind in ("attn_out", "mlp_out"))]


def test_contributions_of_all_components_add_up_to_the_logits(model):
    forward = model.run(TOKENS, capture=[*parts(model), "final_scale"])
    got = sum(model.direct_logits(forward.values[site], site, scales=forward.values) for site in parts(model))
    logits, cap = np.asarray(forward.logits, np.float64), model.config.final_softcap
    want = logits if cap is None else np.arctanh(logits / cap) * cap
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
    ids = [3, 70]
    few = sum(model.direct_logits(forward.values[site], scales=forward.values, tokens=ids) for site in parts(model))
    np.testing.assert_allclose(few, np.asarray(got)[..., ids], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "kinds", [("attn_z", "post_attn_scale", "attn_out"), ("mlp_hidden", "post_mlp_scale", "mlp_out")]
)
def test_heads_and_hidden_units_add_up_to_their_layers_component(model, kinds):
    z, scale, out = (f"layer_2/{kind}" for kind in kinds)
    values = model.run(TOKENS, capture=[z, scale, out, "final_scale"]).values
    assert sites.divisions(model.sites[z]) == (scale, "final_scale")
    got = model.direct_logits(values[z], z, scales=values)
    want = model.direct_logits(values[out], out, scales=values)
    if kinds[0] == "attn_z":
        N, H = model.sites[z].shape
        assert got.shape == (1, 4, N, model.vocab_size)
        together = model.direct_logits(values[z].reshape(1, 4, N * H), z, scales=values)
        np.testing.assert_allclose(got.sum(axis=2), together, atol=1e-4 * float(jnp.abs(together).max()))
        params = float64(model.params)
        w = params["layer_2"]["attn"]["attn_vec_einsum"]["w"][1]
        head = np.asarray(values[z], np.float64)[..., 1, :] @ w * np.asarray(values[scale])
        head = head * (1 + params["layer_2"]["post_attention_norm"]["scale"]) * np.asarray(values["final_scale"])
        by_hand = head * (1 + params["final_norm"]["scale"]) @ params["embedder"]["input_embedding"].T
        np.testing.assert_allclose(got[:, :, 1], by_hand, atol=1e-4 * np.abs(by_hand).max())
        got = got.sum(axis=2)
    np.testing.assert_allclose(got, want, atol=1e-3 * float(jnp.abs(want).max()))


def test_without_scales_a_vector_moves_the_logits_as_logit_directions_say(model):
    vectors = np.random.default_rng(0).normal(size=(3, model.config.d_model))
    got = model.direct_logits(vectors, "layer_2/mlp_out")
    want = np.asarray(model.logit_directions("layer_2/mlp_out", vectors))
    np.testing.assert_allclose(got - got.mean(axis=-1, keepdims=True), want, atol=1e-4 * np.abs(want).max())


def test_latents_have_an_axis_after_the_tokens(model):
    values = model.run(TOKENS, capture="final_scale").values
    latents = np.random.default_rng(0).normal(size=(1, 4, 5, model.config.d_model))
    got = model.direct_logits(latents, scales=values)
    for k in range(5):
        want = model.direct_logits(latents[:, :, k], scales=values)
        np.testing.assert_allclose(got[:, :, k], want, atol=1e-4 * float(jnp.abs(want).max()))


def test_neither_is_a_site_of_a_capture_around_it_and_both_can_be_jitted():
    model = small.model()

    def both(tokens):
        _, values = model.apply(tokens, capture=["layer_0/resid_post", "final_scale"])
        return model.lens(values["layer_0/resid_post"]), model.direct_logits(
            values["layer_0/resid_post"], scales=values
        )

    assert "final_scale" in mishax_lite.sites(both, np.array([[2, 3]]))
    jax.jit(both)(np.array([[2, 3]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "layer_1/mlp_in"}, "layer_1/mlp_in does not write to the residual stream"),
        ({"site": "layer_1/atn_z"}, "did you mean layer_1/attn_z"),
        ({"value": jnp.ones((2, 8)), "site": "layer_1/attn_z"}, r"at layer_1/attn_z is \[..., 4, 8\], got \[2, 8\]"),
        ({"value": jnp.ones((2, 8))}, r"of the residual stream is \[..., 32\], got \[2, 8\]"),
        ({"scales": {}}, "scales lack final_scale: capture it"),
        (
            {"value": jnp.ones((4, 8)), "site": "layer_1/attn_z", "scales": {"final_scale": jnp.ones(1)}},
            "lack layer_1/post_attn_scale",
        ),
        ({"scales": {"final_scale": jnp.ones((3, 1))}}, r"got \[3, 1\] for vectors \[2, 32\]: take the same tokens"),
        ({"tokens": [96]}, "vocabulary of mine is 0 to 95"),
        ({"tokens": [[1, 2], [3, 4]]}, r"tokens are ids \[K\], the same for every value; got an array \[2, 2\]"),
    ],
)
def test_what_cannot_be_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        small.model().direct_logits(**{"value": jnp.ones((2, 32)), **arguments})


@pytest.mark.parametrize("name", ["lens", "direct_logits", "unembed", "logit_directions"])
def test_examples_run(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(gemma.Model, name), name, globs={"gemma": gemma, "jnp": jnp}
    )
    assert doctest.DocTestRunner().run(example).failed == 0
