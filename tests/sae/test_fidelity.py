"""The measures by hand."""

import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite
import sae
from gemma.sharding import param_shardings
from sae.autoencoder import bare
from sae.capturing import activations_at
from sae.evaluation import fidelity, latents, measuring, programs
from sae.evaluation.counting import counted_text, sites_to_capture
from sae.evaluation.metrics import summarise
from sae.records import Record
from sae.text import as_sequences, is_text
from tests import compilations
from tests.sae.examples import SITE, autoencoder_for, sequences


def test_figures_from_sums_by_hand():
    """Two tokens with activations (1, 3) and (5, 1), reconstructed as (1, 2) and (4, 1); latents on: {0}, {0, 2}."""
    sums = {
        "tokens": np.float64(2),
        "predictions": np.float64(4),
        "documents": np.float64(2),
        "active": np.array([2.0, 0.0, 1.0]),
        "errors": np.float64(2),
        "shifted": np.array([6.0, 4.0]),  # around a centre of zero
        "squares": np.float64(36),
        "loss": np.float64(8),
        "loss_spliced": np.float64(10),
        "loss_zero": np.float64(16),
    }
    m = summarise(sums, "s")
    # The mean is (3, 2); the variation (2² + 1²) + (2² + 1²) = 10.
    assert (m.l0, m.fvu, m.dead, m.width) == (1.5, pytest.approx(0.2), 1, 3)
    assert (m.loss, m.loss_spliced, m.loss_zero, m.delta_loss) == (2.0, 2.5, 4.0, 0.5)
    assert m.loss_recovered == pytest.approx(0.75)


SITES = [(SITE, SITE), ("layer_1/attn_z",) * 2, ("layer_2/mlp_out", "layer_2/mlp_in"), ("embed", "embed")]


@jax.jit
def final_norm_with(model, tokens, values):
    """What the unembedding reads, [B, T, D]."""
    put = lambda new: lambda value, _: new.reshape(value.shape)  # noqa: E731
    edited = mishax_lite.edit(model.apply, {site: put(new) for site, new in values.items()})
    return mishax_lite.capture(edited, ["final_norm"])(tokens)[1]["final_norm"]


def by_numpy(model, tokens, text, values):
    """The loss in float64, from all logits [B, T, V] and the softcap written out, with {site: [B, T, A]} put in."""
    last = final_norm_with(model, tokens, {site: np.asarray(new, np.float32) for site, new in values.items()})
    table = np.asarray(model.params["embedder"]["input_embedding"], np.float64)
    logits, cap = np.asarray(last, np.float64) @ table.T, model.config.final_softcap
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    each = -np.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return each[text[:, :-1] & text[:, 1:]].mean()


def check(metrics, model, tokens, text, sites, y, made, f):
    """Metrics against y and what the autoencoder made of it, {site: [B, T, A]}, and latents [B, T, Z]."""
    spliced, zero = ({site: np.where(text[..., None], new[site], y[site]) for site in sites} for new in (made, ZERO))
    losses = {"loss": y, "loss_spliced": spliced, "loss_zero": zero}
    losses = {
        name: by_numpy(model, tokens, text, {site: values[site] for site in sites}) for name, values in losses.items()
    }
    for name, want in losses.items():
        assert getattr(metrics, name) == pytest.approx(want, abs=1e-5)
    assert metrics.delta_loss == pytest.approx(losses["loss_spliced"] - losses["loss"], abs=1e-5)
    span = losses["loss_zero"] - losses["loss"]
    recovered = (losses["loss_zero"] - losses["loss_spliced"]) / span
    # Where zero hardly does harm, the quotient is as uncertain as losses of 1e-5 nats make it.
    assert metrics.loss_recovered == pytest.approx(recovered, abs=1e-5 * max(1, (1 + abs(recovered)) / abs(span)))
    errors = sum(((made[site] - y[site])[text].astype(np.float64) ** 2).sum() for site in sites)
    spread = sum(((y[site][text] - y[site][text].mean(axis=0)) ** 2).sum() for site in sites)
    assert metrics.fvu == pytest.approx(errors / spread, abs=1e-5)
    on = f[text] > 0
    assert (metrics.tokens, metrics.dead) == (text.sum(), (~on.any(axis=0)).sum())
    assert metrics.l0 == pytest.approx(on.sum(axis=1).mean(), abs=1e-3)
    np.testing.assert_allclose(metrics.largest.values, f[text].max(axis=0), rtol=1e-4, atol=1e-4)
    assert metrics.largest.tokens == text.sum()


