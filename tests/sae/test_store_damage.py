"""Damage to a store, on disk and in a bucket: found, named, and nothing good lost."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import sae
from sae.store import arrays, claims, places, verifying, writing
from sae.store.codec import codec
from tests.sae import examples

ROWS = 10_000


@pytest.fixture(scope="module")
def values():
    return {"a/b": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}


def read_all(store):
    return list(itertools.islice(store.batches(1000, ["a/b", "token"]), ROWS // 1000))


def contents(place):
    return {name: place.read(name) for name in place.names()}


def shard(place, index):
    return next(name for name in place.names(f"segment_{index:05d}/") if "/a.b/c/" in name)


def flip(place):
    name = shard(place, 2)
    damaged = bytearray(place.read(name))
    damaged[100] ^= 1
    place.write(name, bytes(damaged))


def cut_short(place):
    name = shard(place, 2)
    place.write(name, place.read(name)[:-50])


def lose(place):
    name = shard(place, 2)
    assert place.replace(name, place.read(name), None)


@pytest.mark.parametrize("damage", [flip, cut_short, lose])
def test_a_damaged_shard_is_named_by_the_reader_and_by_verify(values, where, damage):
    store = examples.make_store(where("s"), values)
    assert verifying.damaged(store) == {}
    damage(store.place)
    store = sae.ActivationStore.open(store.place)
    with pytest.raises(ValueError, match=r"s/segment_00002 is damaged, in rows \d+ to \d+"):
        read_all(store)
    found = verifying.damaged(store)
    assert list(found) == [2] and "a.b" in found[2][0]
    # What is good is as it was; the damaged segment is written again.
    before = contents(store.place)
    verifying.discard(store, found)
    store = examples.make_store(where("s"), values)
    assert verifying.damaged(store) == {}
    assert sorted(np.concatenate([batch["token"] for batch in read_all(store)])) == list(range(ROWS))
    after = contents(store.place)
    assert {name for name in after if after[name] != before.get(name)} <= {shard(store.place, 2)}


def test_numbers_changed_with_their_checksums_are_found_by_verify(values, where):
    """As a bug of a tool would: the chunk's own checksum is right, the one in segment.json is not."""
    store = examples.make_store(where("s"), values)
    writer = arrays.Writer(store.place, store.array_folder("a/b", 3), 1000, (3,), np.dtype("f4"))
    writer.write(np.ones((1000, 3), np.float32))
    writer.close()
    found = verifying.damaged(store)
    assert list(found) == [3] and "checksum" in found[3][0]


def test_damaged_records_are_named(values, where):
    store = examples.make_store(where("s"), values)
    store.place.write("segment_00001/segment.json", b'{"rows": 1')
    with pytest.raises(ValueError, match=r"segment_00001/segment.json is damaged: it is not JSON"):
        sae.ActivationStore.open(store.place)


def test_a_missing_segment_is_named_and_written_again(values, where):
    store = examples.make_store(where("s"), values)
    before = contents(store.place)
    store.place.remove("segment_00004")
    with pytest.raises(ValueError, match=r"segment_00004 of 10 segments is missing. Run the harvest again"):
        sae.ActivationStore.open(store.place)
    examples.make_store(store.place, values)
    assert contents(store.place) == before


def test_another_dtype_than_the_manifests_is_named(values, where):
    store = examples.make_store(where("s"), values)
    folder = store.array_folder("a/b", 0)
    store.place.remove(folder)
    writer = arrays.Writer(store.place, folder, 1000, (3,), codec("bfloat16").dtype)
    writer.write(np.zeros((1000, 3), codec("bfloat16").dtype))
    writer.close()
    with pytest.raises(ValueError, match=r"segment_00000/.*a.b holds bfloat16, while manifest.json says float32"):
        read_all(sae.ActivationStore.open(store.place))


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"dtype": "bfloat16"}, {"seed": 1}, {"counted": sae.Counted((0, 1))}]
)
def test_a_store_of_something_else_is_refused_and_kept(values, where, change):
    place = examples.make_store(where("s"), values).place
    before = contents(place)
    ((name, asked),) = change.items()
    with pytest.raises(
        ValueError, match=rf"{name}: the store has .*, asked for {re.escape(str(asked))}(.|\n)*Nothing was changed"
    ):
        examples.make_store(where("s"), values, **change)
    assert contents(place) == before


