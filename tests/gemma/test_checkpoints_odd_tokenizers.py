"""GGUF files whose tokenizer, or what else is beside the text model, is not what a plain converter writes: the weights
load, and the tokenizer is read where it can be."""

import shutil

import gguf as package
import jax
import numpy as np
import pytest

import gemma
from tests.gemma import ggufs, small
from tests.gemma.refusing import refused

CONFIG = {**small.GEMMA_3, "vocab_size": 384, "layer_pattern": ("local",) * 5 + ("global",)}


@pytest.fixture
def model():
    return small.model(**CONFIG)


def write(path, model, *, kind="llama", marks=(), **arguments):
    """A GGUF file whose writer is told another kind of tokenizer, or other special ids."""
    with pytest.MonkeyPatch.context() as patch:
        plain = package.GGUFWriter.add_tokenizer_model
        patch.setattr(package.GGUFWriter, "add_tokenizer_model", lambda writer, _: plain(writer, kind))
        for name, id_ in dict(marks).items():
            method = f"add_{name}_token_id"
            add = getattr(package.GGUFWriter, method)
            patch.setattr(package.GGUFWriter, method, lambda writer, _, add=add, id_=id_: add(writer, id_))
        return ggufs.write(path, model, **arguments)


def same(loaded, model):
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-7)


@pytest.mark.parametrize("marks", [{"eos": 261}, {"eos": 262, "pad": 300}, {"bos": 301}])
def test_other_special_ids(model, marks, tmp_path):
    """The end token of a chat model is its <end_of_turn>."""
    loaded = gemma.load(write(tmp_path / "m.gguf", model, marks=marks))
    same(loaded, model)
    want = {"pad": 0, "eos": 1, "bos": 2} | marks
    assert {name: getattr(loaded.tokenizer, name) for name in want} == want
    assert loaded.tokenizer.encode("the ab")[0] == want["bos"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"kind": "gpt2"}, "has a tokenizer of kind 'gpt2', not SentencePiece"),
        ({"kind": "bert"}, "has a tokenizer of kind 'bert'"),
        ({"marks": {"eos": 9999}}, "has special tokens that are no pieces of its 384: {'eos_token': 9999}"),
        ({"marks": {"bos": 384}}, "has special tokens that are no pieces of its 384: {'bos_token': 384}"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_missing_with_a_reason(model, how, said, tmp_path):
    loaded = gemma.load(write(tmp_path / "m.gguf", model, **how))
    same(loaded, model)
    assert loaded.tokenizer is None and said in loaded.tokenizer_problem
    with pytest.raises(ValueError, match=said):
        gemma.generate(loaded, "the sea", max_new_tokens=1)


def test_many_more_pieces_than_rows_are_another_models(tmp_path):
    model = small.model(**CONFIG | {"vocab_size": 100})
    words = [f"w{i}" for i in range(200)]
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, words=words))
    same(loaded, model)
    assert (
        loaded.tokenizer is None and "has 461 pieces, but the model has only 100 embeddings" in loaded.tokenizer_problem
    )


@pytest.mark.parametrize("more", [1, 2])
def test_some_more_pieces_than_rows(model, more, tmp_path):
    """Gemma 3's mark of an image has no row in the text models."""
    words = [*ggufs.WORDS, *(f"<more{i}>" for i in range(384 - 261 - len(ggufs.WORDS) + more))]
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, words=words))
    same(loaded, model)
    assert len(loaded.tokenizer) == 384 + more
    with pytest.raises(ValueError, match=r"tokens have the id 384"):
        loaded.apply(np.asarray([[2, 384]]))


def test_a_tokenizer_beside_the_file_is_used(tiny, tmp_path):
    model = small.model(**CONFIG | {"vocab_size": 4096})
    write(tmp_path / "m.gguf", model, kind="gpt2")
    shutil.copy(gemma.checkpoints.sources._SHIPPED["gemma2-tiny"] / "tokenizer.model", tmp_path)
    for source in (tmp_path, tmp_path / "m.gguf"):
        loaded = gemma.load(source)
        assert loaded.tokenizer == tiny.tokenizer and loaded.tokenizer_problem is None
    ggufs.write(tmp_path / "m.gguf", model)  # one that can be read goes first
    assert gemma.load(tmp_path).tokenizer != tiny.tokenizer


@pytest.mark.parametrize("name", ["v.patch_embd.weight", "mm.input_projection.weight"])
def test_tensors_of_vision_are_of_no_concern(model, name, tmp_path):
    path = ggufs.write(tmp_path / "m.gguf", model, change=lambda t: t.update({name: np.ones((4, 32), np.float32)}))
    same(gemma.load(path), model)


def test_tensors_of_anything_else_are_refused(model, tmp_path):
    path = ggufs.write(tmp_path / "m.gguf", model, change=lambda t: t.update({"vx.w": np.ones((4, 32), np.float32)}))
    refused(path, "not in this model: vx.w")


def test_without_a_window_all_layers_are_global(model, tmp_path):
    """As in llama.cpp's gemma3.cpp; Gemma 2 has a default."""
    loaded = gemma.load(ggufs.write(tmp_path / "m.gguf", model, leave_out=("attention.sliding_window",)))
    assert set(loaded.config.layer_pattern) == {"global"} and loaded.config.rope_base == 1e6
    zero = small.model(**CONFIG)
    object.__setattr__(zero.config, "window", 0)  # as a file may have it
    assert set(gemma.load(ggufs.write(tmp_path / "z.gguf", zero)).config.layer_pattern) == {"global"}
    two = ggufs.write(tmp_path / "2.gguf", small.model(), words=[], leave_out=("attention.sliding_window",))
    assert gemma.load(two).config.window == 4096 and gemma.load(two).config.layer_pattern == ("local", "global")
