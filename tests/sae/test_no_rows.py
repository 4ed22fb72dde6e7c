"""Texts of which nothing, or nothing of a segment, counts."""

import dataclasses
import itertools

import numpy as np
import pytest

import sae
from sae.text import pipeline
from tests.sae import examples
from tests.sae.test_harvest import text_for

SITE = "layer_0/mlp_out"
SIZE = 8  # sequences of a segment


@pytest.fixture(scope="module")
def text(tiny):
    return text_for(tiny)


def without_segments(text, seed, *segments):
    """The text with all tokens of some segments left out."""
    left_out = np.zeros(text.tokens.shape, bool)
    for segment in segments:
        left_out[pipeline.numbers(len(text), seed, segment, SIZE)] = True
    return dataclasses.replace(text, left_out=left_out)


def test_a_store_and_a_stream_begin_with_a_segment_that_is_left_out_entirely(tiny, text, tmp_path):
    part = without_segments(text, 0, 0, 2)
    store = sae.harvest(tiny, part, [SITE], tmp_path / "s", shuffle_rows=SIZE * 31)
    stream = sae.stream(tiny, part, [SITE], shuffle_rows=SIZE * 31)
    assert [rows > 0 for _, rows in store.segments][:4] == [False, True, False, True]
    assert store.rows == stream.rows == part.text(tiny.tokenizer.special_ids).sum()
    assert store.mean_squared_norm(SITE) == pytest.approx(stream.mean_squared_norm(SITE), rel=0.3)
    run = sae.short_run(SITE, 32, 4, batch_size=64, l0_target=4.0)
    for source in (store, stream):
        _, history = sae.train(run, source)
        assert np.isfinite(history[-1]["loss"])


def test_an_epoch_of_a_stream_has_empty_segments_anywhere(tiny, text):
    stream = sae.stream(tiny, text, [SITE], shuffle_rows=SIZE * 31)
    seed = stream._seed(0, 0)  # the first epoch's
    last = stream.manifest.segments - 1
    part = without_segments(text, seed, 0, 2, 3, last)
    stream = sae.stream(tiny, part, [SITE], shuffle_rows=SIZE * 31)
    count = stream.batches_per_pass(64)
    batches = stream.batches(64, ["token", "position", "document"])
    batches = list(itertools.islice(batches, count))
    identity = {row for batch in batches for row in zip(*(batch[name].tolist() for name in batch), strict=True)}
    keep = part.text(tiny.tokenizer.special_ids)
    position = np.nonzero(keep)[1]
    want = set(zip(part.tokens[keep].tolist(), position.tolist(), part.document_at()[keep].tolist(), strict=True))
    assert identity == want


@pytest.mark.parametrize("how", ["all left out", "all special", "no sequences"])
def test_nothing_to_harvest_is_said_before_anything_is_written(tiny, text, tmp_path, how):
    if how == "all left out":
        text = dataclasses.replace(text, left_out=np.ones(text.tokens.shape, bool))
    elif how == "all special":
        padding = np.full_like(text.tokens, tiny.tokenizer.pad)
        padding[:, 0] = tiny.tokenizer.bos
        text = dataclasses.replace(text, tokens=padding)
    else:
        text = text.take(np.arange(0))
    message = {"no sequences": r"needs sequences of at least BOS and one token, got \[S, T\] = \[0, 32\]"}.get(
        how, r"none of the tokens in [\d,]+ sequences? counts: all are special ids \(\d.*\) or left out by the text"
    )
    for make in (lambda: sae.harvest(tiny, text, [SITE], tmp_path / "s"), lambda: sae.stream(tiny, text, [SITE])):
        with pytest.raises(ValueError, match=message):
            make()
    assert not (tmp_path / "s").exists()


def test_a_store_without_rows_says_so(tmp_path):
    store = examples.make_store(tmp_path / "s", {"x": np.zeros((0, 4), np.float32)}, sequences=3, segment_rows=1)
    assert store.rows == 0 and len(store.segments) == 3
    for ask in (
        lambda: store.mean("x"),
        lambda: store.median_norm("x"),
        lambda: store.rounding("x"),
        lambda: store.batches_per_pass(8),
        lambda: store.batches(8),
        lambda: sae.train(sae.short_run("x", 8, 4, l0_target=2.0), store),
    ):
        with pytest.raises(ValueError, match="has no rows: in its 3 segments every token was left out"):
            ask()


def test_a_worker_whose_segments_are_empty_is_harvested(tiny, text, tmp_path):
    part = without_segments(text, 0, 1)
    store = sae.harvest(tiny, part, [SITE], tmp_path / "s", shuffle_rows=SIZE * 31, worker=(1, 10))
    assert store.growing and store.rows == 0
    whole = sae.harvest(tiny, part, [SITE], tmp_path / "s", shuffle_rows=SIZE * 31)
    assert whole.rows == part.text(tiny.tokenizer.special_ids).sum()
