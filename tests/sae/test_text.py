"""Cutting documents into sequences, one by one and packed, and the folder that keeps them."""

import itertools
import json
import threading
import weakref

import numpy as np
import pytest

from sae.text import Document, Sequences, as_sequences, cut, cutting, is_text

PAD, BOS = 0, 2


class Letters:
    """A tokenizer whose tokens are letters, so that lengths are exact."""

    bos, pad, special_ids, sha256 = BOS, PAD, (0, 1, 2), "letters"

    def encode(self, text, *, add_bos=True):
        return [BOS] * add_bos + [ord(letter) for letter in text]


def documents_of(*lengths):
    """Documents of so many tokens, each token another one."""
    letters = map(chr, itertools.count(100))
    return [Document(f"d{k}", "s", "".join(itertools.islice(letters, n))) for k, n in enumerate(lengths)]


def test_cutting_keeps_every_token_once(tiny):
    tokenizer = tiny.tokenizer
    documents = [
        Document("a", "s", "In the beginning " * 30),
        Document("b", "t", "Short."),
        Document("c", "s", "x" * 99),
    ]
    sequences = cut(documents, tokenizer, 16)
    assert sequences.tokens.shape[1] == 16
    assert (sequences.tokens[:, 0] == tokenizer.bos).all()
    for number, document in enumerate(documents):
        rows = sequences.tokens[sequences.document == number]
        assert tokenizer.decode(rows[is_text(rows, tokenizer.special_ids)]) == document.text
    rows = sequences.document == 0
    np.testing.assert_array_equal(sequences.offset[rows], np.arange(rows.sum()) * 15)
    np.testing.assert_array_equal(sequences.document_at(), np.repeat(sequences.document[:, None], 16, axis=1))
    assert sequences.documents == (("a", "s"), ("b", "t"), ("c", "s"))
    assert sequences.fingerprint() != sequences.take(slice(1, None)).fingerprint()


def slowly_packed(documents, length):
    """Token by token: [S, T] of (token, document), and where each sequence's first token stands in its document."""
    rows, offsets = [], []
    for number, document in enumerate(documents):
        for place, token in enumerate([BOS, *map(ord, document.text)]):
            if not rows or len(rows[-1]) == length:
                rows.append([] if token == BOS else [(BOS, number)])
                offsets.append(max(0, place - 1))
            rows[-1].append((token, number))
    rows[-1] += [(PAD, number)] * (length - len(rows[-1]))
    return np.asarray(rows), offsets


@pytest.mark.parametrize("length", [2, 3, 8])
def test_packed_sequences_are_those_of_a_slow_reference(length):
    lengths = np.random.default_rng(length).integers(1, 20, 200)
    documents = documents_of(*lengths)
    sequences = cut(documents, Letters(), length, packed=True)
    expected, offsets = slowly_packed(documents, length)
    np.testing.assert_array_equal(sequences.tokens, expected[..., 0])
    np.testing.assert_array_equal(sequences.document_at(), expected[..., 1])
    np.testing.assert_array_equal(sequences.offset, offsets)
    assert sequences.tokens.dtype == sequences.document_at().dtype == np.int32
    for row, position in zip(*np.nonzero(sequences.text((0, 1, 2))), strict=True):
        document, token = sequences.place(row, position)
        assert ord(documents[document].text[token]) == sequences.tokens[row, position]


def test_documents_that_end_where_a_sequence_does():
    sequences = cut(documents_of(3, 2, 1), Letters(), 4, packed=True)
    # The first fills a sequence; the second begins the next, with one BOS, and leaves the BOS of the third its end.
    np.testing.assert_array_equal(sequences.tokens, [[2, 100, 101, 102], [2, 103, 104, 2], [2, 105, 0, 0]])
    np.testing.assert_array_equal(sequences.document_at(), [[0] * 4, [1, 1, 1, 2], [2] * 4])
    np.testing.assert_array_equal(sequences.offset, [0, 0, 0])