ZERO = collections.defaultdict(float)


def apart(autoencoder, x):
    """The autoencoder with each threshold in the widest gap near a half, so that no latent is on or off by rounding."""
    z = np.asarray(dataclasses.replace(autoencoder, threshold=jnp.full(autoencoder.width, -1e9)).encode(x))
    z = np.sort(np.clip(z.reshape(-1, autoencoder.width), 0.3, 0.7), axis=0)
    widest = np.argmax(np.diff(z, axis=0), axis=0)
    low, high = (np.take_along_axis(z, (widest + i)[None], axis=0)[0] for i in (0, 1))
    return dataclasses.replace(autoencoder, threshold=jnp.asarray((low + high) / 2))


@pytest.mark.parametrize(("site", "site_in"), SITES)
def test_evaluate_equals_a_slow_and_simple_way(tiny, site, site_in):
    tokens, autoencoder = sequences(tiny), autoencoder_for(tiny, 192, site_in)
    autoencoder = dataclasses.replace(autoencoder, info=dataclasses.replace(autoencoder.info, site_out=site))
    if site != site_in:
        skip = 0.1 * jax.random.normal(jax.random.key(2), (192, 192))
        autoencoder = dataclasses.replace(autoencoder, W_skip=skip)
    captured = activations_at(tiny, tokens, tuple(sorted({site, site_in})))
    x, y = (np.asarray(captured[name], np.float64) for name in (site_in, site))
    autoencoder = apart(autoencoder, x)
    f, made = np.asarray(autoencoder.encode(x)), {site: np.asarray(autoencoder(x))}
    text = is_text(tokens, tiny.tokenizer.special_ids)
    check(sae.evaluate(autoencoder, tiny, tokens), tiny, tokens, text, [site], {site: y}, made, f)


def crosscoder_for(model, sites, width=192, latents=384):
    rng = np.random.default_rng(0)
    shapes = {
        "W_enc": (len(sites), width, latents),
        "W_dec": (latents, len(sites), width),
        "b_dec": (len(sites), width),
    }
    arrays = {name: jnp.float32(rng.normal(size=shape) / np.sqrt(width)) for name, shape in shapes.items()}
    arrays |= {"b_enc": jnp.zeros(latents), "threshold": jnp.full(latents, 0.5)}
    return sae.Crosscoder(**arrays, info=sae.Info(model.config.name, sites, sites))


@pytest.mark.slow
def test_a_crosscoder_is_spliced_in_at_all_its_sites(tiny):
    """Of layers 1 and 4, whose second reconstruction takes no notice of the first; and of two sublayers, where it does
    matter what layers between make of it."""
    tokens = sequences(tiny, 5)
    text = is_text(tokens, tiny.tokenizer.special_ids)
    for sites in (("layer_1/resid_post", "layer_4/resid_post"), ("layer_3/mlp_out", "layer_1/attn_out")):
        crosscoder = crosscoder_for(tiny, sites)
        captured = activations_at(tiny, tokens, tuple(sorted(sites)))
        y = {site: np.asarray(captured[site]) for site in sites}
        x = np.stack([y[site] for site in sites], axis=-2)
        crosscoder = apart(crosscoder, x)
        f, made = np.asarray(crosscoder.encode(x)), np.asarray(crosscoder(x))
        metrics = sae.evaluate(crosscoder, tiny, tokens)
        assert metrics.site == "+".join(sites)
        check(metrics, tiny, tokens, text, sites, y, {site: made[:, :, i] for i, site in enumerate(sites)}, f)
    with pytest.raises(ValueError, match=r"a Crosscoder of 2 sites cannot be evaluated at layer_1/mlp_out: name 2"):
        sae.evaluate(dataclasses.replace(crosscoder, info=None), tiny, tokens, site="layer_1/mlp_out")


