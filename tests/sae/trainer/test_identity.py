"""A folder of checkpoints knows its run: configs, source, text, model and order of the batches. Nothing is trained."""

import dataclasses
import json
import os

import numpy as np
import pytest

import sae
from sae.store.source import Source
from sae.trainer import checkpoints
from sae.trainer.checkpoints import Checkpoints
from sae.trainer.identity import Identity
from tests.sae import examples

CONFIG = sae.short_run("x", 64, 20, l0_target=4.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return examples.make_store(tmp_path_factory.mktemp("stores") / "a", {"x": np.ones((20, 4), np.float32)})


def stream_of(store, **changes):
    """A stream of what a store holds, as far as a checkpoint looks at it."""

    class Stream(Source):
        kind, batch_order, name, rows = "stream", 1, "the stream", store.rows
        manifest = dataclasses.replace(store.manifest, **changes)
        mean_squared_norm = mean = median_norm = sink_limits = batches = batches_per_pass = None

    return Stream()


def begun(folder, source, config=CONFIG):
    """A folder that a run has begun."""
    Identity.of([config], source).write(folder)
    return folder


def refused(folder, source, config=CONFIG):
    """Why a run may not go on in a folder, of which nothing changes."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as refusal:
        Checkpoints(folder, [config], source, 10)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert str(refusal.value).endswith("Name another folder, or delete this one. Nothing was changed.")
    return str(refusal.value)


def test_begun_on_a_stream_and_resumed_on_a_store_or_the_other_way(store, tmp_path):
    stream = stream_of(store)
    said = refused(begun(tmp_path / "stream", stream), store)
    assert "begun on a stream of made-up (0) over text 0, and this call reads the store /" in said
    assert 'source.kind is "stream" there, "store" asked for' in said
    said = refused(begun(tmp_path / "store", store), stream)
    assert (
        f"begun on the store {store.name} of made-up (0) over text 0, and this call reads a stream of made-up" in said
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus_sha256": "123456789"}, "over text 12345678"),
        ({"model": "another", "model_fingerprint": "abcdefghi"}, "of another (abcdefgh)"),
        ({"seed": 7}, "store.seed is 7 there, 0 asked for"),
        ({"sequences_per_segment": 5}, "store.sequences_per_segment is 5 there, 1000 asked for"),
    ],
)
def test_another_text_model_or_order_is_refused_by_name(store, tmp_path, changes, words):
    said = refused(begun(tmp_path / "c", stream_of(store, **changes)), stream_of(store))
    assert words in said and "over text 0" in said


def test_another_order_of_the_batches_is_refused(store, tmp_path, monkeypatch):
    begun(tmp_path / "c", store)
    monkeypatch.setattr(type(store), "batch_order", store.batch_order + 1)
    assert f"source.batch_order is {store.batch_order - 1} there" in refused(tmp_path / "c", store)


def test_a_store_may_be_moved(store, tmp_path):
    begun(tmp_path / "c", store)
    (tmp_path / "moved").symlink_to(store.path)
    moved = sae.ActivationStore.open(tmp_path / "moved")
    assert moved.name != store.name
    Checkpoints(tmp_path / "c", [CONFIG], moved, 10)


def test_another_config_is_refused_by_its_field(store, tmp_path):
    said = refused(begun(tmp_path / "c", store), store, dataclasses.replace(CONFIG, width=32))
    assert "checkpoint of another run: runs[0].width is 64 there, 32 asked for." in said


def test_checkpoints_whose_run_is_not_known_are_refused(store, tmp_path):
    (tmp_path / "lost" / "10").mkdir(parents=True)
    assert "holds checkpoints without the run.json" in refused(tmp_path / "lost", store)
    old = json.loads((begun(tmp_path / "old", store) / "run.json").read_text())
    del old["source"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(old))
    assert "of an older version, which does not say whether a store or a stream was read" in refused(
        tmp_path / "old", store
    )


def test_a_run_of_flat_configs_is_refused_by_the_number_of_its_format(store, tmp_path):
    """As versions before runs of parts have written it."""
    there = json.loads((begun(tmp_path / "c", store) / "run.json").read_text())
    del there["format"], there["runs"]
    (tmp_path / "c" / "run.json").write_text(json.dumps({"configs": [{"site": "x", "width": 64}], **there}))
    said = refused(tmp_path / "c", store)
    assert "a run in format 1, and this version goes on with format 3: finish it with the version that began it" in said


def test_a_step_of_another_run_is_refused(store, tmp_path):
    identity = Identity.of([CONFIG], store)
    identity.check_step(tmp_path / "c" / "10", identity.fingerprint())
    other = Identity.of([dataclasses.replace(CONFIG, seed=1)], store)
    with pytest.raises(ValueError, match=r"c/10 is of another run than .*c/run.json says: .* Delete it"):
        identity.check_step(tmp_path / "c" / "10", other.fingerprint())


def test_a_folder_that_cannot_be_written_is_refused_before_anything(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the checkpoints cannot go to .*file/c: .*file is no folder"):
        Checkpoints(tmp_path / "file" / "c", [CONFIG], store, 10)
    with pytest.raises(ValueError, match="checkpoints go to a folder"):
        Checkpoints("gs://bucket/c", [CONFIG], store, 10)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"the checkpoints cannot go to .*/c: .* cannot be written to. Name another"):
        Checkpoints(tmp_path / "c", [CONFIG], store, 10)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("sweep[lr=3e-3]", r"cannot be found again in a folder with \[ in its path"),
        ("a\\b", r"cannot be found again in a folder with \\ in its path"),
        ("a?", r"cannot be found again in a folder with \? in its path"),
        ("**", r"cannot be found again in a folder with \* in its path"),
        ("caf\udce9", r"a folder whose path is UTF-8, got '.*caf\\udce9'"),
        *((name, None) for name in ("a]b", "a b", "50%", "#1", "{x}", "o'p\"q", "é字", "~t", "a\nb")),
    ],
)
def test_folders_in_which_checkpoints_are_not_found_again_are_refused(store, tmp_path, name, refusal):
    folder = tmp_path / "in" / name  # the name of `tmp_path` is pytest's
    if refusal is None:
        Checkpoints(folder, [CONFIG], store, 10)
        return
    with pytest.raises(ValueError, match=refusal):
        Checkpoints(folder, [CONFIG], store, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "there", "needed"), [(20, 0, 3), (200, 2, 1), (5, 0, 2), (5, 1, 1), (1, 0, 1), (1, 1, 0)]
)
def test_room_for_the_checkpoints_is_looked_for_before_the_first_step(
    store, tmp_path, monkeypatch, steps, there, needed
):
    """The last, the best and the one that is being written, every 10 steps; less what is there."""
    begun(tmp_path / "c", store, dataclasses.replace(CONFIG, steps=steps))
    for step in range(there):
        (tmp_path / "c" / str(step)).mkdir()
    run = Checkpoints(tmp_path / "c", [dataclasses.replace(CONFIG, steps=steps)], store, 10)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: needed * 10**6)
    run.check_space(10**6)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: max(0, needed * 10**6 - 1))
    if needed:
        with pytest.raises(OSError, match=rf"the disk is full: a checkpoint of 1 MB goes to .*, up to {needed} more"):
            run.check_space(10**6)
    else:
        run.check_space(10**6)
