"""Figures of autoencoders, and where they are kept."""

import errno

import pytest

import sae
from experiments import evaluate
from sae.evaluation import fidelity, kept
from sae.text import Document, cut
from tests.sae.examples import SITE, autoencoder_for

METRICS = sae.Metrics(SITE, 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, 576, 9)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_figures_are_returned_where_nothing_can_be_written(tiny, tmp_path, monkeypatch, capsys, number):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        sae.save(autoencoder_for(tiny, 192), folder)
    text = cut([Document("d", "s", "And the king said unto him, Go. " * 8)], tiny.tokenizer, 24)
    monkeypatch.setattr(fidelity, "evaluate", lambda autoencoders, *_, **__: [METRICS] * len(autoencoders))
    assert evaluate.evaluate(tiny, folders, text) == [METRICS] * 2 and capsys.readouterr().err == ""
    for folder in folders:
        (folder / "metrics.json").unlink()

    def refuse(*_):
        raise OSError(number, "no writing here")

    monkeypatch.setattr(kept, "replace_file", refuse)
    assert evaluate.evaluate(tiny, folders, text) == [METRICS] * 2
    assert not list(tmp_path.rglob("metrics.json"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"metrics are not kept for the next launch: {folders[1]}: no writing here"
