"""Paths with `~`, and buckets through `etils.epath`: here fsspec's `gs`, which shows a folder of this machine."""

import os

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem

import gemma
from gemma.checkpoints import places
from tests.gemma import ggufs, small
from tests.gemma.refusing import refused


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The folder behind gs://mine; what is read there goes through epath and fsspec, as with gcsfs. epath keeps the
    file system that it was given first."""
    root = tmp_path_factory.mktemp("buckets")
    (root / "mine").mkdir()

    class Buckets(DirFileSystem):
        protocol = ("gs", "gcs")

        def __init__(self, **_):
            super().__init__(path=str(root), target_protocol="file", skip_instance_cache=True)

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("gs://").rstrip("/")

    for name in Buckets.protocol:
        fsspec.register_implementation(name, Buckets, clobber=True)
    return root / "mine"


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_a_home_is_found_and_saved_to(format, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = small.model()
    gemma.save(model, "~/models/m", format)
    assert (tmp_path / "models" / "m" / "config.json").exists() and not os.path.exists("~")
    same(gemma.load("~/models/m"), model)
    refused("~nobody-of-this-name/m", "begins with the home of a user that this machine does not have")


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_safetensors_of_a_bucket(bucket, tiny, shard_bytes):
    model = small.model(vocab_size=4096)
    model = gemma.Model(model.params, model.config, tiny.tokenizer)
    name = f"m{shard_bytes}"
    gemma.save(model, bucket / name, "huggingface", shard_bytes=shard_bytes)
    for source in (f"gs://mine/{name}", places.path(f"gs://mine/{name}")):
        loaded = gemma.load(source)
        same(loaded, model)
        assert loaded.tokenizer == tiny.tokenizer


def test_a_path_of_pathlib_that_lost_a_slash():
    assert str(places.path("gs:/mine/m")) == str(places.path("gs://mine/m")) == "gs://mine/m"
    assert not places.in_bucket(places.path("gs/mine"))


def test_what_is_not_there_or_not_read_from_a_bucket(bucket, golden_3):
    refused("gs://mine/nothing", "gs://mine/nothing has no file or folder that can be seen")
    (bucket / "empty").mkdir()
    (bucket / "empty" / "notes.txt").write_text("no model")
    refused("gs://mine/empty", "has no weights")
    ggufs.write(bucket / "m.gguf", golden_3[0])
    refused("gs://mine/m.gguf", "is a GGUF file in a bucket, where it cannot be read: copy it to this machine")


def test_without_the_package_for_buckets():
    """s3fs is not among the test's packages."""
    refused("s3://mine/m", "reading s3://mine/m needs another package", "s3fs")