def with_tokenizer(model, tiny):
    """A model without a tokenizer, with what evaluation needs of one."""
    return dataclasses.replace(model, tokenizer=tiny.tokenizer)


@pytest.mark.slow
def test_a_gemma_3_without_a_softcap(golden_3, tiny):
    model, tokens = with_tokenizer(golden_3[0], tiny), np.array([[2, *range(10, 40)], [2, *range(200, 220), *[0] * 10]])
    autoencoder = autoencoder_for(model, 40, "layer_5/mlp_out")
    site, text = "layer_5/mlp_out", is_text(tokens, tiny.tokenizer.special_ids)
    y = np.asarray(activations_at(model, tokens, (site,))[site])
    autoencoder = apart(autoencoder, y)
    f, made = np.asarray(autoencoder.encode(y)), {site: np.asarray(autoencoder(y))}
    check(sae.evaluate(autoencoder, model, tokens), model, tokens, text, [site], {site: y}, made, f)


def test_a_model_in_bfloat16(tiny):
    """Its figures are those of its own activations, in float32 from there on."""
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), tiny.params)
    model = dataclasses.replace(tiny, params=params, dtype=jnp.dtype("bfloat16"))
    tokens, autoencoder = sequences(tiny, 5), autoencoder_for(tiny, 192)
    metrics, wide = (sae.evaluate(autoencoder, m, tokens) for m in (model, tiny))
    y = np.asarray(activations_at(model, tokens, (SITE,))[SITE], np.float32)
    text = is_text(tokens, tiny.tokenizer.special_ids)
    error, spread = np.asarray(autoencoder(y))[text] - y[text], y[text] - y[text].mean(axis=0)
    assert metrics.fvu == pytest.approx((error**2).sum() / (spread**2).sum(), abs=1e-5)
    assert metrics.delta_loss == pytest.approx(wide.delta_loss, rel=0.02)


def test_several_in_one_pass_are_as_one_by_one(tiny):
    """Of two sites, one of them with several; a transcoder goes into a site that another is of."""
    tokens = sequences(tiny)
    transcoder = autoencoder_for(tiny, 192, "layer_1/mlp_in")
    transcoder = dataclasses.replace(transcoder, info=sae.Info("gemma2-tiny", "layer_1/mlp_in", "layer_1/mlp_out"))
    group = [autoencoder_for(tiny, 192, "layer_1/mlp_out"), autoencoder_for(tiny, 192), transcoder]
    group.append(autoencoder_for(tiny, 192, "layer_1/mlp_out", seed=1))
    together = sae.evaluate(group, tiny, tokens)
    assert [m.site for m in together] == ["layer_1/mlp_out", SITE, "layer_1/mlp_out", "layer_1/mlp_out"]
    for one, metrics in zip(group, together, strict=True):
        alone = sae.evaluate(one, tiny, tokens)
        assert alone == metrics and alone.largest == metrics.largest
        shared = fidelity.baseline(tiny, tokens, alone.site)
        assert sae.evaluate([one], tiny, tokens, baseline=shared) == [metrics]


