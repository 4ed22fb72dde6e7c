"""`sae.top_latents`: what fires on a text, against numpy."""

import numpy as np
import pytest

import sae
from tests.sae.letters import Letters
from tests.sae.models import lettered

SITE, HEADS = "blocks/1", "blocks/1/attention/mix"


@pytest.fixture(scope="module")
def model():
    return lettered.model()


def autoencoder(site=SITE, sinks=None, model_name="equinox", **changes):
    W = np.random.default_rng(1).normal(size=(24, 40)).astype(np.float32)
    info = sae.Info(model_name, site, site, counted=sae.Counted(Letters.special_ids, sinks=sinks))
    zeros = np.zeros(40, np.float32)
    return sae.JumpReLU(W, zeros, W.T, np.zeros(24, np.float32), zeros + 1.5, info=info, **changes)


def by_hand(model, text, site, left_out=()):
    """{latent: (largest, position)} of what fires, strongest first."""
    forward = model.run(text, capture=site)
    x = np.asarray(forward.values[site][0]).reshape(-1, 24)
    z = x @ autoencoder().W_enc
    f = np.where(z > 1.5, z, 0)
    f[np.isin(forward.tokens[0], Letters.special_ids)] = 0
    f[list(left_out)] = 0
    order = sorted(range(40), key=lambda latent: -f[:, latent].max())
    return {latent: (f[:, latent].max(), int(f[:, latent].argmax())) for latent in order if f[:, latent].max() > 0}, f


@pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")  # the parameters are not on record
@pytest.mark.parametrize("site", [SITE, HEADS])
def test_the_strongest_latents_come_with_their_tokens(model, site):
    want, f = by_hand(model, "the sea", site)
    found = sae.top_latents(autoencoder(site), model, "the sea", 5)
    assert [one.latent for one in found] == list(want)[:5]
    for one in found:
        np.testing.assert_allclose(one.activation, want[one.latent][0], rtol=1e-5)
        np.testing.assert_allclose(one.activations, f[:, one.latent], atol=1e-4)
        assert one.position == want[one.latent][1] and one.token == " the sea"[one.position]
        assert one.tokens == tuple(" the sea"[t] for t in np.flatnonzero(f[:, one.latent]))
    ids = model.tokenizer.encode("the sea")
    assert sae.top_latents(autoencoder(site), model, ids, 5) == found
    assert len(sae.top_latents(autoencoder(site), model, "the sea", 1000)) == len(want)


@pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")
def test_sinks_do_not_count(model):
    x = np.asarray(model.run("the sea", capture=SITE).values[SITE][0])
    norms = np.linalg.norm(x, axis=1)
    limit = float(np.sort(norms[1:-1])[-2:].mean())  # one letter is above
    sink = 1 + int(norms[1:-1].argmax())
    want, _ = by_hand(model, "the sea", SITE, [sink])
    found = sae.top_latents(autoencoder(sinks=sae.Sinks(limits={SITE: limit})), model, "the sea", 1000)
    assert [one.latent for one in found] == list(want) and all(one.position != sink for one in found)


@pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")
def test_what_cannot_be_is_said(model):
    with pytest.raises(ValueError, match="trained on other, the model given is equinox"):
        sae.top_latents(autoencoder(model_name="other"), model, "the sea")
    with pytest.raises(ValueError, match="count is at least 1 latent, got 0"):
        sae.top_latents(autoencoder(), model, "the sea", 0)
    with pytest.raises(ValueError, match="the ids of one sequence"):
        sae.top_latents(autoencoder(), model, [[1, 2], [3, 4]])
