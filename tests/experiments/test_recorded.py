"""Figures and pages are on the model, the text and the tokens that an autoencoder's training had, or say so."""

import dataclasses
import json
import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import sae
from experiments import common, evaluate, explore, recorded
from sae.autoencoder import Largest
from sae.evaluation import fidelity
from sae.records import Record
from sae.text import Document, Origin, cut, iter_documents, survey
from tests.sae.examples import SITE, autoencoder_for


@pytest.fixture
def launch():
    """Sets flags, as a command line would; their defaults are what they were afterwards."""
    flags.FLAGS.mark_as_parsed()
    names = ("model", "corpus", "held_out", "length", "packed", "only_model_turns", "sink_factor")
    defaults = {name: flags.FLAGS[name].default for name in names}
    with flagsaver.flagsaver():

        def set_flags(**values):
            for name, default in defaults.items():
                flags.FLAGS.set_default(name, default)
                flags.FLAGS[name].unparse()
            for name, value in values.items():
                setattr(flags.FLAGS, name, value)

        yield set_flags


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"text": f"{k} went up. " * 12, "id": f"d{k}"}) for k in range(30)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "c.jsonl")


def saved(tiny, folder, corpus=None, *, record=None, **origin):
    """The folder of an autoencoder that was trained on a corpus."""
    digest = survey(iter_documents(corpus)).digest() if corpus else None
    origin = Origin(**{"length": 24, "corpus": corpus, "documents_sha256": digest, "model": "gemma2-tiny"} | origin)
    record = Record(record or tiny.fingerprint, parameters_dtype="float32", origin=origin)
    info = sae.Info("gemma2-tiny", SITE, SITE, counted=sae.Counted((0, 1, 2), origin.only_model_turns), record=record)
    sae.save(dataclasses.replace(autoencoder_for(tiny, 192), info=info), folder)
    return folder


def values():
    return tuple(flags.FLAGS[name].value for name in ("model", "corpus", "held_out", "length", "packed"))


def test_the_record_is_the_flags_default(tiny, tmp_path, corpus, launch, capsys):
    launch()
    folder = saved(tiny, tmp_path / "a", corpus, packed=True, model="my/folder")
    assert recorded.settle([folder]) is True
    assert values() == ("my/folder", corpus, None, 24, True) and not capsys.readouterr().out
    launch()
    assert recorded.settle([saved(tiny, tmp_path / "b", length=64)]) is False
    assert values()[3] == 64 and "no launch harvested it" in capsys.readouterr().out


def test_the_texts_are_those_of_training(tiny, tmp_path, corpus, launch):
    launch(corpus=corpus, length=24)
    train, held_out = common.texts(tiny)
    assert (
        train.origin
        == held_out.origin
        == Origin(24, corpus=corpus, documents_sha256=survey(iter_documents(corpus)).digest(), model="gemma2-tiny")
    )
    launch()
    at_hand = recorded.settle([saved(tiny, tmp_path / "a", corpus)])
    again = common.held_out_text(tiny, at_hand)
    np.testing.assert_array_equal(again.tokens, held_out.tokens)
    assert again.origin == held_out.origin


@pytest.mark.parametrize("change", [{}, {"seed": 1}, {"length": 64}, {"length": 1024}, {"packed": True}])
def test_no_trained_document_is_held_out_whatever_the_flags(tiny, corpus, launch, change):
    launch(corpus=corpus, length=24)
    train, held_out = common.texts(tiny)
    launch(corpus=corpus, **{"length": 24} | change)
    names = lambda part: {part.documents[i][0] for i in np.unique(part.document_at())}  # noqa: E731
    assert names(common.held_out_text(tiny)) == names(held_out) and not names(held_out) & names(train)


def test_flags_that_contradict_the_record_are_refused(tiny, tmp_path, corpus, launch):
    folder = saved(tiny, tmp_path / "a", corpus)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "other words"}')
    for changes, message in (
        ({"length": 64}, r"--length=64 contradicts .*/a, which was trained with --length=24: leave it out, or name an"),
        ({"packed": True}, r"--packed=True contradicts .*/a, which was trained with --packed=False"),
        ({"only_model_turns": True}, r"--only_model_turns=True contradicts .* --only_model_turns=False: leave it out$"),
        ({"only_model_turns": True, "held_out": str(other)}, r"--only_model_turns=True contradicts"),
        ({"corpus": str(other)}, r"--corpus=.*other.jsonl is another text than .*c.jsonl, on which .*/a was trained"),
        ({"sink_factor": 4.0}, r"--sink_factor is for the harvest"),
    ):
        launch(**changes)
        with pytest.raises(ValueError, match=message):
            recorded.settle([folder])


