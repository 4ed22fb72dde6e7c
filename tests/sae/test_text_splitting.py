"""Which documents are held out depends on their texts alone."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sae.text import Document, Message, as_sequences, cut, read_documents, split, survey
from sae.text.corpus import Corpus
from sae.text.splitting import text_hash
from tests.sae.letters import Letters

WORDS = ["the", "king", "sea", "went", "home", "and", "said", "unto", "him", "go", "days", "calm"]


def documents(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Document(f"d{i}", "s", " ".join(rng.choice(WORDS, size))) for i, size in enumerate(sizes)]


def chat(name, *contents):
    roles = itertools.cycle(("user", "model"))
    return Document(name, "s", messages=tuple(Message(role, c) for role, c in zip(roles, contents, strict=False)))


def drawn(count, held_out, share=0.1):
    """Short texts that chance puts on a side."""
    texts = (f"text number {number}" + " of words" * 30 for number in itertools.count())
    found = (t for t in texts if (text_hash(Document("", "", t)) < share * 2**64) == held_out)
    return list(itertools.islice(found, count))


def test_a_documents_side_depends_on_its_text_alone():
    some = documents(*[30] * 300)
    harvested, held_out = split(some)
    assert [d for d in some if d in harvested or d in held_out] == some and not set(harvested) & set(held_out)
    names = {d.text: d.id for d in held_out}
    renamed = [Document(f"x{i}", "other", d.text) for i, d in enumerate(reversed(some[:200]))]
    again = split(renamed)[1]
    assert {d.text for d in again} == {d.text for d in renamed if d.text in names} and again


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_share_is_as_asked_in_expectation(share):
    held_out = split(documents(*[12] * 3000), share)[1]
    assert abs(len(held_out) / 3000 - share) < 5 * np.sqrt(share * (1 - share) / 3000)


@pytest.mark.parametrize("folder", [False, True])
def test_sequences_are_divided_as_their_documents_are(tmp_path, folder):
    some = documents(*[30] * 300)
    kept = {"folder": tmp_path, "key": "k"} if folder else {}
    sequences = cut(some, Letters(), 50, **kept)
    for _ in range(1 + folder):  # the second time, the folder is read
        train, held_out = split(sequences)
        for part, side in zip((train, held_out), split(some), strict=True):
            alone = cut(side, Letters(), 50)
            np.testing.assert_array_equal(part.tokens, alone.tokens)
            names = [part.documents[number] for number in part.document]
            assert names == [alone.documents[number] for number in alone.document]
        sequences = cut((), Letters(), 50, **kept) if folder else sequences


def test_of_a_document_of_nearly_all_sequences_the_last_are_held_out():
    sequences = cut(documents(2, 400, 2), Letters(), 50)
    train, held_out = split(sequences)
    rows = (sequences.document == 1).sum()
    np.testing.assert_array_equal(
        held_out.tokens[held_out.document == 1], sequences.tokens[sequences.document == 1][-(rows // 10) :]
    )
    assert len(train) + len(held_out) == len(sequences)


def test_rows_of_an_array_are_divided_by_their_tokens():
    tokens = np.random.default_rng(0).integers(3, 30, (400, 9)).astype(np.int32)
    tokens[:, 0], tokens[7] = Letters.bos, tokens[3]
    sequences = as_sequences(tokens, SimpleNamespace(vocab_size=31, tokenizer=None, name="letters"))
    train, held_out = split(sequences)
    assert 15 < len(held_out) < 80 and len(train) + len(held_out) == 400
    turned = dataclasses.replace(sequences, tokens=tokens[::-1])
    np.testing.assert_array_equal(split(turned)[1].tokens, held_out.tokens[::-1])
    assert ({3, 7} <= set(held_out.document)) != ({3, 7} <= set(train.document))


def test_packed_sequences_are_not_divided():
    with pytest.raises(ValueError, match="divide the documents"):
        split(cut(documents(*[30] * 20), Letters(), 50, packed=True))


def test_duplicates_fall_on_one_side():
    (text,), (other,) = drawn(1, held_out=True), drawn(1, held_out=False)
    copies = [Document("a", "s", text), Document("b", "t", f" {text}\r\n"), Document("c", "s", text + "\n")]
    rest = [Document(f"r{i}", "s", t) for i, t in enumerate(drawn(8, held_out=False))]
    assert [d.id for d in split([*copies, *rest])[1]] == ["a", "b", "c"]
    lines = [Document("a", "s", f"{other}\r\nline"), Document("b", "s", f"{other}\nline")]
    assert text_hash(lines[0]) == text_hash(lines[1]) != text_hash(Document("c", "s", f"{other} line"))
    roles = [chat("a", "hi", "yes"), Document("b", "s", messages=(Message("user", "hi"), Message("assistant", "yes")))]
    assert text_hash(roles[0]) == text_hash(roles[1]) != text_hash(chat("c", "hi yes"))


def test_of_a_document_of_more_than_half_the_end_is_held_out():
    book, *notes = documents(40000, *[60] * 9)
    harvested, held_out = split([*notes, book])
    assert "d0" in [d.id for d in harvested] and "d0 (end)" in [d.id for d in held_out]
    (begin,), (end,) = ([d.text for d in part if d.id.startswith("d0")] for part in (harvested, held_out))
    assert begin + end == book.text and end.startswith(" ") and len(end) == pytest.approx(len(book.text) / 10, rel=0.01)
    note = survey([*notes, book]).split().note
    assert note == "document 'd0' is 99% of the text: its end, 10% of it, is held out"
    assert len(split([book])[0]) == len(split([book])[1]) == 1  # a book and nothing else


def test_copies_of_one_text_that_are_most_of_it_are_cut_at_one_place():
    (often, *notes) = documents(400, *[60] * 9)
    harvested, held_out = split([Document(f"copy {i}", "s", often.text) for i in range(20)] + notes)
    ends = [d.text for d in held_out if d.id.startswith("copy")]
    begins = [d.text for d in harvested if d.id.startswith("copy")]
    assert len(ends) == len(begins) == 20 and {b + e for b, e in zip(begins, ends, strict=True)} == {often.text}


def test_a_chat_is_cut_before_a_users_turn():
    turns = [f"{'question' if i % 2 == 0 else 'answer'} {i} " * 20 for i in range(40)]
    system = Document("c", "s", messages=(Message("system", "Be brief."), *chat("c", *turns).messages))
    (begin,), (end,) = split([system])
    assert begin.messages + end.messages[1:] == system.messages and end.messages[0] == system.messages[0]
    assert end.messages[1].role == "user" and 2 <= len(end.messages) <= 6
    with pytest.raises(ValueError, match=r"single document \('c'\) that cannot be divided"):
        split([chat("c", "one question " * 50, "one answer")])
    large = chat("c", "one question " * 500, "one answer")
    harvested, held_out = split([large, *documents(*[30] * 6)])
    assert large in harvested and held_out
    assert "cannot be divided: it is harvested" in survey([large, *documents(*[30] * 6)]).split().note


def test_never_more_than_half_and_never_nothing_is_held_out():
    unlucky, lucky = drawn(3, held_out=True), drawn(1, held_out=False)
    texts = [(t + " ") * n for t, n in zip(unlucky, (45, 45, 1), strict=True)]  # a text repeated has another hash
    some = [Document(f"d{i}", "s", t) for i, t in enumerate([*unlucky, *lucky, *texts])]
    for number in range(1, len(some) + 1):
        for part in itertools.combinations(some, number):
            harvested, held_out = split(part)
            sizes = [sum(d.characters for d in side) for side in (harvested, held_out)]
            assert harvested and 0 < sizes[1] <= sum(sizes) / 2, part
    unheld = [Document(f"d{i}", "s", t) for i, t in enumerate(drawn(7, held_out=False))]
    assert survey(unheld).split().note == "chance holds out none of 7 documents: one is held out all the same"
    assert len(split(unheld)[1]) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 0\.5, got"):
        split(documents(3, 3), share)
    with pytest.raises(ValueError, match="no document"):
        split([])


def write(path, some):
    path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in some))
    return path


def test_a_corpus_on_disk_is_split_as_one_in_memory(tmp_path):
    some = documents(2000, *[30] * 40)
    corpus = Corpus(write(tmp_path / "c.jsonl", some), say=(lines := []).append)
    parts = (list(corpus.harvested()), list(corpus.held_out()))
    assert [[d.text for d in part] for part in parts] == [[d.text for d in part] for part in split(some)]
    assert corpus.divided and lines == [corpus.split.note] and "'d0'" in lines[0]
    shuffled = Corpus(write(tmp_path / "d.jsonl", some[::-1]))
    assert shuffled.survey.digest() == corpus.survey.digest() != survey(some[1:]).digest()


def test_held_out_documents_that_are_harvested_are_left_out(tmp_path):
    some = documents(*[30] * 40)
    corpus = write(tmp_path / "c.jsonl", some[:30])
    lines = []
    other = Corpus(corpus, write(tmp_path / "h.jsonl", some[25:]), say=lines.append)
    assert [d.id for d in other.held_out()] == [d.id for d in some[30:]] and len(list(other.harvested())) == 30
    assert lines == [f"5 of 15 documents of {tmp_path / 'h.jsonl'} are in {corpus} too: left out"]
    with pytest.raises(ValueError, match=r"all documents of .* \(4\) are in .* too, so nothing is held out"):
        list(Corpus(corpus, write(tmp_path / "same.jsonl", some[:4])).held_out())
    missing = Corpus(None, tmp_path / "h.jsonl")
    assert list(missing.held_out()) == read_documents(tmp_path / "h.jsonl")
    with pytest.raises(ValueError, match="the path of the corpus is unknown"):
        missing.harvested()
