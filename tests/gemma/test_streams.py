"""Growing texts without a model: what is shown of a text so far, and where stop strings end it."""

import itertools
import json
from pathlib import Path

import pytest

import gemma
from gemma.streams import Growing
from gemma.tokenizer import Tokenizer

TINY = Path(gemma.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(TINY / "tokenizer.model")


def grow(tokenizer, tokens, stop_tokens=(), stop=()):
    """A text and the pieces that it came in."""
    growing, pieces = Growing(tokenizer, stop_tokens, stop), []
    for token in tokens:
        pieces.append(growing.add(token))
        if growing.ended:
            break
    else:
        pieces.append(growing.finish())
    return growing, pieces


@pytest.mark.parametrize("text", ["naïve 東京 🙂", "a\ufffdb 🙂🙂", " <eos> within", "x" + " " * 9 + "\n\n\n", "東"])
def test_pieces_join_to_the_text(tokenizer, text):
    tokens = tokenizer.encode(text, add_bos=False)
    growing, pieces = grow(tokenizer, tokens)
    assert "".join(piece for piece, _ in pieces) == growing.text == tokenizer.decode(tokens)
    assert list(itertools.chain.from_iterable(ids for _, ids in pieces)) == tokens
    # No piece ends in the middle of a character.
    assert all("\ufffd" not in piece for piece, _ in pieces) or "\ufffd" in text


def test_pieces_join_to_the_text_of_the_shipped_corpus(tokenizer):
    for line in (TINY / "held_out.jsonl").read_text(encoding="utf-8").splitlines()[:5]:
        tokens = tokenizer.encode(json.loads(line)["text"][:2000], add_bos=False)
        growing, pieces = grow(tokenizer, tokens)
        assert "".join(piece for piece, _ in pieces) == growing.text == tokenizer.decode(tokens)


@pytest.mark.parametrize("tokens", [[244], [255, 254, 30], [250, 250, 250, 250], [2, 0, 1], [1, 1], []])
def test_broken_bytes_and_special_tokens_join_too(tokenizer, tokens):
    for more in ([], tokenizer.encode("a", add_bos=False)):
        growing, pieces = grow(tokenizer, [*tokens, *more])
        assert "".join(piece for piece, _ in pieces) == growing.text == tokenizer.decode([*tokens, *more])


def test_a_stop_string_ends_a_text_wherever_it_stands(tokenizer):
    """Every substring of a text as the stop string: most begin and end within tokens."""
    text = "In the beginning God created naïve 東京."
    tokens = tokenizer.encode(text, add_bos=False)
    inside = 0
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        stop = text[start:end]
        growing, pieces = grow(tokenizer, tokens, stop=(stop,))
        assert growing.ended and growing.text == text[: text.find(stop)]
        assert "".join(piece for piece, _ in pieces) == growing.text
        # It ends with the first token by which the stop string is whole.
        count = next(n for n in range(len(tokens) + 1) if stop in tokenizer.decode(tokens[:n]))
        assert growing.tokens == tokens[:count]
        inside += tokenizer.decode(growing.tokens) != text[: text.find(stop) + len(stop)]
    assert inside > 100


def test_the_first_of_several_stop_strings(tokenizer):
    tokens = tokenizer.encode("one two three", add_bos=False)
    assert grow(tokenizer, tokens, stop=("three", "two", "four"))[0].text == "one "
    assert grow(tokenizer, tokens, stop=("wo t", "two"))[0].text == "one "
    assert not grow(tokenizer, tokens, stop=("three!",))[0].ended
    assert grow(tokenizer, tokens, stop=("three!",))[0].text == "one two three"


def test_a_stop_token_is_no_part_of_the_text(tokenizer):
    sea = tokenizer.encode(" sea", add_bos=False)
    growing, pieces = grow(tokenizer, [*sea, 6, *sea], stop_tokens=(6,))
    assert growing.text == " sea" and growing.tokens == [*sea, 6] and "".join(piece for piece, _ in pieces) == " sea"


def test_without_a_tokenizer_pieces_have_tokens():
    assert grow(None, [5, 6, 7], stop_tokens=(7,))[1] == [("", [5]), ("", [6]), ("", [])]
