"""`sae.latents` and `sae.explore`, on a small model, against numpy and the pages themselves."""

import dataclasses
import re

import numpy as np
import pytest

import sae
from tests.sae.letters import Letters
from tests.sae.models import lettered

SITE = "blocks/1"
pytestmark = pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")


@pytest.fixture(scope="module")
def model():
    return lettered.model()


@pytest.fixture(scope="module")
def sequences():
    return lettered.sequences()


def autoencoder(site=SITE, seed=0):
    W = np.random.default_rng(seed).normal(size=(24, 16)).astype(np.float32)
    info = sae.Info("equinox", site, site, counted=sae.Counted(Letters.special_ids))
    zeros = np.zeros(16, np.float32)
    return sae.JumpReLU(W, zeros, W.T, np.zeros(24, np.float32), zeros + 2, info=info)


def by_hand(model, sequences):
    """The latents [S, T, Z] of tokens that count, and which tokens count."""
    x = np.asarray(model.run(sequences.tokens, capture=SITE).values[SITE])
    counts = ~np.isin(sequences.tokens, Letters.special_ids)
    z = x @ autoencoder().W_enc
    return np.where((z > 2) & counts[..., None], z, 0), counts


def test_a_latent_in_words_is_what_numpy_finds(model, sequences):
    found = sae.latents(autoencoder(), model, sequences, examples=2, tokens=3, neighbours=2)
    f, counts = by_hand(model, sequences)
    unit = autoencoder().W_dec / np.linalg.norm(autoencoder().W_dec, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    effects = np.asarray(model.logit_directions(SITE, autoencoder().W_dec))[:, : len(Letters())]
    assert len(found) == 16 and (f > 0).any()
    for latent in range(16):
        one, row = found[latent], int(f[..., latent].max(axis=1).argmax())
        assert one.frequency == pytest.approx((f[..., latent] > 0).sum() / counts.sum())
        assert one.largest == pytest.approx(f[..., latent].max(), rel=1e-5)
        assert [n for n, _ in one.neighbours] == np.argsort(-cosines[latent])[:2].tolist()
        assert [token for token, _ in one.promoted] == [Letters().piece(i) for i in np.argsort(-effects[latent])[:3]]
        assert one.suppressed[0][1] == pytest.approx(effects[latent].min(), abs=1e-4)
        if one.largest:
            example = one.examples[0]
            assert (example.sequence, example.position) == (row, int(f[row, :, latent].argmax()))
            assert example.token == Letters().piece(int(sequences.tokens[row, example.position]))
            assert example.document == sequences.documents[sequences.document[row]][0]
            assert example.text == Letters().decode(i for i in sequences.tokens[row] if i > 2)
        else:
            assert one.examples == ()


def test_none_of_something_is_none_and_the_rest_stays(model, sequences):
    full = sae.latents(autoencoder(), model, sequences)
    for name, kept in (("examples", "examples"), ("tokens", "promoted"), ("neighbours", "neighbours")):
        for one, other in zip(full, sae.latents(autoencoder(), model, sequences, **{name: 0}), strict=True):
            assert getattr(one, kept) and getattr(other, kept) == ()
            suppressed = () if name == "tokens" else one.suppressed
            assert other == dataclasses.replace(one, suppressed=suppressed, **{kept: ()})
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1: 0 keeps none"):
            sae.latents(autoencoder(), model, sequences, **{name: -1})
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1.5"):
            sae.latents(autoencoder(), model, sequences, **{name: 1.5})


def test_iterating_goes_through_those_that_fire_the_most_frequent_first(model, sequences):
    found = sae.latents(autoencoder(), model, sequences)
    fired = [latent.frequency for latent in found]
    assert fired == sorted(fired, reverse=True) and min(fired) > 0
    assert len(fired) == np.count_nonzero(found.statistics.fired)
    with pytest.raises(IndexError, match="latents 0 to 15, got 16"):
        found[16]


def test_latents_that_do_not_write_promote_nothing_and_crosscoders_are_refused(model, sequences):
    W = np.ones((48, 4), np.float32)
    info = sae.Info("equinox", "blocks/1/mlp/up", "blocks/1/mlp/up", counted=sae.Counted(Letters.special_ids))
    wide = sae.JumpReLU(W, W[0], W.T, W[:, 0], W[0], info=info)
    found = sae.latents(wide, model, sequences)
    assert found.effects is None and found[0].promoted == ()
    arrays = [np.zeros(shape, np.float32) for shape in ((2, 24, 8), (8,), (8, 2, 24), (2, 24), (8,))]
    with pytest.raises(ValueError, match="one site, got a Crosscoder"):
        sae.latents(sae.Crosscoder(*arrays), model, sequences)


def test_exploring_writes_pages_for_each_autoencoder_once(model, sequences, tmp_path):
    pair = [autoencoder(), autoencoder(seed=1)]
    index = sae.explore(pair, model, sequences, tmp_path, text="a few words")
    assert index == tmp_path / "index.html"
    page = index.read_text("utf-8")
    links = re.findall(r'href="([^"]+/index.html)"', page)
    assert links == ["blocks/1/width_16/index.html", "blocks/1/width_16_2/index.html"] and "of a few words" in page
    found = sae.latents(pair[0], model, sequences)
    folder = (tmp_path / links[0]).parent
    written = {int(file.stem) for file in folder.glob("[0-9]*.html")}
    assert written == {latent.latent for latent in found}
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*/*.html") if file.parent != tmp_path}
    sae.explore(pair, model, sequences, tmp_path, text="a few words")
    assert times == {file: file.stat().st_mtime_ns for file in times}
    moved = dataclasses.replace(pair[0], b_enc=pair[0].b_enc + 1)
    sae.explore([moved, pair[1]], model, sequences, tmp_path, text="a few words")
    changed = {file.parent for file, time in times.items() if not file.exists() or file.stat().st_mtime_ns != time}
    assert changed == {folder}


@pytest.mark.parametrize(
    ("autoencoders", "message"),
    [
        ({}, "needs an autoencoder, got none"),
        ({"../a": autoencoder()}, "is a path below the folder of the pages, got '../a'"),
        ([dataclasses.replace(autoencoder(), info=None)], "which does not say its site"),
        (["a"], "takes autoencoders of one site"),
    ],
)
def test_what_cannot_be_explored_is_said(model, sequences, tmp_path, autoencoders, message):
    with pytest.raises(ValueError, match=message):
        sae.explore(autoencoders, model, sequences, tmp_path)
