import json
from pathlib import Path

import pytest

import gemma
from gemma import Tokenizer

TINY = Path(gemma.__file__).parent / "tiny"


@pytest.mark.parametrize(
    "text",
    ["", " leading", "two  spaces\tand a tab", "naïve 東京 🙂", "line\n\n\nbreaks \n", "<eos> is text", "3.14159"],
)
def test_every_text_comes_back_exactly(tiny, text):
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text


def test_gemmas_special_ids(tiny):
    t = tiny.tokenizer
    assert (t.pad, t.eos, t.bos) == (0, 1, 2)
    assert len(t) == tiny.config.vocab_size == 4096
    assert t.encode("Go.")[0] == 2 and 2 not in t.encode("Go.", add_bos=False)


def test_the_shipped_text_comes_back_exactly(tiny):
    for line in (TINY / "held_out.jsonl").read_text(encoding="utf-8").split("\n")[:20]:
        text = json.loads(line)["text"]
        assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text


def test_pieces_as_a_person_reads_them(tiny):
    t = tiny.tokenizer
    assert "".join(t.piece(i) for i in t.encode("the {king}", add_bos=False)) == "the {king}"
    assert t.piece(t.encode("東", add_bos=False)[0]) == "<0xE6>"


def test_equality_is_the_models(tiny):
    again = Tokenizer.from_file(TINY / "tokenizer.model")
    assert again == tiny.tokenizer and hash(again) == hash(tiny.tokenizer)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "t.model").write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match=r"t\.model is not a SentencePiece model"):
        Tokenizer.from_file(tmp_path / "t.model")