def test_what_lies_below_a_site_is_computed_once_a_batch_of_many_sequences(tiny, monkeypatch):
    """And what lies above it once for the clean loss, once with zero and once for each autoencoder."""
    calls = collections.Counter()

    def counted(module, name):
        original = getattr(module, name)

        def call(model, tokens, *rest):
            calls[name, len(tokens)] += 1
            return original(model, tokens, *rest)

        monkeypatch.setattr(module, name, call)

    counted(measuring, "activations_at")
    counted(programs, "losses_with")
    group = [autoencoder_for(tiny, 192, seed=seed) for seed in range(3)]
    sae.evaluate(group, tiny, sequences(tiny, 5 * 16))
    rows = len(sequences(tiny, 5 * 16))
    batches = -(-rows // 16)
    assert calls == {("activations_at", 16): batches, ("losses_with", 16): 5 * batches} and batches > 1


@pytest.mark.parametrize(
    "shape", [(2, 4), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1), (1, 8)))]
)
def test_eight_devices_give_what_one_gives(tiny, meshes, shape):
    mesh, tokens = meshes(*shape), sequences(tiny, 11)
    spread = dataclasses.replace(tiny, params=jax.device_put(tiny.params, param_shardings(tiny.params, mesh)))
    norms = np.linalg.norm(activations_at(tiny, tokens, (SITE,))[SITE], axis=-1)
    sinks = json.dumps({"left_out": {"sink_norms": {SITE: float(np.quantile(norms, 0.8))}}})
    autoencoder = autoencoder_for(tiny, 192)
    autoencoder = dataclasses.replace(autoencoder, info=dataclasses.replace(autoencoder.info, training=sinks))
    crosscoder = crosscoder_for(tiny, ("layer_1/attn_z", "layer_2/mlp_out"))
    for one in (autoencoder, crosscoder):
        want, got = sae.evaluate(one, tiny, tokens), sae.evaluate(one, spread, tokens)
        assert (got.tokens, got.predictions, got.dead) == (want.tokens, want.predictions, want.dead)
        for name in ("l0", "fvu", "loss", "delta_loss", "loss_recovered"):
            assert getattr(got, name) == pytest.approx(getattr(want, name), abs=1e-5)
        np.testing.assert_allclose(got.largest.values, want.largest.values, rtol=1e-4, atol=1e-4)


def test_latents_in_blocks_of_tokens_are_those_of_all_at_once(tiny, monkeypatch):
    """Also where the blocks do not divide the tokens, and with a crosscoder's axes."""
    rng = np.random.default_rng(0)
    text = rng.random((3, 10)) < 0.8
    for one, sites in ((autoencoder_for(tiny, 192), 1), (crosscoder_for(tiny, ("embed", SITE)), 2)):
        ys = tuple(jnp.float32(rng.normal(size=(3, 10, 192))) for _ in range(sites))
        want = programs.reconstruct(bare(one), ys, ys, text)
        monkeypatch.setattr(programs, "LATENTS", 3 * 3 * one.width)
        got = jax.jit(lambda *given: programs.reconstruct.__wrapped__(*given))(bare(one), ys, ys, text)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)
        monkeypatch.undo()
        x = np.asarray(programs.joined(ys))
        f = np.asarray(one.encode(x)) * text[..., None]
        np.testing.assert_allclose(want[1]["largest"], f.max(axis=(0, 1)), rtol=1e-5)
        np.testing.assert_array_equal(want[1]["active"], (f > 0).sum(axis=(0, 1)))
        made = np.asarray(one(x)).reshape(3, 10, sites, 192)
        for i, (spliced, y) in enumerate(zip(want[0], ys, strict=True)):
            np.testing.assert_allclose(spliced, np.where(text[..., None], made[:, :, i], y), rtol=1e-4, atol=1e-4)


def forward_passes(names):
    """How many of the programs compiled have a part of the model in them."""
    return sum(name in ("captured_at", "losses_with") for name in names)