def test_the_text_may_lie_elsewhere_and_another_is_said(tiny, tmp_path, corpus, launch, capsys):
    folder = saved(tiny, tmp_path / "a", corpus)
    moved = tmp_path / "moved.jsonl"
    moved.write_text("\n".join(reversed((tmp_path / "c.jsonl").read_text().split("\n"))))
    launch(corpus=str(moved))
    assert recorded.settle([folder]) and not capsys.readouterr().out
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "other words that nobody has trained on"}')
    launch(held_out=str(other), length=16)
    assert recorded.settle([folder]) and values()[1:4] == (corpus, str(other), 16)
    said = f"measured on {other}: another text than training's, {corpus}; --length=16, training had 24\n"
    assert capsys.readouterr().out == said
    (tmp_path / "c.jsonl").unlink()
    launch(held_out=str(other))
    assert recorded.settle([folder]) is False
    assert "that text is missing here" in capsys.readouterr().out
    assert len(common.held_out_text(tiny, at_hand=False)) == 1
    launch()
    with pytest.raises(ValueError, match=r"c.jsonl, the text that .*/a was trained on, is missing: name where it is"):
        recorded.settle([folder])


def test_a_corpus_that_has_changed_at_its_path_is_refused(tiny, tmp_path, corpus, launch, capsys, monkeypatch):
    """Also one of the same relative path in another folder."""
    folder = saved(tiny, tmp_path / "a", corpus)
    digest = survey(iter_documents(corpus)).digest()
    monkeypatch.chdir(tmp_path)
    relative = saved(tiny, tmp_path / "b", corpus="c.jsonl")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.jsonl").write_text('{"text": "other words"}')
    with open(corpus, "a") as file:
        file.write('\n{"text": "one more document"}')
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert digest != survey(iter_documents(corpus)).digest()
    for one, path in ((folder, corpus), (relative, "c.jsonl")):
        launch()
        with pytest.raises(ValueError, match=f"^{path} is the text that {one} was .* by its name alone: it has other"):
            recorded.settle([one])
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "other words that nobody has trained on"}')
    launch(held_out=str(other))
    assert recorded.settle([folder]) is False
    assert f"measured on {other}: another text than training's, {corpus}" in capsys.readouterr().out


def test_held_out_documents_that_have_changed_are_said(tiny, tmp_path, corpus, launch, capsys):
    held_out = tmp_path / "h.jsonl"
    held_out.write_text('{"text": "held out"}')
    launch(corpus=corpus, held_out=str(held_out), length=24)
    origin = common.texts(tiny, say=lambda line: None)[0].origin
    folder = saved(tiny, tmp_path / "a", corpus, held_out=str(held_out), held_out_sha256=origin.held_out_sha256)
    launch()
    assert recorded.settle([folder]) and not capsys.readouterr().out
    held_out.write_text('{"text": "something else"}')
    launch()
    assert recorded.settle([folder])
    assert f"{held_out} has other documents than when {folder} was trained" in capsys.readouterr().out


def test_a_corpus_with_bad_records_is_compared_without_them(tiny, tmp_path, corpus, launch):
    folder = saved(tiny, tmp_path / "a", corpus)
    with open(corpus, "a") as file:
        file.write("\nnot JSON\n")
    launch(corpus=corpus, skip_bad=True)
    assert recorded.settle([folder])


def test_autoencoders_of_different_runs_are_told_apart(tiny, tmp_path, corpus, launch):
    first = saved(tiny, tmp_path / "a", corpus)
    for name, how, message in (
        ("b", {"length": 64}, r"different --length: .*/a on 24, .*/b on 64"),
        ("c", {"record": "1" * 64}, "different models: .*/a on the model .*, .*/c on the model 111111111111…"),
        ("d", {"documents_sha256": "2"}, r"different texts: .*/a on .*, .*/d on 2"),
    ):
        launch()
        with pytest.raises(ValueError, match=message):
            recorded.settle([first, saved(tiny, tmp_path / name, corpus, **how)])


def test_what_is_not_on_record_is_said(tiny, tmp_path, launch, capsys):
    sae.save(autoencoder_for(tiny, 192), tmp_path / "old")
    launch()
    assert recorded.settle([tmp_path / "old"]) is False
    assert "which text training read is not on record; metrics are over shipped text" in capsys.readouterr().out
    sae.save(dataclasses.replace(autoencoder_for(tiny, 192), info=None), tmp_path / "theirs")
    recorded.settle([tmp_path / "theirs"])
    assert "no autoencoder here records its model, its text or which tokens count" in capsys.readouterr().out


