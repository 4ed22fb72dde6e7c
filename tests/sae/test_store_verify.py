"""Every byte and number of a store is covered: changed on purpose, each is named."""

import json
import re
import shutil

import numpy as np
import pytest

import sae
from sae.store import manifest as manifests
from sae.store import places, sealing, verifying
from tests.sae import examples

ROWS, SITE = 3000, "a/b"
FACTS = "segment_00001/segment.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    return examples.make_store(tmp_path_factory.mktemp("verify") / "s", {SITE: x}, dtype="int8")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole.path, tmp_path / "s")


def edit(file, **changes):
    values = json.loads(file.read_text())
    for name, value in changes.items():
        values[name] = value(values[name]) if callable(value) else value
    file.write_text(json.dumps(values))


def resealed(file, **changes):
    """As a tool would change it that writes a right checksum too."""
    edit(file, **changes)
    values = json.loads(file.read_text())
    del values["checksum"]
    file.write_bytes(sealing.seal(values))


def statistics(name, value):
    return lambda sites: {SITE: sites[SITE] | {name: value}}


def problems(folder):
    """What --verify says."""
    place = places.place(folder)
    return [*(p for found in verifying.damaged(place).values() for p in found), verifying.documents(place)]


CHECKSUM = "its checksum differs, so something in it was changed"
OPENING = {
    "segment_copied_over": (
        lambda f: (shutil.rmtree(f / "segment_00001"), shutil.copytree(f / "segment_00000", f / "segment_00001")),
        "segment_00001 is a copy of segment 0",
    ),
    "segment_copied_behind": (
        lambda f: shutil.copytree(f / "segment_00000", f / "segment_00009"),
        "segment_00009 is none of this store's 3 segments",
    ),
    "statistics": (lambda f: edit(f / FACTS, sites=statistics("mean_squared_norm", 1e6)), CHECKSUM),
    "mean": (lambda f: edit(f / FACTS, sites=statistics("mean", [0.0, 0.0, 0.0])), CHECKSUM),
    "rows": (lambda f: edit(f / FACTS, rows=999), CHECKSUM),
    "sinks": (lambda f: edit(f / FACTS, sinks=1), CHECKSUM),
    "checksums_taken_out": (lambda f: edit(f / FACTS, checksums={}), CHECKSUM),
    "checksum_taken_out": (lambda f: edit(f / FACTS, checksum="0"), CHECKSUM),
    "one_digit": (
        lambda f: (f / FACTS).write_bytes((f / FACTS).read_bytes().replace(b'"rows": 1000', b'"rows": 1001')),
        CHECKSUM,
    ),
    "list": (lambda f: (f / FACTS).write_text("[]"), "segment.json is damaged: it holds a list"),
    "unknown_field": (
        lambda f: resealed(f / FACTS, note=1),
        "segment.json has the field 'note', which",
    ),
    "unknown_statistic": (lambda f: resealed(f / FACTS, sites=statistics("skew", 1)), "a/b, has the field 'skew'"),
    "missing_checksums": (lambda f: resealed(f / FACTS, checksums={}), "it has no checksum of a.b"),
    "missing_scale": (
        lambda f: resealed(f / FACTS, checksums=lambda c: {k: v for k, v in c.items() if k != "a.b.scale"}),
        "it has no checksum of a.b.scale",
    ),
    "words_for_rows": (lambda f: resealed(f / FACTS, rows="many"), "'rows' is \"many\""),
    "short_mean": (lambda f: resealed(f / FACTS, sites=statistics("mean", [0.0])), "a/b's mean has 1 numbers"),
    "manifest_field": (
        lambda f: edit(f / "manifest.json", note=1),
        "manifest.json has the field 'note', which this",
    ),
    "manifest_number": (
        lambda f: resealed(f / "manifest.json", sequences=2999),
        "not written for this store's manifest",
    ),
    "manifest_changed": (lambda f: edit(f / "manifest.json", sequences=2999), CHECKSUM),
    "manifest_list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged: it holds a list"),
    "manifest_words": (lambda f: edit(f / "manifest.json", seed="x"), "manifest.json is damaged: 'seed' is \"x\""),
    "manifest_shape": (lambda f: edit(f / "manifest.json", sites={SITE: 3}), "manifest.json is damaged: "),
    "manifest_format": (
        lambda f: edit(f / "manifest.json", format=5),
        "has store format 5; this version reads 2, 3 and 4",
    ),
}