def test_a_sweep_at_one_site_compiles_the_model_once(tiny):
    """Autoencoders of one shape share all of it, those of another width the model, whose two parts make one pass; an
    autoencoder's statistics compile no part of it either."""
    tokens, site = sequences(tiny, 5)[:, :20], "layer_1/mlp_out"  # a length that no other test has
    with compilations.counted() as first:
        shared = fidelity.baseline(tiny, tokens, site)
        sae.evaluate(autoencoder_for(tiny, 192, site), tiny, tokens, baseline=shared)
    assert forward_passes(first) == 2 and first.count("reconstruct") == 1
    with compilations.counted() as second:
        sae.evaluate(autoencoder_for(tiny, 192, site, seed=1), tiny, tokens, baseline=shared)
        sae.evaluate(autoencoder_for(tiny, 192, site, seed=2), tiny, tokens)
    assert second == []
    wide = autoencoder_for(tiny, 192, site)
    narrow = jax.tree.map(lambda leaf: leaf[..., :96], (wide.W_enc, wide.b_enc, wide.threshold))
    narrow = sae.JumpReLU(narrow[0], narrow[1], wide.W_dec[:96], wide.b_dec, narrow[2], info=wide.info)
    with compilations.counted() as third:
        sae.evaluate(narrow, tiny, tokens, baseline=shared)
        latents.latent_statistics(wide, tiny, tokens, site)
    assert forward_passes(third) == 0 and third.count("reconstruct") == 1


