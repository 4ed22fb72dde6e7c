"""Tokens of another tokenizer are refused before a model reads them."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.text import Document, Sequences, as_sequences, cut
from tests.sae.examples import SITE, autoencoder_for

MODEL = types.SimpleNamespace(
    name="gemma2-tiny", vocab_size=4096, tokenizer=types.SimpleNamespace(bos=2, sha256="a" * 64)
)


def made(tokens, **about):
    number = np.arange(len(tokens), dtype=np.int32)
    return Sequences(np.asarray(tokens), number, number, tuple((f"d{i}", "s") for i in number), **about)


def test_ids_of_the_vocabulary_pass_as_they_are():
    tokens = np.array([[2, 4095, 0]], np.int32)
    assert as_sequences(tokens, MODEL).tokens is tokens
    sequences = made(tokens)
    assert as_sequences(sequences, MODEL) is sequences
    for other in (tokens.astype(np.uint16), tokens.tolist(), tokens.astype(np.int64), jnp.asarray(tokens)):
        ids = as_sequences(other, MODEL).tokens
        assert ids.dtype == np.int32 and isinstance(ids, np.ndarray)
        np.testing.assert_array_equal(ids, tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            [[2, 4096]],
            r"have the id 4096, while the vocabulary of gemma2-tiny is 0 to 4095: .*another model's tokenizer",
        ),
        ([[2, 2**31 + 5]], r"have the id 2147483653, .*another model's tokenizer"),
        ([[2, -7]], r"have the id -7, .*no tokenizer gives negative ids.*padding"),
        ([[2.0, 3.9]], r"must be integers \[S, T\], got float64 \[1, 2\]: give the ids of a tokenizer"),
        ([[True, False]], r"must be integers \[S, T\], got bool"),
        ([2, 3], r"must be integers \[S, T\], got int64 \[2\]"),
    ],
)
def test_others_are_refused_with_what_they_may_be(tokens, message):
    with pytest.raises(ValueError, match=message):
        as_sequences(np.asarray(tokens), MODEL)


def test_an_id_that_lies_deep_in_the_text_is_seen():
    tokens = np.full((5000, 2), 3, np.int32)
    tokens[4999, 1] = 9999
    with pytest.raises(ValueError, match="have the id 9999"):
        as_sequences(made(tokens), MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": np.array([[2, 5, 6], [7, 5, 2]])},
            "has to begin with BOS, 2, but sequence 1 begins with 7: cut the text",
        ),
        ({"document": np.array([0, -1])}, "list 2 documents, counted from 0, and have tokens of document -1"),
        ({"document": np.array([0, 2])}, "list 2 documents, .* tokens of document 2: `documents` has to list every"),
        # The second BOS begins a third document.
        ({"tokens": np.array([[2, 5, 6], [2, 5, 2]])}, "list 2 documents, .* tokens of document 2"),
        ({"offset": np.array([0, -4])}, "an offset counts the tokens of a document from 0 on, got -4"),
        ({"document": np.zeros(3, int)}, r"document must be integers \[2\], one for each sequence, got int64 \[3\]"),
        ({"offset": np.zeros(2)}, r"offset must be integers \[2\], one for each sequence, got float64 \[2\]"),
        ({"tokens": np.ma.masked_array([[2, 5], [2, 6]], [[0, 1], [0, 0]])}, "must be a plain array, got a masked one"),
    ],
)
def test_sequences_that_contradict_themselves_are_refused(changes, message):
    whole = made(np.array([[2, 5, 6], [2, 5, 0]], np.int32))
    assert as_sequences(whole, MODEL) is whole
    with pytest.raises(ValueError, match=message):
        as_sequences(dataclasses.replace(whole, **changes), MODEL)


def test_a_masked_array_is_refused():
    with pytest.raises(ValueError, match=r"must be a plain array, got a masked one: give `sae.text.Sequences`"):
        as_sequences(np.ma.masked_array([[2, 5]], [[0, 1]]), MODEL)


def test_nothing_is_written_of_sequences_that_contradict_themselves(tiny, tmp_path):
    text = cut([Document("d", "s", "some words")], tiny.tokenizer, 24)
    with pytest.raises(ValueError, match="has to begin with BOS"):
        sae.harvest(tiny, dataclasses.replace(text, tokens=text.tokens[:, 1:]), [SITE], tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_sequences_know_their_tokenizer(tiny, tmp_path):
    documents = [Document("d", "s", "In the beginning was the word.")]
    for where in ({}, {"folder": tmp_path / "t", "key": "k"}):
        sequences = cut(documents, tiny.tokenizer, 8, **where)
        assert sequences.tokenizer_sha256 == tiny.tokenizer.sha256
        assert sequences.take(np.arange(1)).tokenizer_sha256 == tiny.tokenizer.sha256
        anybodys = dataclasses.replace(sequences, tokenizer_sha256=None)
        assert anybodys.fingerprint() == sequences.fingerprint()


def test_another_models_sequences_are_refused_and_both_are_named():
    other = made([[2, 5]], tokenizer_sha256="b" * 64)
    with pytest.raises(ValueError, match=r"the tokenizer bbbbbbbbbbbb…, while gemma2-tiny has the tokenizer aaaaaaaaa"):
        as_sequences(other, MODEL)
    for same in (dataclasses.replace(other, tokenizer_sha256=None), made([[2, 5]], tokenizer_sha256="a" * 64)):
        np.testing.assert_array_equal(as_sequences(same, MODEL).tokens, [[2, 5]])


def test_sequences_are_made_of_integers():
    for tokens in ([[2.0, 5.5]], [2, 5]):
        with pytest.raises(ValueError, match=r"tokens must be integers \[S, T\], got"):
            made(tokens)


def test_nothing_is_harvested_streamed_or_evaluated_of_them(tiny, tmp_path):
    right = cut([Document("d", "s", "And it came to pass. " * 9)], tiny.tokenizer, 16)
    high, low = right.tokens + 100_000, np.where(right.tokens > 500, -7, right.tokens)
    wrong = {
        "the id 10": dataclasses.replace(right, tokens=high.astype(np.int32)),
        "the id -7": dataclasses.replace(right, tokens=low.astype(np.int32)),
        "cut with the tokenizer cccccccccccc": dataclasses.replace(right, tokenizer_sha256="c" * 64),
    }
    autoencoder = autoencoder_for(tiny, 192)
    for message, sequences in wrong.items():
        with pytest.raises(ValueError, match=message):
            sae.harvest(tiny, sequences, [SITE], tmp_path / "s")
        with pytest.raises(ValueError, match=message):
            sae.stream(tiny, sequences, [SITE])
        with pytest.raises(ValueError, match=message):
            sae.evaluate(autoencoder, tiny, sequences)
    assert not (tmp_path / "s").exists()
    with pytest.raises(ValueError, match="got float"):
        sae.evaluate(autoencoder, tiny, right.tokens + 0.9)