def test_all_autoencoders_are_checked_before_the_first_forward_pass(tiny, tmp_path, corpus, monkeypatch):
    def no_pass(*_, **__):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(fidelity, "evaluate", no_pass)
    folders = [saved(tiny, tmp_path / "a", corpus), saved(tiny, tmp_path / "b", corpus, record="1" * 64)]
    text = cut([Document("d", "s", "some words")], tiny.tokenizer, 24)
    with pytest.raises(ValueError, match=r"/b: this autoencoder was trained on a gemma2-tiny with parameters 1111"):
        evaluate.evaluate(tiny, folders, text)
    narrow = autoencoder_for(tiny, 64)
    sae.save(dataclasses.replace(narrow, info=sae.Info("gemma2-tiny", SITE, SITE)), tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"/b: activations at layer_2/resid_post of gemma2-tiny have the dim 192, the autoencoder"
    ):
        evaluate.evaluate(tiny, folders, text)
    assert not list(tmp_path.rglob("metrics.json"))


def test_figures_at_one_site_are_none_at_another(tiny, tmp_path, monkeypatch, launch):
    """Of an autoencoder without a record, whose site --site says."""
    sae.save(dataclasses.replace(autoencoder_for(tiny, 192), info=None), tmp_path)
    text = cut([Document("d", "s", "some words")], tiny.tokenizer, 24)

    def measured(group, *_, **__):
        zero = dict.fromkeys(("l0", "fvu", "loss", "loss_spliced", "loss_zero", "delta_loss", "loss_recovered"), 0.0)
        counts = dict.fromkeys(("tokens", "predictions", "dead", "width", "documents"), 1)
        (one,) = group
        layer = float(one.info.site.split("/")[0][-1])
        return [sae.Metrics(one.info.site, **zero, **counts, largest=Largest(np.full(one.width, layer), 1))]

    monkeypatch.setattr(fidelity, "evaluate", measured)
    for site in ("layer_1/resid_post", "layer_4/resid_post", "layer_1/resid_post"):
        launch(site=site)
        assert [metrics.site for metrics in evaluate.evaluate(tiny, [tmp_path], text)] == [site]
        assert sae.load(tmp_path).largest.values[0] == float(site[6])


@pytest.mark.slow
def test_figures_and_pages_follow_only_model_turns(tiny, tmp_path):
    """Also where figures of an earlier version, which counted every token, are there."""
    lines = [f"And {i} days went by, and the king said unto him, Go. " * 2 for i in range(21)]
    text = cut([Document(f"d{i}", "s", line) for i, line in enumerate(lines)], tiny.tokenizer, 24).take(np.arange(21))
    left_out = np.zeros(text.tokens.shape, bool)
    left_out[:, :9] = True
    part = dataclasses.replace(text, left_out=left_out)
    store = sae.harvest(tiny, part, [SITE], tmp_path / "store")
    (autoencoder,), _ = sae.train(sae.short_run(SITE, 64, 2, batch_size=64, l0_target=5.0), store)
    folder = tmp_path / "saes" / "a"
    sae.save(autoencoder, folder)
    (metrics,) = evaluate.evaluate(tiny, [folder], part)
    assert metrics.tokens == store.rows == part.text(tiny.tokenizer.special_ids).sum()
    file = folder / "metrics.json"
    old = json.loads(file.read_text())
    old["identity"] = old["identity"].partition(":")[2]
    old["metrics"]["tokens"] = 1
    file.write_text(json.dumps(old))
    index = explore.explore(tiny, tmp_path / "saes", [folder], part, tmp_path / "pages")
    for page in (index, tmp_path / "pages" / "a" / "index.html"):
        assert re.search(r"(?:over|on) ([\d,]+) tokens", page.read_text(encoding="utf-8"))[1] == f"{store.rows:,}"


def test_a_text_is_called_held_out_only_where_that_is_on_record(tiny, tmp_path, corpus, launch):
    launch()
    folder = saved(tiny, tmp_path / "a", corpus)
    at_hand = recorded.settle([folder])
    text = common.held_out_text(tiny, at_hand)
    assert recorded.about([folder], tiny, text, at_hand).text == "held-out text"
    python = saved(tiny, tmp_path / "b", only_model_turns=True)  # nobody named its corpus
    about = recorded.about([folder, python], tiny, text, at_hand)
    assert about.text == "text of which it is not on record whether training saw it"
    assert "users' turns and the template of chats" in about.omissions
    info = sae.load(folder).info
    info = dataclasses.replace(info, record=dataclasses.replace(info.record, corpus_sha256=text.fingerprint()))
    sae.save(dataclasses.replace(sae.load(folder), info=info), folder)
    assert recorded.about([folder], tiny, text, at_hand).text == "the text that was trained on"


def test_a_target_is_the_records_and_else_the_folders(tiny, tmp_path):
    folder = saved(tiny, tmp_path / "target_l0_30_lr_1")
    assert evaluate.target(folder) == "30"
    for target, words in ((20.0, "20"), (None, "–")):
        info = dataclasses.replace(sae.load(folder).info, training=json.dumps({"config": {"l0_target": target}}))
        sae.save(dataclasses.replace(sae.load(folder), info=info), folder)
        assert evaluate.target(folder) == words