@pytest.mark.parametrize(
    "site", ["embed", "layer_3/resid_pre", "layer_3/q", "layer_5/mlp_hidden", "final_norm", "logits"]
)
def test_the_loss_from_a_site_on_is_the_loss_of_the_whole_pass(tiny, site):
    """With the site's own activations put back, wherever the pass is taken up again."""
    tokens = sequences(tiny, 3)
    captured = activations_at(tiny, tokens, sites_to_capture(tiny, site, site, sae.Counted(())))
    values = {name: captured[name] for name in (*tiny.resumption((site,)), site)}
    logits = np.asarray(jax.jit(tiny.apply)(tokens), np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    want = -np.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(programs.losses_with(tiny, tokens, values), want, atol=1e-5)


def test_a_pass_is_taken_up_again_at_the_lowest_layer(tiny):
    resumption = tiny.resumption
    assert resumption(["layer_5/mlp_out"]) == ("layer_5/resid_pre",)
    assert resumption(("layer_5/mlp_out", "layer_2/attn_z", "logits")) == ("layer_2/resid_pre",)
    assert resumption(("layer_3/resid_post", "layer_2/resid_pre")) == ()  # the stream itself is put in
    assert resumption(("layer_3/resid_post", "embed")) == resumption(("final_norm",)) == ()


def test_the_layers_below_a_site_are_not_computed_again(tiny):
    """The program that goes on from a site of layer 4 of 6 has a third of the products."""
    tokens = jnp.zeros((2, 64), jnp.int32)

    def products(site):
        values = {s: jnp.zeros((2, 64, 192)) for s in (*tiny.resumption((site,)), site)}
        lowered = jax.jit(programs.losses_with.__wrapped__).lower(tiny, tokens, values)
        return lowered.compile().cost_analysis()["flops"]

    top = products("final_norm")
    whole, part = (products(site) - top for site in ("layer_0/mlp_out", "layer_4/mlp_out"))
    assert part < 0.4 * whole


def test_an_exact_autoencoder_loses_nothing(tiny):
    W = jnp.concatenate([jnp.eye(192), -jnp.eye(192)], axis=1)
    exact = sae.JumpReLU(W, jnp.zeros(384), W.T, jnp.zeros(192), jnp.zeros(384))
    metrics = sae.evaluate(exact, tiny, sequences(tiny), site=SITE)
    assert metrics.fvu < 1e-10
    assert abs(metrics.delta_loss) < 1e-5
    assert metrics.loss_recovered == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_belong_is_refused(tiny):
    tokens = sequences(tiny, 2)
    with pytest.raises(ValueError, match=r"have the dim 192, the autoencoder takes 64"):
        sae.evaluate(autoencoder_for(tiny, 64), tiny, tokens)
    other = autoencoder_for(tiny, 192)
    object.__setattr__(other, "info", sae.Info("gemma2-2b", SITE, SITE))
    with pytest.raises(ValueError, match=r"trained on gemma2-2b, the model given is gemma2-tiny"):
        sae.evaluate(other, tiny, tokens)
    object.__setattr__(other, "info", None)
    with pytest.raises(ValueError, match=r"name the site"):
        sae.evaluate(other, tiny, tokens)
    with pytest.raises(ValueError, match=r"no site 'layer_2/resid_past'.*layer_2/resid_post"):
        sae.evaluate(other, tiny, tokens, site="layer_2/resid_past")
    transcoder = dataclasses.replace(
        autoencoder_for(tiny, 192), info=sae.Info("gemma2-tiny", "layer_2/mlp_in", "layer_2/mlp_out")
    )
    with pytest.raises(ValueError, match=r"from layer_2/mlp_in to layer_2/mlp_out; got layer_1/mlp_in"):
        sae.evaluate(transcoder, tiny, tokens, site="layer_1/mlp_in")
    with pytest.raises(ValueError, match=r"with text in them"):
        sae.evaluate(autoencoder_for(tiny, 192), tiny, np.zeros((2, 8), np.int32))


def test_a_model_of_another_configuration_is_refused(tiny):
    """With the same parameters, by what the autoencoder and a baseline record."""
    other = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, rope_base=100.0))
    info = sae.Info("gemma2-tiny", SITE, SITE, counted=sae.Counted((0, 1, 2)), record=Record(tiny.fingerprint))
    autoencoder, tokens = dataclasses.replace(autoencoder_for(tiny, 192), info=info), sequences(tiny, 2)
    fidelity.check_fits(autoencoder, tiny)
    with pytest.raises(
        ValueError, match=r"trained on a gemma2-tiny with parameters .*, the model given is a gemma2-tiny"
    ):
        sae.evaluate(autoencoder, other, tokens)
    text = counted_text(info, tiny, as_sequences(tokens, tiny))
    about = {"counted": text.rule, "text": "", "text_sha256": text.sha256, "model": tiny.name}
    reference = measuring.Baseline(SITE, np.zeros(192), {}, **about, model_fingerprint=tiny.fingerprint)
    reference.check((SITE,), text, tiny)
    bare_one = dataclasses.replace(autoencoder, info=None)
    with pytest.raises(
        ValueError, match=r"this baseline is of another evaluation: model: the baseline's is gemma2-tiny"
    ):
        sae.evaluate(bare_one, other, tokens, SITE, baseline=reference, counted=text.rule)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"b_dec": a.b_dec * jnp.nan}, "b_dec must be finite, got 192 values that are not"),
        (lambda a: {"W_enc": a.W_enc.at[3, 5].set(jnp.inf)}, "W_enc must be finite, got 1 values that are not"),
        (lambda a: {"threshold": a.threshold.at[7].set(-1.0)}, "threshold must be at least 0, got 1 below it"),
        (
            lambda a: {name: jnp.stack([x, x]) for name, x in vars(a).items() if hasattr(x, "dtype")},
            "an autoencoder's W_enc has 2 axes, got 3: give stacked autoencoders one at a time",
        ),
    ],
)
def test_an_autoencoder_that_measures_nothing_is_refused(tiny, change, message):
    autoencoder = autoencoder_for(tiny, 192)
    with pytest.raises(ValueError, match=message):
        sae.evaluate(dataclasses.replace(autoencoder, **change(autoencoder)), tiny, sequences(tiny, 2))


def test_a_progress_that_leaves_out_batches_is_an_error(tiny):
    """No figures over a part of the text."""
    with pytest.raises(ValueError, match="progress ended after 0 of 1: it has to give every one"):
        sae.evaluate(autoencoder_for(tiny, 192), tiny, sequences(tiny, 2), progress=lambda starts, **_: [])
