"""What is given in the place of something else is refused in one sentence: what was got, what makes the right one."""

import re

import numpy as np
import pytest

import sae
from sae.text import Document, Message, as_sequences, cut, split
from tests.sae.examples import SITE, autoencoder_for

DOCUMENTS = [Document(f"d{i}", "s", "And the king said unto him, Go. " * 3) for i in range(4)]
RUN = sae.short_run(SITE, 64, 2, l0_target=5.0)


@pytest.fixture(scope="module")
def sequences(tiny):
    return cut(DOCUMENTS, tiny.tokenizer, 16)


@pytest.mark.parametrize(
    ("call", "got", "hint"),
    [
        (lambda tiny, s: sae.harvest(tiny, DOCUMENTS, [SITE], "x"), "a list of 4 Document", "cut(documents, model."),
        (lambda tiny, s: sae.harvest(tiny, s.tokens, [SITE], "x"), "an array int32 [", "sae.text.as_sequences(tokens"),
        (lambda tiny, s: sae.harvest("gemma2-tiny", s, [SITE], "x"), "the text 'gemma2-tiny'", "gemma.load"),
        (lambda tiny, s: sae.stream(tiny, "my.csv", [SITE]), "the text 'my.csv'", "sae.text.read_documents(path)"),
        (lambda tiny, s: sae.train([RUN], "runs/store"), "the text 'runs/store'", "sae.ActivationStore.open(path)"),
        (lambda tiny, s: sae.train(7, s), "7", "sae.short_run"),
        (lambda tiny, s: sae.estimate([RUN], s), "a Sequences", "a store, a stream or rows"),
        (lambda tiny, s: cut("my.csv", tiny.tokenizer, 16), "the text 'my.csv'", "sae.text.read_documents(path)"),
        (lambda tiny, s: cut(["hello"], tiny.tokenizer, 16), "the text 'hello'", "sae.text.Document(id, source, text)"),
        (lambda tiny, s: cut(DOCUMENTS, tiny, 16), "a Model", "model.tokenizer"),
        (lambda tiny, s: cut(DOCUMENTS, tiny.tokenizer, "16"), "got '16'", "length must be a whole number"),
        (lambda tiny, s: split(["a", "b"]), "the text 'a'", "sae.text.Document(id, source, text)"),
        (lambda tiny, s: sae.evaluate(autoencoder_for(tiny, 192), tiny, DOCUMENTS), "a list of 4 Doc", "cut(documents"),
        (lambda tiny, s: sae.evaluate("runs/a", tiny, s), "the text 'runs/a'", "sae.load(folder)"),
        (lambda tiny, s: sae.evaluate(autoencoder_for(tiny, 192), "tiny", s), "the text 'tiny'", "gemma.load"),
        (lambda tiny, s: as_sequences([[2, 5], [2]], tiny), "got several lengths", "model.tokenizer.pad"),
        (lambda tiny, s: sae.save(s, "x"), "a Sequences", "sae.save takes one autoencoder"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_one_sentence(tiny, sequences, tmp_path, monkeypatch, call, got, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        call(tiny, sequences)
    assert got in str(error.value) and hint in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_one_site_may_be_named_without_a_list(tiny, sequences, tmp_path):
    store = sae.harvest(tiny, sequences, SITE, tmp_path / "s")
    assert store.sites == (SITE,)


def test_a_store_of_a_text_that_was_read_otherwise_is_refused_with_the_cause_first(tiny, tmp_path):
    chats = [Document("c", "s", messages=(Message("user", "Who?"), Message("model", "The king is here. " * 9)))]
    turns, whole = (cut(chats, tiny.tokenizer, 16, only_model_turns=only) for only in (True, False))
    sae.harvest(tiny, turns, SITE, tmp_path / "s")
    with pytest.raises(ValueError) as error:
        sae.harvest(tiny, whole, SITE, tmp_path / "s")
    assert str(error.value).splitlines()[1] == "  only_model_turns: the store has True, asked for False"
    assert not re.search("sha256", str(error.value))
    np.testing.assert_array_equal(turns.tokens, whole.tokens)


def test_a_path_is_not_taken_for_an_open_store(tmp_path):
    for path in ("runs/store", tmp_path):
        with pytest.raises(TypeError, match=r"got the path '.*': call sae\.ActivationStore\.open\(path\)$"):
            sae.ActivationStore(path)
