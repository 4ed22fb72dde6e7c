"""Stores at paths with any characters: read back, or refused before anything is written."""

import re

import numpy as np
import pytest

import sae
from sae.store import places
from tests.sae import examples

CHARACTERS = [
    "[0]",
    "a]b[",
    "*",
    "a?b",
    "#1",
    "50%",
    "%20",
    "%2F",
    "two words",
    " x ",
    "tab\t",
    "&amp;",
    '"q"',
    "'",
    "é日",
    "+",
    "~",
]


@pytest.mark.parametrize("characters", [*CHARACTERS, "new\nline"])
def test_a_store_in_a_folder_with_any_characters_is_read_back(tmp_path, characters):
    values = {"a": np.arange(20, dtype=np.float32).reshape(10, 2)}
    folder = tmp_path / characters / f"{characters}s"
    store = examples.make_store(folder, values)
    assert (folder / "segment_00000" / "segment.json").exists()  # there, and nowhere else
    assert [path.name for path in tmp_path.iterdir()] == [characters]
    assert store.rows == 10
    np.testing.assert_array_equal(np.sort(store.rows_between("a", 0, 0, 10)[:, 0]), values["a"][:, 0])


@pytest.mark.parametrize("characters", [c for c in CHARACTERS if c.isprintable()])
def test_a_store_in_a_bucket_at_a_path_with_any_characters_is_read_back(bucket, tmp_path, characters):
    values = {"a": np.arange(20, dtype=np.float32).reshape(10, 2)}
    place = places.place(f"{bucket}/{tmp_path.name}/{characters}/s")
    store = examples.make_store(place, values)
    below = places.place(f"{bucket}/{tmp_path.name}").names()
    assert {name.rpartition("/s/")[0] for name in below} == {characters}
    assert store.rows == 10 and store.rows_between("a", 0, 0, 10).shape == (10, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\\b", "a store's path has no backslash"),
        ("a\udcff", "a store's path has no backslash and is valid UTF-8"),
        ("s3://activations/a/../b", "has no part . or .. and no control characters"),
        ("s3://activations/new\nline", "has no part . or .. and no control characters"),
        ("gs://activations/return\r", "has no part . or .. and no control characters"),
        ("s3:///a", "names no bucket"),
    ],
)
def test_a_path_that_would_be_another_is_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        places.place(path)
    (tmp_path / "plain").mkdir()
    assert places.place("plain/../s").spec()["path"] == f"{tmp_path}/s/"


def test_an_autoencoder_in_a_folder_with_any_characters_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (3, 5), "b_enc": (5,), "W_dec": (5, 3), "b_dec": (3,), "threshold": (5,)}
    autoencoder = sae.JumpReLU(**{name: rng.uniform(size=shape).astype(np.float32) for name, shape in shapes.items()})
    for characters in [*CHARACTERS, "new\nline", "back\\slash"]:
        sae.save(autoencoder, tmp_path / characters)
        np.testing.assert_array_equal(sae.load(tmp_path / characters).W_dec, autoencoder.W_dec)
    assert len(list(tmp_path.iterdir())) == len(CHARACTERS) + 2
