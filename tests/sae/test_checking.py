"""`sae.check` finds planted mistakes by name, and says nothing about what is right."""

import dataclasses
import functools
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.formats.l0 import claimed_l0
from sae.text.shipped import SAMPLE
from tests.sae import planted

POST, IN, NORMED, OUT = "layer_1/resid_post", "layer_1/mlp_in", "layer_1/mlp_normed", "layer_1/mlp_out"


@functools.cache
def text():
    return sae.text.sample(planted.small_model())


@functools.cache
def captured():
    model = planted.small_model()
    sites = [name for name, site in model.sites.items() if site.kind != "logits"]
    return planted.activations(model, text().tokens[::6], sites)


def values(site):
    return captured()[site]


@functools.cache
def right(site, out=None, skip=False, bos=False):
    """An autoencoder that fits where it says that it does; BOS and padding do not count, or padding alone."""
    model, tokens = planted.small_model(), text().tokens[::6]
    rule = sae.Counted(model.tokenizer.special_ids if not bos else (model.tokenizer.pad, model.tokenizer.eos))
    rows = rule.text(tokens)
    info = sae.Info(model.name, site, out or site, counted=rule)
    return planted.fitted(values(site)[rows], values(out or site)[rows], info, skip=skip)


def check(autoencoder, **options):
    return sae.check(autoencoder, planted.small_model(), text(), **options)


def found(autoencoder, problem, site, out, said):
    """A check finds this problem and no other, and its remedy reconstructs as well as it says."""
    result = check(autoencoder)
    assert result.problems == (problem,) and not result.fits, result
    assert (result.best.usage.site, result.best.usage.site_out) == (site, out), result
    assert said in str(result) and "does not fit as claimed" in str(result), result
    mended = result.mended(autoencoder)
    rows = sae.text.is_text(text().tokens[::6], planted.small_model().tokenizer.special_ids)
    y = values(out)[rows]
    fvu = np.square(mended(values(site)[rows]) - y).sum() / np.square(y - y.mean(axis=0)).sum()
    assert fvu == pytest.approx(result.best.fvu, rel=0.25) and fvu < 0.6  # over other tokens


@pytest.mark.parametrize("claim", ["layer_0/resid_post", "layer_2/resid_post", "layer_1/mlp_out", "layer_1/resid_mid"])
def test_the_wrong_site(claim):
    found(planted.claiming(right(POST), site=claim, site_out=claim), "site", POST, POST, f"It reads {POST}")


def test_the_wrong_site_of_a_transcoders_output():
    wrong = planted.claiming(right(IN, OUT), site_out="layer_1/resid_post")
    found(wrong, "site", IN, OUT, f"It reads {IN} and writes {OUT}")


@pytest.mark.parametrize(("truth", "claim"), [(IN, NORMED), (NORMED, IN)])
def test_the_wrong_gain(truth, claim):
    wrong = planted.claiming(right(truth, OUT), site=claim)
    found(
        wrong, "gain", truth, OUT, f"It reads {truth} and writes {OUT}, which differs from the claimed site by a norm's"
    )


def test_the_transposed_skip():
    truth = right(IN, OUT, skip=True)
    found(dataclasses.replace(truth, W_skip=truth.W_skip.T), "skip", IN, OUT, "W_skip has to be transposed")


def test_the_forgotten_scale():
    """Of an autoencoder whose inputs had a mean norm of sqrt(A), and of a transcoder with two scales."""
    model = planted.small_model()
    rows = values(POST)[sae.text.is_text(text().tokens[::6], model.tokenizer.special_ids)]
    scale = float(np.sqrt(rows.shape[-1]) / np.linalg.norm(rows, axis=-1).mean())
    truth = right(POST)
    wrong = dataclasses.replace(truth, W_enc=truth.W_enc / scale, W_dec=truth.W_dec * scale, b_dec=truth.b_dec * scale)
    found(wrong, "scale", POST, POST, "a scale that was not folded in")
    usage = check(wrong).best.usage
    assert usage.scale == usage.scale_out == pytest.approx(scale, rel=0.05) and "sqrt(A)" in usage.convention
    truth = right(IN, OUT)
    wrong = dataclasses.replace(truth, W_enc=truth.W_enc / 5, W_dec=truth.W_dec * 0.3, b_dec=truth.b_dec * 0.3)
    found(wrong, "scale", IN, OUT, "a scale that was not folded in")
    usage = check(wrong).best.usage
    assert (usage.scale, usage.scale_out) == (pytest.approx(5, rel=0.1), pytest.approx(0.3, rel=0.1))


