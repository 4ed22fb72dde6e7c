"""A model of another family goes the whole way, from text to pages, by the protocol alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.evaluation import fidelity, programs
from sae.evaluation.latents import latent_statistics, logit_effects, top_tokens
from sae.explorer import pages
from sae.sites import dim, matching, site_of, token_site
from sae.text import Document, cut
from tests.sae import speaking
from tests.sae.letters import SITES, Letters, letter_model

HEADS, STREAM = "block.0.heads", "block.1.resid"


@pytest.fixture(scope="module")
def text():
    words = "the sea was calm. a ship came in from the north with salt and wool. nobody knew whose it was. "
    documents = [Document(f"d{i}", "s", words[7 * i :] + words[: 5 * i]) for i in range(12)]
    return cut(documents, Letters(), 24)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    model, counted = letter_model(), sae.Counted(Letters.special_ids, sinks=sae.Sinks(3.0))
    store = sae.harvest(model, text, [HEADS, STREAM], tmp_path_factory.mktemp("letters") / "store", counted=counted)
    runs = [sae.short_run(site, 48, 20, batch_size=64, l0_target=24) for site in store.sites]
    return store, sae.train(runs, store)[0]


@pytest.mark.slow
def test_both_models_speak_as_the_protocol_says(tiny):
    speaking.check(letter_model(), "the sea was calm.")
    speaking.check(tiny, "And God said")


def test_documents_are_cut_without_what_the_tokenizer_puts_around_them(text):
    assert (text.tokens[:, 0] == Letters.bos).all() and Letters.eos not in text.tokens
    assert Letters().decode(text.tokens[0, 1:8]) == "the sea"
    assert (text.tokens == Letters.pad).any()


def test_the_store_has_what_the_model_computes(trained, text):
    store, _ = trained
    assert store.manifest.sites == {HEADS: (2, 6), STREAM: (12,)} and store.manifest.counted.sinks.sites == (STREAM,)
    batch = next(store.batches(32, [HEADS, "token"]))
    _, values = letter_model().apply(text.tokens, capture=[HEADS])
    rows = np.asarray(values[HEADS]).reshape(-1, 12)
    for row, token in zip(batch[HEADS], batch["token"], strict=True):
        assert token in text.tokens.reshape(-1)[np.abs(rows - row).max(axis=1) < 1e-5]


def test_it_is_measured_as_by_hand(trained, text):
    model, (heads, stream) = letter_model(), trained[1]
    assert heads.info.model == "letters" and heads.info.shape == (2, 6) and stream.info.shape == (12,)
    for autoencoder, site in ((heads, HEADS), (stream, STREAM)):
        metrics = sae.evaluate(autoencoder, model, text)
        # What training left out: special ids and, by the norm that it records, sinks.
        _, values = model.apply(text.tokens, capture=[site, STREAM])
        counts = ~np.isin(text.tokens, Letters.special_ids)
        for sink_site, limit in autoencoder.info.counted.sink_limits:
            counts &= np.linalg.norm(values[sink_site], axis=-1) <= limit
        put = lambda value, _, a=autoencoder, c=counts: jnp.where(  # noqa: E731
            jnp.reshape(c, c.shape + (1,) * (value.ndim - 2)), a(value), value
        )
        spliced = model.losses(text.tokens, edits={site: put})
        predicted = counts[:, :-1] & counts[:, 1:]
        assert metrics.tokens == counts.sum() and metrics.predictions == predicted.sum()
        assert metrics.loss == pytest.approx(float(np.asarray(model.losses(text.tokens))[predicted].mean()), abs=1e-5)
        assert metrics.loss_spliced == pytest.approx(float(np.asarray(spliced)[predicted].mean()), abs=1e-5)
        assert metrics.l0 == pytest.approx(
            float((np.asarray(autoencoder.encode(values[site]))[counts] > 0).sum(-1).mean()), rel=1e-3
        )


def test_its_logits_are_a_site_like_any_other(text):
    model = letter_model()
    reference = fidelity.baseline(model, text, "logits")
    captured = model.apply(text.tokens, capture="logits")[1]
    losses = programs.losses_with(model, jnp.asarray(text.tokens), captured)
    np.testing.assert_allclose(losses, model.losses(text.tokens), atol=1e-5)
    assert float(reference.sums["loss_zero"] / reference.sums["predictions"]) == pytest.approx(
        np.log(model.vocab_size), rel=0.2
    )


def test_latents_move_logits_through_the_models_own_weights(trained):
    model, heads = letter_model(), trained[1][0]
    effects = logit_effects(heads, model, HEADS, slice(3, 5))
    want = np.asarray(heads.W_dec)[3:5] @ np.asarray(model.params["out"][0] @ model.params["embed"].T)
    np.testing.assert_allclose(effects, want - want.mean(axis=1, keepdims=True), atol=1e-5)
    assert top_tokens(heads, model, HEADS, count=3).promoted.max() < len(Letters())  # rows without a piece are left out


def test_its_pages_show_its_letters(trained, text, tmp_path):
    model, stream = letter_model(), trained[1][1]
    statistics = latent_statistics(stream, model, text, STREAM, examples=2)
    about = pages.About("letters", "nothing")
    index = pages.write_latents(tmp_path, "", "letters", stream, statistics, None, text, model.tokenizer, about)
    written = [page.read_text("utf-8") for page in index.parent.glob("[0-9]*.html")]
    shown = re.sub(r"<[^>]*>", "", "".join(written))
    assert re.search(r"(ship|calm|north|nobody|whose)", shown) and "&lt;pad&gt;" not in shown


def test_a_batch_goes_over_the_meshs_axis_data(text, meshes, tmp_path):
    mesh = meshes(4, 1)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.device_put(letter_model(), where)
    one, four = (
        sae.harvest(model, text, [STREAM], tmp_path / name, mesh=m)
        for name, model, m in (("one", letter_model(), None), ("four", spread, mesh))
    )
    for a, b in zip(one.batches(64), four.batches(64), strict=False):
        np.testing.assert_allclose(a[STREAM], b[STREAM], atol=1e-5)
        break


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block.0.resit", r"no site 'block.0.resit' in letters: did you mean block.0.resid"),
        ("block.7.heads", r"no site 'block.7.heads' in letters: it has block.0.heads to block.1.heads"),
        ("block.1.weights", r"block.1.weights has a value for every pair of tokens, and an autoencoder needs a vector"),
        ("zzz", r"no site 'zzz' in letters: did you mean stream.start"),
    ],
)
def test_a_site_that_cannot_be_trained_on_is_one_error_everywhere(name, message, text, tmp_path):
    model, autoencoder = letter_model(), sae.JumpReLU(*map(jnp.zeros, ((12, 4), 4, (4, 12), 12, 4)))
    for refused in (
        lambda: token_site(model, name),
        lambda: matching(model, [name]),
        lambda: sae.harvest(model, text, [name], tmp_path / "s"),
        lambda: sae.stream(model, text, [name]),
        lambda: sae.evaluate(autoencoder, model, text, site=name),
        lambda: fidelity.baseline(model, text, name),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "s").exists()


def test_patterns_name_sites_of_single_tokens_in_order():
    model = letter_model()
    assert matching(model, ["block.1.*"]) == ["block.1.heads", "block.1.mlp", "block.1.resid"]
    assert matching(model, ["logits", "*.mlp"]) == ["logits", "block.0.mlp", "block.1.mlp"]
    assert dim(site_of(model, HEADS)) == 12 and site_of(model, "block.1.weights") is SITES["block.1.weights"]
    with pytest.raises(ValueError, match="every pair of tokens"):
        matching(model, ["*.weights"])
