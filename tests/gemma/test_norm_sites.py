"""Sites within norms: their values, and what an edit there does to all that comes after, against float64 numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma.site_kinds import KINDS

LAYER = 2


@pytest.fixture(scope="module", params=["golden", "golden_3"])
def case(request):
    """A Gemma 2 and a Gemma 3 with some tokens and all their sites there."""
    model, expected = request.getfixturevalue(request.param)
    tokens = np.asarray(expected["tokens"])[:2, :12]
    return model, tokens, float64(model.run(tokens, capture="*").values)


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def inverse(x):
    return 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def block_of(model):
    return float64(model.params[f"layer_{LAYER}"])


def gain(norm):
    return 1 + norm["scale"]


def attention_output(block, z):
    return np.einsum("btnh,nhd->btd", z, block["attn"]["attn_vec_einsum"]["w"])


def feed_forward_output(block, hidden):
    return hidden @ block["mlp"]["linear"]


def feed_forward(block, mlp_in):
    gate, up = mlp_in @ block["mlp"]["gating_einsum"][0], mlp_in @ block["mlp"]["gating_einsum"][1]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    out = feed_forward_output(block, gelu * up)
    return out * inverse(out) * gain(block["post_ffw_norm"])


def test_values(case):
    model, _, values = case
    for layer in range(model.config.num_layers):
        block = float64(model.params[f"layer_{layer}"])
        at = lambda kind, layer=layer: values[f"layer_{layer}/{kind}"]  # noqa: E731
        close(at("pre_attn_scale"), inverse(at("resid_pre")))
        close(at("post_attn_scale"), inverse(attention_output(block, at("attn_z"))))
        close(at("pre_mlp_scale"), inverse(at("resid_mid")))
        close(at("mlp_normed"), at("resid_mid") * inverse(at("resid_mid")))
        close(at("mlp_in"), at("mlp_normed") * gain(block["pre_ffw_norm"]))
        close(at("post_mlp_scale"), inverse(feed_forward_output(block, at("mlp_hidden"))))
    last = f"layer_{model.config.num_layers - 1}/resid_post"
    close(values["final_scale"], inverse(values[last]))


def edited(case, kind):
    """All values when one site in the middle is given other ones; and these."""
    model, tokens, values = case
    site = kind if kind in values else f"layer_{LAYER}/{kind}"
    new = values[site] * np.random.default_rng(0).uniform(0.5, 2, values[site].shape)
    edits = {site: lambda value, site: jnp.asarray(new, jnp.float32)}
    got = float64(model.run(tokens, capture="*", edits=edits).values)
    names = list(model.sites)
    for name in names[: names.index(site)]:
        np.testing.assert_allclose(got[name], values[name], atol=1e-5)
    return (lambda kind: got[f"layer_{LAYER}/{kind}"] if f"layer_{LAYER}/{kind}" in got else got[kind]), new


def test_an_edited_pre_attention_scale_scales_what_attention_reads(case):
    block = block_of(case[0])
    got, new = edited(case, "pre_attn_scale")
    attn_in = got("resid_pre") * new * gain(block["pre_attention_norm"])
    close(got("attn_in"), attn_in)
    close(got("v"), np.einsum("bsd,kdh->bskh", attn_in, block["attn"]["kv_einsum"]["w"][1]))


def test_an_edited_post_attention_scale_scales_what_is_added(case):
    block = block_of(case[0])
    got, new = edited(case, "post_attn_scale")
    attn_out = attention_output(block, got("attn_z")) * new * gain(block["post_attention_norm"])
    close(got("attn_out"), attn_out)
    close(got("resid_mid"), got("resid_pre") + attn_out)


def test_an_edited_pre_feed_forward_scale_scales_what_the_layer_reads(case):
    block = block_of(case[0])
    got, new = edited(case, "pre_mlp_scale")
    normed = got("resid_mid") * new
    close(got("mlp_normed"), normed)
    close(got("resid_post"), got("resid_mid") + feed_forward(block, normed * gain(block["pre_ffw_norm"])))


def test_an_edited_normed_value_gets_the_gain(case):
    block = block_of(case[0])
    got, new = edited(case, "mlp_normed")
    close(got("pre_mlp_scale"), inverse(got("resid_mid")))
    close(got("mlp_in"), new * gain(block["pre_ffw_norm"]))
    close(got("resid_post"), got("resid_mid") + feed_forward(block, new * gain(block["pre_ffw_norm"])))


def test_an_edited_post_feed_forward_scale_scales_what_is_added(case):
    block = block_of(case[0])
    got, new = edited(case, "post_mlp_scale")
    mlp_out = feed_forward_output(block, got("mlp_hidden")) * new * gain(block["post_ffw_norm"])
    close(got("resid_post"), got("resid_mid") + mlp_out)


def test_an_edited_final_scale_scales_the_logits_before_their_softcap(case):
    model, params = case[0], float64(case[0].params)
    got, new = edited(case, "final_scale")
    normed = got(f"layer_{model.config.num_layers - 1}/resid_post") * new * gain(params["final_norm"])
    close(got("final_norm"), normed)
    logits, cap = normed @ params["embedder"]["input_embedding"].T, model.config.final_softcap
    close(got("logits"), logits if cap is None else cap * np.tanh(logits / cap))


def test_the_norms_of_queries_and_keys_have_no_sites(golden_3):
    model, _ = golden_3
    assert model.config.qk_norm
    scales = [name for name in model.sites if name.endswith("_scale")]
    assert len(scales) == 4 * model.config.num_layers + 1
    assert set(scales) <= set(model.frozen)
    assert set(model.frozen) - set(scales) == {f"layer_{i}/attn_pattern" for i in range(model.config.num_layers)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_are_those_of_the_records(golden, dtype):
    model, _ = golden
    params = jax.tree.map(lambda w: w.astype(dtype), model.params)
    lower = dataclasses.replace(model, params=params, dtype=jnp.dtype(dtype))
    values = lower.run([[2, 23, 213]], capture="*").values
    float32 = {kind.name for kind in KINDS if kind.float32}
    assert {lower.sites[name].kind for name, value in values.items() if value.dtype == jnp.float32} == float32
