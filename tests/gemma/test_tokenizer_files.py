"""From checkpoints' folders to a tokenizer and to where texts end, and back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemma
from gemma.checkpoints import tokenizers
from gemma.tokenizer import Tokenizer, files
from tests.gemma import ggufs

TINY = Path(gemma.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def model(golden_3):
    return golden_3[0]


def works(model):
    return np.isfinite(np.asarray(model.apply(np.array([[2, 5, 7]])))).all()


def test_a_gguf_file_whose_end_token_is_another(model, tmp_path):
    """As in files of instruction-tuned models: the end of a turn, 106 there."""
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, eos=270))
    assert works(loaded) and (loaded.tokenizer.eos_id, loaded.tokenizer.eos) == (270, 270)
    assert loaded.tokenizer.special_ids == (0, 270, 2, 1)
    assert set(tokenizers.ends(loaded)) == {1, 270}
    assert loaded.tokenizer.encode("the a") == gemma.load(ggufs.write(tmp_path / "n.gguf", model)).tokenizer.encode(
        "the a"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "gpt2"}, "m.gguf has a tokenizer of kind 'gpt2', not SentencePiece"),
        ({"kind": "gemma4"}, "m.gguf has a tokenizer of kind 'gemma4', not SentencePiece"),
        ({"eos": 4000}, "m.gguf has special tokens that are no pieces of its 384: {'eos_token': 4000}"),
        ({"words": [*ggufs.WORDS, "th"]}, "m.gguf has pieces that make no tokenizer"),
        (
            {"words": [*ggufs.WORDS, *(f"{i}x" for i in range(200))]},
            "has 494 pieces, but the model has only 384 embeddings",
        ),
    ],
)
def test_an_odd_tokenizer_keeps_no_weights_away(model, tmp_path, change, reason):
    path = ggufs.write(tmp_path / "m.gguf", model, **change)
    loaded = gemma.load(path)
    assert works(loaded) and loaded.tokenizer is None and reason in loaded.tokenizer_problem
    with pytest.raises(ValueError, match="was loaded without a tokenizer") as error:
        gemma.generate(loaded, "the")
    assert reason in str(error.value) and "tokenizer.json beside it" in str(error.value)
    # One beside it is taken.
    (tmp_path / "plain").mkdir()
    plain = gemma.load(ggufs.write(tmp_path / "plain" / "m.gguf", model))
    files.write(plain.tokenizer, tmp_path, transformers=True)
    for name in ("tokenizer.json", "tokenizer.model"):
        assert gemma.load(path).tokenizer.encode("the ab") == plain.tokenizer.encode("the ab"), name
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize("more", [1, 64])
def test_marks_past_the_last_row_do_no_harm(model, tmp_path, more):
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, more=more))
    assert works(loaded) and len(loaded.tokenizer) == 384 + more and loaded.tokenizer.encode("the")[0] == 2


def test_the_chat_template_of_a_gguf_file(model, tmp_path):
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, template="{{ messages[0].content }} the"))
    chat = [{"role": "user", "content": "ab"}]
    assert loaded.tokenizer.decode(loaded.tokenizer.chat(chat)) == "ab the"
    gemma.save(loaded, tmp_path / "saved")
    assert gemma.load(tmp_path / "saved").tokenizer.chat(chat) == loaded.tokenizer.chat(chat)


@pytest.mark.parametrize("contents", ["{}", "{", '{"model": {"type": "BPE", "vocab": {}}}', "[]"])
def test_a_damaged_tokenizer_json_is_named(model, tmp_path, contents):
    gemma.save(model, tmp_path, "huggingface")
    (tmp_path / "tokenizer.json").write_text(contents)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer of transformers"):
        gemma.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "contents"),
    [("tokenizer_config.json", "{"), ("added_tokens.json", "[1]"), ("generation_config.json", '{"eos_token_id": "x"}')],
)
def test_damaged_small_files_are_named(tiny, tmp_path, name, contents):
    (tmp_path / "tokenizer.model").write_bytes(tiny.tokenizer.model_proto)
    (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_file(tmp_path / "tokenizer.model")
        files.end_tokens(tmp_path / name)


def test_an_added_token_that_the_vocabulary_contradicts_is_named(tiny, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiny.tokenizer.model_proto)
    for added, message in (
        ({"<x>": 300}, "has the id 300, which is"),
        ({"<eos>": 4096}, "has the id 4096, but is piece 1"),
    ):
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_file(tmp_path / "tokenizer.model")


def test_another_kind_of_tokenizer_json_needs_the_package(model, tmp_path, monkeypatch):
    """Pieces that are not all that merging could make: SentencePiece would make others."""
    import sys

    values = {
        "model": {"type": "BPE", "vocab": {"<eos>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
        "added_tokens": [{"id": 0, "content": "<eos>", "special": True}],
    }
    gemma.save(model, tmp_path, "huggingface")
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    loaded = gemma.load(tmp_path)
    assert works(loaded) and loaded.tokenizer is None
    with pytest.raises(ValueError, match="needs the package tokenizers: pip install tokenizers"):
        gemma.generate(loaded, "the")


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_what_is_saved_is_loaded(tiny, tmp_path, format):
    """Added tokens, template, end tokens and settings, from whichever files."""
    source = tmp_path / "source"
    gemma.save(tiny, source, "huggingface")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    added = {"4096": {"content": "<tool_call>"}, "4097": {"content": "<think>", "special": True}}
    settings = {
        "added_tokens_decoder": added,
        "chat_template": "{{ messages[0].content }}<think>",
        "add_bos_token": False,
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    tokenizer = Tokenizer.from_file(source / "tokenizer.model")
    model = gemma.Model(
        tiny.params, tiny.config, tokenizer, end_tokens=files.end_tokens(source / "generation_config.json")
    )
    gemma.save(model, tmp_path / "saved", format)
    loaded = gemma.load(tmp_path / "saved")
    text, chat = "The sea <tool_call>\n<think>  <eos>", [{"role": "user", "content": "Hi"}]
    assert loaded.tokenizer.encode(text) == tokenizer.encode(text) != tiny.tokenizer.encode(text)
    assert loaded.tokenizer.chat(chat) == tokenizer.chat(chat) and loaded.tokenizer.chat(chat)[-1] == 4097
    assert tokenizers.ends(loaded) == (1, 5)


def test_what_transformers_reads_is_written(tiny, tmp_path):
    gemma.save(tiny, tmp_path, "huggingface")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] and (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [1, 6]
    # tokenizer.json is read only if it is not the other's: that takes longer.
    assert gemma.load(tmp_path).tokenizer.json is None
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy.json")
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["added_tokens"].append({"id": 4096, "content": "<think>", "special": True, "normalized": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    loaded = gemma.load(tmp_path).tokenizer
    assert loaded.json is not None and loaded.encode("<think>") == [2, 4096]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_end_tokens_stop(tiny, tmp_path, where):
    gemma.save(tiny, tmp_path, "huggingface")
    free = gemma.generate(tiny, "The sea", max_new_tokens=6).tokens[0].tolist()
    if where == "config.json":
        (tmp_path / "generation_config.json").unlink()
    values = json.loads((tmp_path / where).read_text()) | {"eos_token_id": [1, free[1]]}
    (tmp_path / where).write_text(json.dumps(values))
    assert gemma.generate(gemma.load(tmp_path), "The sea", max_new_tokens=6).tokens[0].tolist() == [
        *free[:2],
        0,
        0,
        0,
        0,
    ]
