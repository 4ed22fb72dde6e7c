"""The text that launches share, and its held-out part."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import common


@pytest.fixture
def launch():
    """Sets flags, as a command line would."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():

        def set_flags(**values):
            for name, value in values.items():
                setattr(flags.FLAGS, name, value)

        yield set_flags


def corpus(path, *sizes):
    path.write_text("\n".join(json.dumps({"text": f"{k} went up. " * n, "id": f"d{k}"}) for k, n in enumerate(sizes)))
    return str(path)


def words(tiny, sequences):
    return tiny.tokenizer.decode(sequences.tokens.ravel())


@pytest.mark.parametrize("packed", [False, True])
def test_no_document_is_harvested_and_held_out(tiny, tmp_path, launch, packed):
    for seed in range(3):
        launch(corpus=corpus(tmp_path / "c.jsonl", *[20] * 30), length=16, packed=packed, seed=seed)
        train, held_out = common.texts(tiny)
        ids = [{part.documents[number][0] for number in np.unique(part.document_at())} for part in (train, held_out)]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == {f"d{k}" for k in range(30)}
        assert 0.05 < len(held_out) / (len(held_out) + len(train)) < 0.2
        padded = (train.tokens == tiny.tokenizer.pad).any(axis=1).sum()
        assert (padded <= 1) == packed
        assert not set(words(tiny, train).split(".")) & set(words(tiny, held_out).split(".")) - {" ", ""}


def test_packed_text_that_is_nearly_all_one_document(tiny, tmp_path, launch):
    for seed in range(4):
        launch(corpus=corpus(tmp_path / "c.jsonl", 1, 300, 1), length=16, packed=True, seed=seed, max_sequences=10**6)
        train, held_out = common.texts(tiny)
        assert "d1" in [id_ for id_, _ in train.documents] and "d1" not in [id_ for id_, _ in held_out.documents]
        assert len(train) > 10 * len(held_out)


def test_of_a_single_packed_document_the_end_is_held_out(tiny, tmp_path, launch):
    launch(corpus=corpus(tmp_path / "c.jsonl", 300), length=16, packed=True)
    train, held_out = common.texts(tiny)
    assert train.offset.max() < held_out.offset.min() and len(train) > 8 * len(held_out) > 0
    launch(corpus=corpus(tmp_path / "c.jsonl", 1))
    with pytest.raises(ValueError, match="makes a single sequence of 16 tokens"):
        common.texts(tiny)


def test_only_the_models_turns_of_chats(tiny, tmp_path, launch):
    chat = [{"role": "user", "content": "Who went up?"}, {"role": "model", "content": "He did."}]
    (tmp_path / "c.jsonl").write_text("\n".join([json.dumps({"messages": chat})] * 20))
    launch(corpus=str(tmp_path / "c.jsonl"), length=16, only_model_turns=True)
    for part in common.texts(tiny):
        kept = tiny.tokenizer.decode(part.tokens[part.text(tiny.tokenizer.special_ids)])
        assert kept == "He did." * len(set(part.document))
    launch(corpus=corpus(tmp_path / "t.jsonl", 20, 20))
    with pytest.raises(ValueError, match="'d0' has no messages"):
        common.texts(tiny)