def test_rows_of_an_array_are_documents_whatever_stands_in_them(tiny):
    rows = as_sequences(np.array([[2, 5, 2, 6], [7, 7, 0, 0]]), tiny)
    np.testing.assert_array_equal(rows.document_at(), [[0] * 4, [1] * 4])
    assert rows.place(0, 3) == (0, 3) and rows.place(1, 1) == (1, 1)
    assert rows.take([1]).rows_are_documents and repr(rows.take([1])).endswith("4 tokens, 2 rows taken for documents)")


def test_what_is_left_out_is_no_text_and_changes_the_fingerprint():
    plain = cut(documents_of(5, 2), Letters(), 4)
    assert plain.fingerprint() == "a2cc7bd76172cf9253357c088d7123d06fbc30fab59cf2fbf43f590aeee9196e"
    left_out = np.zeros(plain.tokens.shape, bool)
    left_out[0, 1] = True
    some = Sequences(plain.tokens, plain.document, plain.offset, plain.documents, left_out)
    assert some.text((0, 1, 2)).sum() == plain.text((0, 1, 2)).sum() - 1 == 6
    assert not some.text((0, 1, 2))[0, 1]
    np.testing.assert_array_equal(some.take([1, 0]).left_out, left_out[[1, 0]])
    none = Sequences(plain.tokens, plain.document, plain.offset, plain.documents, np.zeros_like(left_out))
    assert len({one.fingerprint() for one in (plain, some, none)}) == 3
    with pytest.raises(ValueError, match=r"left_out must be bool \[3, 4\], got bool \[2, 4\]"):
        Sequences(plain.tokens, plain.document, plain.offset, plain.documents, left_out[:2])


def test_what_cannot_be_cut_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="got length 1"):
        cut([Document("a", "s", "text")], tiny.tokenizer, 1)
    for packed in (False, True):
        with pytest.raises(ValueError, match="have no tokens"):
            cut([Document("a", "s", "")], tiny.tokenizer, 8, packed=packed)
    with pytest.raises(ValueError, match="`folder` needs a `key`"):
        cut([Document("a", "s", "text")], tiny.tokenizer, 8, folder=tmp_path)