def test_a_full_disk_keeps_what_is_finished(values, where, monkeypatch):
    written = itertools.count()
    whole = arrays.Writer.write

    def fails_in_the_third_segment(self, rows):
        if next(written) == 2 * 4 + 1:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28: ENOSPC No space left on device]")
        whole(self, rows)

    monkeypatch.setattr(arrays.Writer, "write", fails_in_the_third_segment)
    with pytest.raises(OSError, match=r"segment_00002 failed \(the disk is full\). The segments before it are kept"):
        examples.make_store(where("s"), values)
    names = {name.partition("/")[0] for name in where("s").names()}
    if where("s").folder is None:  # another writer may have written it too: the next attempt overwrites it
        names -= {"segment_00002"}
    assert names == {"manifest.json", "documents.json", "segment_00000", "segment_00001"}
    assert examples.make_store(where("s"), values).rows == ROWS


def test_too_small_a_disk_is_refused_before_work(values, tmp_path, monkeypatch):
    store = examples.make_store(tmp_path / "s", values)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"needs up to 0\.\d+ GB and .* has 0\.00 GB free"):
        writing.check_space(store.place, store.manifest, 4, ROWS)


def test_activations_that_are_not_finite_are_refused(values, where):
    bad = values["a/b"].copy()
    bad[3500, 1] = np.nan
    with pytest.raises(ValueError, match=r"a/b in segment_00003 has activations that are infinite or not numbers"):
        examples.make_store(where("s"), {"a/b": bad})


def test_a_second_writer_is_refused_and_the_first_finishes(values, where):
    place = where("s")
    first = claims.claim(place, 0)
    with pytest.raises(OSError, match=rf"segment_00000 is being written by process {os.getpid()} on .*two launches"):
        claims.claim(place, 0)
    first.renew()
    first.release()
    claims.claim(place, 0).release()
    assert place.names("writers/") == []


def test_the_segment_of_a_writer_that_is_gone_is_taken_over(where):
    place = where("s")
    code = f"from sae.store import claims, places; claims.claim(places.place({place.url!r}), 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert len(place.names("writers/")) == 1
    claims.claim(place, 0).release()


def test_a_segment_that_another_writer_has_committed_meanwhile_is_not_begun_again(values, where):
    store = examples.make_store(where("s"), values)
    before = contents(store.place)
    with pytest.raises(OSError, match="segment_00000 was written by another writer just now: two launches"):
        claims.claim(store.place, 0)
    assert contents(store.place) == before


def test_a_writer_that_lost_its_claim_removes_nothing(values, where, monkeypatch):
    store = examples.make_store(where("s"), values)
    place = store.place
    verifying.discard(store, [3])
    late = claims.claim(place, 3)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    claims.claim(place, 3, silent_seconds=0)  # takes it over
    before = contents(place)

    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(writing, "_write_all", full)
    rows = {"token": np.arange(3), "position": np.arange(3), "document": np.arange(3)}
    with pytest.raises(OSError, match="the disk is full"):
        writing.write_segment(place, late, {"a/b": values["a/b"][:3]}, rows, store.manifest)
    assert contents(place) == before


@pytest.mark.parametrize("write", ["write", "create", "replace"])
def test_a_file_begun_by_a_killed_writer_adds_nothing_to_the_next(tmp_path, write):
    place = places.place(tmp_path)
    if write == "replace":
        place.write("writers/0.json", "old")
    tmp_path.joinpath("writers").mkdir(exist_ok=True)
    tmp_path.joinpath("writers/0.json.__lock").write_text("longer than what follows")
    arguments = ("old",) if write == "replace" else ()
    getattr(place, write)("writers/0.json", *(x.encode() for x in arguments), "short")
    assert place.read("writers/0.json") == b"short"
    assert place.names() == ["writers/0.json"]


def test_two_writers_of_one_segment_commit_it_once(values, where, monkeypatch):
    store = examples.make_store(where("s"), values)
    facts = json.loads(store.place.read("segment_00000/segment.json"))
    assert not store.place.create("segment_00000/segment.json", "{}")
    assert json.loads(store.place.read("segment_00000/segment.json")) == facts
