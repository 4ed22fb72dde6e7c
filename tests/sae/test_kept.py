"""Metrics that are kept beside autoencoders, and autoencoders found below a folder; launches are tested in
tests/experiments."""

import doctest
import json

import numpy as np
import pytest

import sae
from sae.evaluation import fidelity, kept
from sae.formats import finding
from sae.text import Document, cut
from tests.sae.letters import Letters
from tests.sae.models import lettered

pytestmark = pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")


@pytest.fixture(scope="module")
def model():
    return lettered.model()


@pytest.fixture(scope="module")
def sequences():
    return cut([Document(f"d{i}", "s", "the king went to the sea") for i in range(3)], Letters(), 12)


def autoencoder(site="blocks/1"):
    W = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    info = sae.Info("equinox", site, site, counted=sae.Counted(Letters.special_ids))
    zeros = np.zeros(16, np.float32)
    return sae.JumpReLU(W, zeros, W.T, np.zeros(24, np.float32), zeros + 2, info=info)


def test_what_was_measured_on_the_same_text_is_read(model, sequences, tmp_path, monkeypatch):
    folders = [tmp_path / "a", tmp_path / "b"]
    sae.save(autoencoder(), folders[0])
    sae.save(autoencoder("blocks/0"), folders[1])
    metrics = kept.evaluate_folders(folders, model, sequences)
    assert metrics == [sae.evaluate(sae.load(folder), model, sequences) for folder in folders]
    measured = []

    def watched(group, *arguments, **more):
        measured.append([one.info.site for one in group])
        return evaluate(group, *arguments, **more)

    evaluate = fidelity.evaluate
    monkeypatch.setattr(fidelity, "evaluate", watched)
    assert kept.evaluate_folders(folders, model, sequences) == metrics and measured == []
    kept.evaluate_folders(folders, model, sequences.take(slice(0, 2)))  # another text
    assert measured == [["blocks/1"], ["blocks/0"]]
    record = json.loads((folders[0] / "metrics.json").read_text())
    (folders[0] / "metrics.json").write_text(json.dumps({**record, "identity": "another"}))
    measured.clear()
    kept.evaluate_folders(folders, model, sequences.take(slice(0, 2)))
    assert measured == [["blocks/1"]]


def test_examples_run(model, sequences, tmp_path):
    names = {"sae": sae, "autoencoder": autoencoder(), "model": model, "sequences": sequences, "folder": tmp_path}
    for module in (kept, finding):
        result = doctest.testmod(module, extraglobs=names | {"evaluate_folders": kept.evaluate_folders})
        assert result.attempted and not result.failed


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_the_target_is_k_where_k_latents_are_kept(architecture):
    run = sae.short_run("s", 64, 100, autoencoder=architecture, l0_target=8)
    info = sae.Info("m", "s", "s", training=json.dumps({"run": run.json()}))
    assert kept.target(info, "mine") == "8"