@pytest.mark.parametrize("case", OPENING)
def test_a_changed_record_is_named_when_the_store_is_opened(folder, case):
    change, message = OPENING[case]
    change(folder)
    with pytest.raises(ValueError, match=message):
        sae.ActivationStore.open(folder)
    if not case.startswith("manifest") or case == "manifest_number":
        assert any(message in (problem or "") for problem in problems(folder))


VERIFYING = {
    "documents_of_another": (
        lambda f: (f / "documents.json").write_text('[["x", "y"]]'),
        "documents.json does not belong",
    ),
    "documents_missing": (lambda f: (f / "documents.json").unlink(), "documents.json is missing"),
    "metadata": (
        lambda f: edit(f / "segment_00001/a.b/zarr.json", attributes={"note": 1}),
        "segment_00001/a.b/zarr.json: its checksum differs from the recorded",
    ),
    "array_missing": (lambda f: shutil.rmtree(f / "segment_00001/token"), "segment_00001/token: "),
    "file_added": (
        lambda f: (f / "segment_00001/a.b/c/7").write_bytes(b"x"),
        "segment_00001/a.b/c/7 is no part of the segment",
    ),
    "array_added": (
        lambda f: shutil.copytree(f / "segment_00001/token", f / "segment_00001/more"),
        "segment_00001/more/.* is no part of the segment",
    ),
    "arrays_exchanged": (
        lambda f: (
            (f / "segment_00001/token").rename(f / "t"),
            (f / "segment_00001/position").rename(f / "segment_00001/token"),
            (f / "t").rename(f / "segment_00001/position"),
        ),
        "segment_00001/token: its checksum is",
    ),
}


@pytest.mark.parametrize("case", VERIFYING)
def test_a_changed_file_is_named_by_verify(folder, case):
    change, message = VERIFYING[case]
    assert problems(folder) == [None]
    change(folder)
    assert any(re.search(message, problem or "") for problem in problems(folder)), problems(folder)


def test_every_byte_is_covered(folder):
    """One bit of every file, and of JSON several."""
    rng = np.random.default_rng(0)
    segment = sorted(path for path in (folder / "segment_00001").rglob("*") if path.is_file())
    for file in [*segment, folder / "documents.json"]:
        before = file.read_bytes()
        for _ in range(20 if file.suffix == ".json" else 3):
            changed = bytearray(before)
            changed[int(rng.integers(len(before)))] ^= 1 << int(rng.integers(7))
            file.write_bytes(changed)
            assert problems(folder) != [None], file
        file.write_bytes(before)
    assert problems(folder) == [None]


def test_every_byte_of_the_manifest_is_covered(folder):
    file, rng = folder / "manifest.json", np.random.default_rng(0)
    before = file.read_bytes()
    for _ in range(60):
        changed = bytearray(before)
        changed[int(rng.integers(len(before)))] ^= 1 << int(rng.integers(7))
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"manifest\.json|store format"):
            sae.ActivationStore.open(folder)


def test_documents_of_another_store_are_refused_where_they_are_read_and_written_again(folder):
    VERIFYING["documents_of_another"][0](folder)
    store = sae.ActivationStore.open(folder)
    with pytest.raises(ValueError, match=r"documents.json does not belong to manifest.json"):
        _ = store.documents
    manifests.write(store.place, store.manifest, examples.DOCUMENTS)
    assert sae.ActivationStore.open(folder).documents == list(examples.DOCUMENTS)
