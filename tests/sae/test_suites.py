"""An evaluation suite is one class: `sae.evaluate` gives its metrics, from the same pass over the text."""

import dataclasses

import numpy as np
import pytest

import sae
from sae.evaluation.suite import Suite, suites, suites_of
from tests.registering import registered
from tests.sae import examples


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Mean cosine between activations and their reconstructions."""

    site: str
    cosine: float
    tokens: int


class CosineSuite(Suite):
    def add(self, batch):
        (x,), (y,) = (
            tuple(np.asarray(v, np.float64)[batch.text] for v in part) for part in (batch.inputs, batch.outputs)
        )
        made = np.asarray(batch.autoencoder(x.astype(np.float32)), np.float64)
        cosine = (made * y).sum(axis=1) / np.linalg.norm(made, axis=1) / np.linalg.norm(y, axis=1)
        return {"cosine": cosine.sum(), "tokens": len(y)}

    def metrics(self, sums, about):
        return Cosine(about.site, float(sums["cosine"] / sums["tokens"]), int(sums["tokens"]))


@pytest.fixture
def cosine():
    suites_of("fidelity")  # the others are found
    with registered((suites, "cosine", CosineSuite)):
        yield


@pytest.fixture(scope="module")
def text(tiny):
    words = ("the king", "the sea was cold and grey", "no more", "she said that he had gone to the town")
    documents = [sae.text.Document(str(n), "made up", f"{words[n % 4]} {n}") for n in range(24)]
    return sae.text.cut(documents, tiny.tokenizer, 10)


def test_a_suite_of_ones_own_is_evaluated(cosine, tiny, text):
    two = [examples.autoencoder_for(tiny, 192, seed=seed) for seed in (0, 1)]
    alone = sae.evaluate(two[0], tiny, text, suites="cosine", progress=False)
    values = tiny.run(text.tokens, capture=examples.SITE).values[examples.SITE]
    counts = two[0].info.counted.text(text.tokens, text.left_out) if two[0].info.counted else text.tokens > 2
    x = np.asarray(values)[counts]
    made = np.asarray(two[0](x))
    want = np.mean((made * x).sum(axis=1) / np.linalg.norm(made, axis=1) / np.linalg.norm(x, axis=1))
    assert alone.site == examples.SITE and alone.tokens == len(x) and alone.cosine == pytest.approx(want, abs=1e-5)
    both = sae.evaluate(two, tiny, text, suites=("fidelity", "cosine"), progress=False)
    assert [list(one) for one in both] == [["fidelity", "cosine"]] * 2
    assert both[0]["cosine"] == alone and both[1]["cosine"] != alone
    assert both[0]["fidelity"] == sae.evaluate(two[0], tiny, text, progress=False)


def test_an_unknown_suite_is_named_before_any_work(tiny, text):
    autoencoder = examples.autoencoder_for(tiny, 192)
    with pytest.raises(ValueError, match=r"no evaluation suite is named 'fidelty': did you mean fidelity\?"):
        sae.evaluate(autoencoder, tiny, text, suites=["fidelty"])
    with pytest.raises(ValueError, match=r"name at least one evaluation suite, of fidelity.*; got none"):
        sae.evaluate(autoencoder, tiny, text, suites=())
