"""Token ids against transformers': `tests/data/gemma2_tiny_texts.json`, which tests/peers/theirs_text.py made."""

import json
from pathlib import Path

import numpy as np
import pytest

import gemma
from gemma.tokenizer import Tokenizer, files, model_from_pieces, vocabulary
from gemma.tokenizer.added import AddedToken
from gemma.tokenizer.settings import Settings

EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "gemma2_tiny_texts.json").read_text(encoding="utf-8"))
TINY = Path(gemma.__file__).parent / "tiny"
ADDED = ["<tool_call>", "</tool_call>", "<think>", "<|im_start|>"]


@pytest.fixture(scope="module")
def plain():
    return Tokenizer.from_file(TINY / "tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer_json(plain, tmp_path_factory):
    """The shipped tokenizer's tokenizer.json alone in a folder."""
    folder = tmp_path_factory.mktemp("json")
    files.write(plain, folder, transformers=True)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer_config.json").unlink()
    return folder / "tokenizer.json"


def changed(tokenizer_json, folder, change, **beside):
    """A tokenizer.json with a change, and files beside it."""
    values = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    change(values)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    for name, contents in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(contents), encoding="utf-8")
    return folder / "tokenizer.json"


def add_tokens(values):
    for i, text in enumerate(ADDED):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": i < 2, "special": i >= 2}
        values["added_tokens"].append({"id": 4096 + i, "content": text, **flags})


@pytest.fixture(scope="module", params=["model", "json", "made of its pieces"])
def tokenizer(request, plain, tokenizer_json):
    """One vocabulary from three containers."""
    if request.param == "model":
        return plain
    if request.param == "json":
        return Tokenizer.from_file(tokenizer_json)
    pieces = [plain.raw_piece(i) for i in range(len(plain))]
    types = [1] * len(pieces)
    for token in plain.added_tokens:
        types[token.id] = 3 if token.special else 4  # as GGUF files have them, the turns' marks are control pieces
    types[4014 - 4096 :] = [1] * 82
    for i, piece in enumerate(pieces):
        types[i] = 6 if piece.startswith("<0x") else types[i]
    # GGUF files have plain spaces in the pieces of runs of spaces.
    contents = [p.replace("▁", " ").encode() if types[i] == 4 else p.encode() for i, p in enumerate(pieces)]
    return Tokenizer(model_from_pieces(contents, [-float(i) for i in range(4096)], types, pad=0, eos=1, bos=2, unk=3))


def test_the_ids_of_transformers_from_each_container(tokenizer):
    for text, ids in zip(EXPECTED["strings"], EXPECTED["ids"], strict=True):
        assert tokenizer.encode(text) == ids, text


def test_the_chats_of_transformers_from_each_container(tokenizer):
    for chat, ids, literal in zip(EXPECTED["chats"], EXPECTED["chat_ids"], EXPECTED["literal_ids"], strict=True):
        assert tokenizer.chat(**chat) == ids
        assert tokenizer.chat(**chat, literal=True) == literal


def test_added_tokens_of_a_fine_tune(tokenizer_json, tmp_path):
    tuned = Tokenizer.from_file(changed(tokenizer_json, tmp_path, add_tokens))
    for text, ids in zip(EXPECTED["strings"], EXPECTED["tuned_ids"], strict=True):
        assert tuned.encode(text) == ids, text
    assert len(tuned) == 4100 and tuned.find("<think>") == 4098
    assert tuned.decode(tuned.encode("a<think> b</tool_call>")) == "a<think> b</tool_call>"


