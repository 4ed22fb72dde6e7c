"""What launches say of a text, what they leave out, and where they keep its tokens."""

import json
import re

import numpy as np
import pytest

from experiments import common


def corpus(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


STORY = "{0} ships lay in the harbour, and {0} kings came down to the sea in the evening and looked at them. "
STORIES = [STORY.format(number) * 3 for number in range(30)]
OTHERS = [STORY.format(number) * 3 for number in range(100, 110)]  # held out


def test_duplicates_and_what_is_left_out_are_said_once(tiny, tmp_path, launch):
    near = STORIES[3].replace("evening", "EVENING,")
    path = corpus(tmp_path / "c.jsonl", [*STORIES, STORIES[0], STORIES[1], near, " "])
    launch(corpus=path, length=16)
    for packed in (False, True):
        launch(packed=packed)
        said = []
        common.texts(tiny, say=said.append)
        assert [line for line in said if "document" in line] == [
            "c.jsonl: 33 documents; 1 blank document is left out",
            "c.jsonl: 2 of 33 documents are exact duplicates, 1 near",
            "31 documents to harvest, 2 held out",
        ]


def test_bad_records_end_the_launch_or_are_said(tiny, tmp_path, launch):
    path = corpus(tmp_path / "c.jsonl", STORIES)
    with open(path, "a") as file:
        chat = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
        file.write('\n{"text": \n' + json.dumps(chat))
    launch(corpus=path, length=16)
    with pytest.raises(ValueError, match=r"c\.jsonl, line 31: not JSON .*--skip_bad"):
        common.texts(tiny)
    launch(skip_bad=True)
    said = []
    train, held_out = common.texts(tiny, say=said.append)
    assert {id_ for id_, _ in (*train.documents, *held_out.documents)} == {f"c:{number}" for number in range(1, 31)}
    assert any(line.startswith("c.jsonl: 31 documents; 1 bad record is left out, the first: ") for line in said)
    (refused,) = [line for line in said if "document 'c:32' is a chat, and turn 2 is of 'user'" in line]
    assert re.match(
        r"c\.jsonl, (harvested|held out): 1 bad record is left out, the first: .*c\.jsonl, line 32: ", refused
    )


def test_all_sequences_are_taken_unless_a_number_is_named(tiny, tmp_path, launch):
    launch(corpus=corpus(tmp_path / "c.jsonl", STORIES * 30), held_out=corpus(tmp_path / "h.jsonl", OTHERS), length=16)
    said = []
    train, held_out = common.texts(tiny, say=said.append)
    assert len(train) > 2000 and len(held_out) < 128 and not any("at random" in line for line in said)
    launch(max_sequences=50)
    some, _ = common.texts(tiny, say=said.append)
    assert len(some) == 50 and f"50 of {len(train):,} sequences are taken, at random (--max_sequences)" in said
    everything, _ = common.texts(tiny, most=0)
    assert len(everything) == len(train)


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_are_kept_in_a_folder(tiny, tmp_path, launch, packed):
    path, held_out = corpus(tmp_path / "c.jsonl", STORIES), corpus(tmp_path / "h.jsonl", OTHERS[:3])
    launch(corpus=path, held_out=held_out, length=16, packed=packed)
    expected = common.texts(tiny)
    launch(text_dir=str(tmp_path / "text"))
    said = []
    kept = common.texts(tiny, say=said.append)
    for one, other in zip(expected, kept, strict=True):
        assert one.fingerprint() == other.fingerprint() and isinstance(other.tokens, np.memmap)
    folders = {folder.name: (folder / "text.json").stat().st_mtime_ns for folder in (tmp_path / "text").iterdir()}
    assert len(folders) == 2 and sum("GB of tokens in" in line for line in said) == 2
    # The next launch takes them as they are; another text, length or part of it has a folder of its own.
    common.texts(tiny)
    assert folders == {f.name: (f / "text.json").stat().st_mtime_ns for f in (tmp_path / "text").iterdir()}
    launch(length=17)
    assert common.texts(tiny)[0].tokens.shape[1] == 17
    corpus(tmp_path / "c.jsonl", STORIES[:20])
    assert len(common.texts(tiny)[0].documents) == 20
    assert len(list((tmp_path / "text").iterdir())) >= 5


def test_a_large_text_is_kept_in_a_folder_and_a_small_one_is_not(tiny, tmp_path, launch):
    launch(corpus=corpus(tmp_path / "c.jsonl", STORIES), held_out=corpus(tmp_path / "h.jsonl", OTHERS[:3]), length=16)
    common.texts(tiny, folder=tmp_path / "text")
    assert not (tmp_path / "text").exists()
    with open(tmp_path / "c.jsonl", "a") as file:
        file.write("\n" + " " * 2**26)  # a blank line, which costs nothing to cut
    common.texts(tiny, folder=tmp_path / "text")
    assert len(list((tmp_path / "text").iterdir())) == 1
