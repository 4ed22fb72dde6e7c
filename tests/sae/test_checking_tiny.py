"""`sae.check` on the shipped model: planted mistakes by name, and silence about fifty right autoencoders.

Its norms' gains are near one, so the wrong gain is planted in a copy of it with gains as far from one as Gemma 2's,
which computes the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from tests.sae import planted

pytestmark = pytest.mark.slow  # it compiles a forward pass with two dozen sites, under load for minutes

IN, NORMED, OUT = "layer_2/mlp_in", "layer_2/mlp_normed", "layer_2/mlp_out"
KINDS = ("attn_out", "resid_mid", "mlp_normed", "mlp_in", "mlp_out", "resid_post", "attn_z", "attn_in")


@pytest.fixture(scope="module")
def gained(tiny):
    """The shipped model with gains between about a fifth and five, and what reads the norm's output divided by them."""
    params = jax.tree.map(lambda leaf: leaf, tiny.params)
    for i in range(tiny.config.num_layers):
        D = tiny.config.d_model
        gain = jnp.exp(0.8 * jax.random.normal(jax.random.key(i), (D,)))
        block = params[f"layer_{i}"]
        scale, gating = block["pre_ffw_norm"]["scale"], block["mlp"]["gating_einsum"]
        params[f"layer_{i}"] = block | {
            "pre_ffw_norm": {"scale": (1 + scale) * gain - 1},
            "mlp": block["mlp"] | {"gating_einsum": gating / gain[:, None]},
        }
    return dataclasses.replace(tiny, params=params)


@pytest.fixture(scope="module")
def text(tiny):
    return sae.text.sample(tiny)


@pytest.fixture(scope="module")
def values(gained, text):
    """Of the model with gains, over half of the text, at sites of layer 2."""
    sites = [f"layer_2/{kind}" for kind in KINDS]
    rows = text.tokens[::2]
    return planted.activations(gained, rows, sites), sae.text.is_text(rows, gained.tokenizer.special_ids)


def right(values, site, out=None, **options):
    captured, mask = values
    info = sae.Info("gemma2-tiny", site, out or site, counted=sae.Counted((0, 1, 2, 3)))
    return planted.fitted(captured[site][mask], captured[out or site][mask], info, **options)


def test_the_copy_computes_what_the_shipped_model_does(tiny, gained):
    tokens = jnp.asarray(sae.text.sample(tiny).tokens[:2])
    want, have = (np.asarray(jax.jit(lambda m: m.losses(tokens))(model)) for model in (tiny, gained))
    np.testing.assert_allclose(have, want, atol=2e-3)


def test_each_planted_mistake_is_found_by_its_name(gained, text, values):
    def check(autoencoder):
        result = sae.check(autoencoder, gained, text)
        return result.problems, result.best.usage.site, result.best.usage.site_out

    site = "layer_2/mlp_out"
    truth = right(values, site)
    for claim in ("layer_1/mlp_out", "layer_2/resid_post", "layer_2/attn_z"):
        assert check(planted.claiming(truth, site=claim, site_out=claim)) == (("site",), site, site), claim
    for read, claim in ((IN, NORMED), (NORMED, IN)):
        assert check(planted.claiming(right(values, read, OUT), site=claim)) == (("gain",), read, OUT)
    skipping = right(values, IN, OUT, skip=True)
    assert check(dataclasses.replace(skipping, W_skip=skipping.W_skip.T)) == (("skip",), IN, OUT)
    for scale in (0.05, 8.0):
        arrays = {"W_enc": truth.W_enc / scale, "W_dec": truth.W_dec * scale, "b_dec": truth.b_dec * scale}
        assert check(dataclasses.replace(truth, **arrays)) == (("scale",), site, site), scale
    post = "layer_2/resid_post"
    without_rule = planted.claiming(right(values, post), counted=sae.Counted((0, 1)))
    assert check(without_rule) == (("BOS",), post, post)


def test_silent_about_fifty_random_right_ones(gained, text, values):
    rng = np.random.default_rng(0)
    spoken, worst = [], 0.0
    for seed in range(50):
        options = {"width": int(rng.choice([192, 384])), "share": float(rng.choice([0.8, 0.9, 0.95])), "seed": seed}
        if seed % 2:
            one = right(values, f"layer_2/{rng.choice(KINDS)}", **options)
        else:
            kind, options["skip"] = rng.choice(["resid_mid", "mlp_normed", "mlp_in"]), bool(rng.integers(2))
            one = right(values, f"layer_2/{kind}", OUT, **options)
        result = sae.check(one, gained, text)
        worst = max(worst, result.best.fvu)
        if not result.fits:
            spoken.append((options, result))
    assert not spoken, spoken
    assert worst < 0.9  # each of them does reconstruct