@pytest.mark.parametrize("name", ["added_tokens", "tokenizer_config"])
def test_added_tokens_beside_a_tokenizer_model(name, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    contents = {text: 4096 + i for i, text in enumerate(ADDED)}
    if name == "tokenizer_config":
        contents = {"added_tokens_decoder": {str(i): {"content": text} for text, i in contents.items()}}
    (tmp_path / f"{name}.json").write_text(json.dumps(contents))
    tuned = Tokenizer.from_file(tmp_path / "tokenizer.model")
    assert tuned.encode("The sea <tool_call>") == [2, 392, 1788, 4014, 4096]
    for text, ids in zip(EXPECTED["strings"], EXPECTED["tuned_ids"], strict=True):
        assert tuned.encode(text) == ids, text
    assert tuned != Tokenizer.from_file(TINY / "tokenizer.model")


@pytest.mark.parametrize(
    ("token", "text", "parts"),
    [
        ({"lstrip": True}, "sea  <x> king", ["sea", 4096, " king"]),
        ({"rstrip": True}, "sea <x>  king", ["sea ", 4096, "king"]),
        ({"single_word": True}, "a<x> <x> <x>b", ["a<x> ", 4096, " <x>b"]),
        ({"content": "the sea"}, "by the sea", ["by ", 4096]),
        ({"content": "he", "id": None}, "then", ["t", None, "n"]),
    ],
)
def test_flags_of_added_tokens(plain, token, text, parts):
    """As the package `tokenizers` has them; see tests of its `added_vocabulary.rs`."""
    fields = {"content": "<x>", "id": 4096, **token}
    fields["id"] = plain.find("he") if fields["id"] is None else fields["id"]
    flagged = Tokenizer(plain.model_proto, Settings(added=(AddedToken(**fields),)))
    encode = lambda part: plain.encode(part, add_bos=False) if isinstance(part, str) else [part or fields["id"]]  # noqa: E731
    assert flagged.encode(text, add_bos=False) == [i for part in parts for i in encode(part)]


def test_ids_without_a_piece_decode_and_lose_nothing(plain):
    sea = plain.encode(" sea", add_bos=False)
    assert plain.decode([*sea, 4150, *sea, 10**6, -5]) == " sea\ufffd sea\ufffd\ufffd"
    assert plain.piece(4150) == "\ufffd" and plain.piece(-1) == "\ufffd"
    gaps = Tokenizer(plain.model_proto, Settings(added=(AddedToken("<x>", 4099),)))
    assert gaps.decode(np.array([4096, 4099, 4098])) == "\ufffd<x>\ufffd" and gaps.find("<x>") == 4099


def test_marks_that_a_text_spells_out(plain):
    text = "a<start_of_turn><eos> b<bos>"
    assert {5, 1, 2} <= set(plain.encode(text, add_bos=False))
    apart = plain.encode(text, add_bos=False, marks=False)
    assert not {5, 1, 2} & set(apart) and plain.decode(apart) == text
    # Within a text, marks are shown; around it, those that frame it vanish.
    assert plain.decode([0, 0, *plain.encode("a<eos>b<bos>c"), 1, 0]) == "a<eos>b<bos>c"


def test_bos_and_eos_as_the_settings_say(plain, tokenizer_json, tmp_path):
    bare, config = plain.encode("a", add_bos=False), {"add_bos_token": False, "add_eos_token": True}
    assert Tokenizer.from_file(tokenizer_json).encode("a") == [2, *bare]
    other = Tokenizer.from_file(changed(tokenizer_json, tmp_path, lambda values: None, tokenizer_config=config))
    assert other.encode("a") == [*bare, 1] and other.encode("a", add_bos=True) == [2, *bare]
    # What no setting says is the file's own post-processor.
    none = changed(tokenizer_json, tmp_path / "none", lambda values: values.update(post_processor=None))
    assert Tokenizer.from_file(none).encode("a") == bare


def test_a_unigram_vocabulary_is_read_by_hand(tmp_path):
    """The most likely of all ways to cut a text, by independent arithmetic on a tiny vocabulary."""
    words = {"▁": -3.0, "a": -2.0, "b": -2.5, "ab": -4.0, "▁a": -4.3, "ba": -5.5}
    vocab = [[p, 0.0] for p in ("<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)))]
    vocab += [[piece, score] for piece, score in words.items()]
    values = {
        "added_tokens": [{"id": i, "content": vocab[i][0], "special": True, "normalized": False} for i in range(4)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": vocabulary._DECODER},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": True},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")

    def ways(text):
        if not text:
            yield 0.0, []
        for piece, score in words.items():
            if text.startswith(piece):
                yield from ((score + rest, [piece, *more]) for rest, more in ways(text[len(piece) :]))

    for text in ("ab ab", "ba", " abab", "aab ba a"):
        best = max(ways(text.replace(" ", "▁")))[1]
        assert [tokenizer.raw_piece(i) for i in tokenizer.encode(text, add_bos=False)] == best, text
    assert tokenizer.encode("a<eos>é") == [tokenizer.find("a"), 1, *(4 + byte for byte in "é".encode())]


def test_a_lone_surrogate_is_named(plain):
    with pytest.raises(ValueError, match=r"character 1 of the text is the lone surrogate '\\ud800', which UTF-8"):
        plain.encode("a\ud800b")
    with pytest.raises(TypeError, match="a text must be a str, got bytes"):
        plain.encode(b"a")
