"""The shipped model: its provenance is true, its size within bounds."""

import json
from pathlib import Path

import jax
import numpy as np

import gemma
from sae.text import cut, is_text, read_documents

TINY = Path(gemma.__file__).parent / "tiny"


def test_it_is_within_twelve_megabytes_with_provenance_and_licences():
    assert sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file()) <= 12e6
    notices = (TINY / "NOTICES.txt").read_text(encoding="utf-8")
    for words in (
        "Princeton University",
        "PostgreSQL Global Development Group",
        "Chip Chapin",
        "Open Knowledge Foundation",
    ):
        assert words in notices
    record = json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))
    assert record["training"]["tokens"] >= 8_000_000
    assert record["loss_nats_per_token"]["gemma2-tiny"] <= record["loss_nats_per_token"]["bigram"] - 0.5


def test_its_weights_are_bfloat16_exactly(tiny):
    for leaf in jax.tree.leaves(tiny.params):
        np.testing.assert_array_equal(leaf, leaf.astype("bfloat16").astype("float32"))


def test_its_loss_on_held_out_text_is_about_the_recorded_one(tiny):
    """On the shipped excerpt, which is evener over the sources than the whole that the record is of."""
    sequences = cut(read_documents(TINY / "held_out.jsonl"), tiny.tokenizer, 256)
    tokens = sequences.tokens[:: len(sequences) // 48][:48]
    logp = np.asarray(jax.nn.log_softmax(jax.jit(tiny.apply)(tokens)[:, :-1]))
    loss = -np.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    recorded = json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))["loss_nats_per_token"]
    assert abs(loss[is_text(tokens[:, 1:], tiny.tokenizer.special_ids)].mean() - recorded["gemma2-tiny"]) < 0.4