def test_the_missing_bos_rule():
    pad, eos = planted.small_model().tokenizer.pad, planted.small_model().tokenizer.eos
    wrong = planted.claiming(right(POST), counted=sae.Counted((pad, eos)))
    found(wrong, "BOS", POST, POST, "BOS and other special tokens must not count")
    assert check(wrong).mended(wrong).info.counted.special_ids == (0, 1, 2)


def test_two_mistakes_together():
    truth = right(IN, OUT, skip=True)
    wrong = planted.claiming(dataclasses.replace(truth, W_skip=truth.W_skip.T), site="layer_1/attn_out")
    assert set(check(wrong).problems) == {"site", "skip"}


# Each takes a second or two.
MORE = [
    pytest.param(site, marks=pytest.mark.slow) for site in (OUT, IN, NORMED, "layer_0/attn_out", "layer_2/resid_mid")
]


@pytest.mark.parametrize("site", [POST, "embed", *MORE])
def test_silent_about_right_autoencoders(site):
    result = check(right(site))
    assert result.fits and result.problems == () and str(result).startswith(f"Check({site} of small fits: FVU 0."), (
        result
    )
    assert result.mended(right(site)) is right(site)


def test_an_autoencoder_that_explains_little_of_its_own_site_is_not_said_to_fit_without_more():
    one = right(POST)
    few = one.part(np.arange(one.width // 8))
    result = check(dataclasses.replace(few, info=one.info))
    assert result.fits and 0.5 < result.best.fvu < 0.9
    assert str(result).startswith(f"Check({POST} of small fits best, yet explains little: FVU {result.best.fvu:.3f}")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("site", [IN, *MORE[2:3], pytest.param("layer_1/resid_mid", marks=pytest.mark.slow)])
def test_silent_about_right_transcoders(site, skip):
    assert check(right(site, OUT, skip)).fits


def test_what_is_measured_is_what_evaluation_measures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = sae.evaluate(right(POST), planted.small_model(), text().take(slice(0, 16)))
    result = sae.check(right(POST), planted.small_model(), text().take(slice(0, 16)), tokens=10**6)
    assert result.tokens == metrics.tokens
    np.testing.assert_allclose((result.claimed.fvu, result.claimed.l0), (metrics.fvu, metrics.l0), rtol=1e-4)


def test_silent_about_bos_where_training_had_it():
    result = check(right(POST, bos=True))
    assert result.fits and result.special_error < 0.1, result


def test_nothing_else_is_tried_where_all_is_well():
    x = values(POST).reshape(-1, planted.D)
    eye = jnp.eye(planted.D)
    arrays = (jnp.concatenate([eye, -eye], axis=1), jnp.zeros(2 * planted.D), jnp.concatenate([eye, -eye]))
    exact = sae.JumpReLU(*arrays, jnp.zeros(planted.D), jnp.zeros(2 * planted.D), info=right(POST).info)
    np.testing.assert_allclose(exact(x), x, rtol=1e-5)
    result = check(exact)
    assert result.fits and len(result.tried) == 1 and result.best.fvu < 1e-6


def cross_layer(skip=False, **changes):
    """Of layers 0 and 1, from what their MLPs read to what they write; each layer writes to itself alone."""
    sites = [tuple(f"layer_{i}/{kind}" for i in (0, 1)) for kind in ("mlp_in", "mlp_out")]
    each = [right(*pair, skip=skip) for pair in zip(*sites, strict=True)]
    names = ("W_enc", "b_enc", "b_dec", "threshold", *(["W_skip"] if skip else []))
    arrays = {name: jnp.stack([getattr(one, name) for one in each]) for name in names}
    W_dec = jnp.zeros((2, each[0].width, 2, planted.D))
    for i, one in enumerate(each):
        W_dec = W_dec.at[i, :, i].set(one.W_dec)
    info = dataclasses.replace(each[0].info, **dict(zip(("site", "site_out"), sites, strict=True)) | changes)
    return sae.CrossLayerTranscoder(W_dec=W_dec, info=info, **arrays)


@pytest.mark.slow  # over 5 s
def test_mistakes_of_autoencoders_of_several_sites():
    assert check(cross_layer()).fits
    normed = ("layer_0/mlp_normed", "layer_1/mlp_normed")
    result = check(cross_layer(site=normed))
    assert result.problems == ("gain",) and result.best.usage.site == ("layer_0/mlp_in", "layer_1/mlp_in")
    shifted = {
        name: tuple(f"layer_{i}/{kind}" for i in (1, 2)) for name, kind in (("site", "mlp_in"), ("site_out", "mlp_out"))
    }
    assert check(cross_layer(**shifted)).problems == ("site",)
    one = cross_layer(skip=True)
    assert check(dataclasses.replace(one, W_skip=one.W_skip.swapaxes(1, 2))).problems == ("skip",)


def test_where_nothing_is_claimed_every_site_is_tried():
    unknown = dataclasses.replace(right(OUT), info=None)
    result = check(unknown)
    assert result.problems == ("site",) and result.best.usage.site == OUT and result.claimed is None
    foreign = planted.claiming(right(OUT), site="blocks.1.hook_foo", site_out="blocks.1.hook_foo")
    assert check(foreign).best.usage.site == OUT
    assert "the file claims no site that the model has" in str(check(foreign))
    assert check(unknown, site=OUT).fits


def test_what_fits_nowhere_is_said_to():
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (32, 64), "b_enc": (64,), "W_dec": (64, 32), "b_dec": (32,), "threshold": (64,)}
    arrays = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    noise = sae.JumpReLU(**arrays | {"threshold": jnp.zeros(64)}, info=right(POST).info)
    result = check(noise)
    assert result.problems == ("unknown",) and "Nothing that was tried fits" in str(result)
    with pytest.raises(ValueError, match="nothing that was tried fits, so nothing can be mended"):
        result.mended(noise)


def test_of_another_model_it_is_refused():
    with pytest.raises(ValueError, match="this autoencoder was trained on gemma2-2b, the model given is small"):
        check(planted.claiming(right(POST), model="gemma2-2b"))


def test_the_l0_that_files_claim():
    def claims(**facts):
        return claimed_l0(planted.claiming(right(POST), training=json.dumps(facts)))

    assert claims(gemma_scope={"folder": "layer_20/width_16k/average_l0_71"}) == 71
    assert claims(gemma_scope_2={"config": {"l0": 150}}) == 150
    run = sae.short_run(POST, 64, 40, l0_target=20)
    assert claims(run=run.json()) == 20
    assert claims() is None and claims(gemma_scope={"folder": "x"}) is None


def test_an_l0_far_from_the_claim_is_said_and_reason_enough_to_look():
    facts = json.dumps({"gemma_scope_2": {"config": {"l0": 3}}})
    result = check(planted.claiming(right(POST), training=facts))
    assert len(result.tried) > 1 and result.fits and "(claimed or aimed at: 3)" in str(result)


def test_load_checks_at_once(tmp_path, recwarn):
    model = planted.small_model()
    sae.save(right(POST), tmp_path / "right")
    sae.load(tmp_path / "right", check=(model, text()))
    assert not [one for one in recwarn if issubclass(one.category, sae.CheckWarning)]
    sae.save(planted.claiming(right(POST), site=OUT, site_out=OUT), tmp_path / "wrong")
    with pytest.warns(sae.CheckWarning, match=f"It reads {POST}.*{SAMPLE}"):
        sae.load(tmp_path / "wrong", check=model)
    assert "sequences of 128 tokens" in str(check(right(POST)))