def test_documents_are_tokenised_in_order_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(cutting, "_DOCUMENTS", 4)
    alive, most = weakref.WeakSet(), []

    def documents():
        for number in range(100):
            document = Document(f"d{number}", "s", chr(100 + number) * 5)
            alive.add(document)
            most.append(len(alive))
            yield document

    sequences = cut(documents(), Letters(), 6, folder=tmp_path, key="k")
    np.testing.assert_array_equal(sequences.tokens[:, 5], np.arange(100, 200))
    assert [id_ for id_, _ in sequences.documents] == [f"d{number}" for number in range(100)]
    assert max(most) < 20


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_gives_the_same_and_is_made_once(tmp_path, packed):
    documents = documents_of(30, 1, 7, 3)
    expected = cut(documents, Letters(), 8, packed=packed)
    made = cut(documents, Letters(), 8, packed=packed, folder=tmp_path / "f", key="k")
    assert made.fingerprint() == expected.fingerprint()
    assert isinstance(made.tokens, np.memmap) and isinstance(made.take(slice(1, 3)).tokens, np.memmap)
    np.testing.assert_array_equal(made.document_at(), expected.document_at())

    def unread():
        raise RuntimeError("the documents were read again")
        yield

    again = cut(unread(), Letters(), 8, packed=packed, folder=tmp_path / "f", key="k")
    assert again.fingerprint() == expected.fingerprint() and again.documents == expected.documents


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    documents = documents_of(9)
    cut(documents, Letters(), 8, folder=tmp_path, key="k")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = Letters()
    other.sha256 = "other"
    for tokenizer, length, changes, message in (
        (other, 8, {}, "tokenizer_sha256: the folder has 'letters', asked for 'other'"),
        (Letters(), 9, {}, "length: the folder has 8, asked for 9"),
        (Letters(), 8, {"packed": True}, "packed: the folder has False, asked for True"),
        (Letters(), 8, {"only_model_turns": True}, "only_model_turns: the folder has False, asked for True"),
        (Letters(), 8, {"key": "l"}, "key: the folder has 'k', asked for 'l'"),
    ):
        with pytest.raises(ValueError, match="holds other sequences") as error:
            cut(documents, tokenizer, length, folder=tmp_path, **{"key": "k", **changes})
        assert message in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_folder_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "_DOCUMENTS", 1)
    documents = documents_of(30, 5)

    def interrupted():
        yield documents[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(interrupted(), Letters(), 8, folder=tmp_path, key="k")
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    # One that was killed cleans up nothing; its files may be of another kind and longer.
    for name in ("tokens.npy", "left_out.npy", "documents.jsonl"):
        (tmp_path / name).write_bytes(b"\0" * 5000)
    made = cut(documents, Letters(), 8, folder=tmp_path, key="k")
    assert made.fingerprint() == cut(documents, Letters(), 8).fingerprint()


@pytest.mark.parametrize("name", ["tokens.npy", "documents.jsonl", "text.json"])
def test_a_damaged_folder_is_named(tmp_path, name):
    cut(documents_of(30, 5), Letters(), 8, folder=tmp_path, key="k")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is damaged .*: delete it, or name another folder"):
        cut(documents_of(30, 5), Letters(), 8, folder=tmp_path, key="k")


@pytest.mark.parametrize("name", ["tokens.npy", "document.npy", "offset.npy", "documents.jsonl"])
def test_no_damaged_byte_in_a_folder_gives_other_sequences(tmp_path, name):
    again = lambda: cut(documents_of(30, 5), Letters(), 8, folder=tmp_path, key="k")  # noqa: E731
    again()
    content = bytearray((tmp_path / name).read_bytes())
    content[-4] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"is damaged \({name} has the sha256 .*: delete it, or name another folder"):
        again()
    facts = json.loads((tmp_path / "text.json").read_text())
    del facts["sha256"]  # as earlier versions wrote it
    (tmp_path / "text.json").write_text(json.dumps(facts))
    assert len(again()) > 0


def test_a_folder_takes_numbers_of_numpy_and_paths(tmp_path):
    documents = [Document(np.int64(3), "s", "text")]
    options = {"packed": np.bool_(True), "skip_bad": np.bool_(False), "key": tmp_path}
    result = cut(documents, Letters(), np.int64(8), folder=tmp_path / "f", **options)
    again = cut(documents, Letters(), 8, packed=True, folder=tmp_path / "f", key=str(tmp_path))
    assert result.fingerprint() == again.fingerprint() and result.documents == (("3", "s"),)
    assert type(result.origin.length) is int and result.origin.packed is True
    for wrong, message in (
        ({"length": 8.0}, "length must be a whole number, got 8.0"),
        ({"packed": "no"}, "packed must"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(documents, Letters(), **{"length": 8} | wrong)


def test_two_at_once_make_a_folder_once(tmp_path):
    documents, begun, go_on, read = documents_of(30, 5), threading.Event(), threading.Event(), []

    def counted():
        for document in documents:
            begun.set()
            assert go_on.wait(60)
            read.append(document.id)
            yield document

    results = []
    runs = [
        threading.Thread(target=lambda: results.append(cut(counted(), Letters(), 8, folder=tmp_path, key="k")))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    assert begun.wait(60)
    assert not (tmp_path / "text.json").exists()
    go_on.set()
    for run in runs:
        run.join(60)
    assert read == ["d0", "d1"]
    assert len({one.fingerprint() for one in results}) == 1 and len(results) == 2
    assert json.loads((tmp_path / "text.json").read_bytes())["sequences"] == len(results[0])
