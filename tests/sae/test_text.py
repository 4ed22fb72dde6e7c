import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sae.text import Document, cut, is_text, read_documents


def test_plain_text_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("naïve 東京\n", encoding="utf-8")
    assert read_documents(tmp_path / "a.txt") == [Document("a.txt", "a", "naïve 東京\n")]
    lines = [{"text": "one\u2028two", "id": "x", "source": "s"}, {"text": " "}, {"text": "three"}]
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    assert read_documents(tmp_path / "b.jsonl") == [Document("x", "s", "one\u2028two"), Document("b:3", "b", "three")]


def test_parquet(tmp_path):
    table = pyarrow.table({"text": ["one", None, "three"], "source": ["s", "s", "t"], "stars": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert read_documents(tmp_path / "c.parquet") == [Document("c:0", "s", "one"), Document("c:2", "t", "three")]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match=r'expected a column "text" of strings, got text: int64'):
        read_documents(tmp_path / "numbers.parquet")


def test_bad_text_is_one_clear_line(tmp_path):
    cases = {
        "empty.txt": (b" \n", "is empty: it holds no text"),
        "latin.txt": ("né".encode("latin-1"), "is not UTF-8: byte 0xe9 at offset 1"),
        "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "bad.jsonl, line 2: not JSON"),
        "bad.parquet": (b"PAR1 and no more", "bad.parquet is not Parquet"),
        "other.jsonl": (b'{"content": "a"}\n', 'expected an object with a string "text"'),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_documents(tmp_path / name)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"cannot read the text .*none\.txt: No such file"):
        read_documents(tmp_path / "none.txt")


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
    assert sequences.documents == (("a", "s"), ("b", "t"), ("c", "s"))
    assert sequences.fingerprint() != sequences.take(slice(1, None)).fingerprint()


def test_too_short_a_length_is_refused(tiny):
    with pytest.raises(ValueError, match="got length 1"):
        cut([Document("a", "s", "text")], tiny.tokenizer, 1)
