"""What earlier versions wrote is read, and refused by number where it cannot be gone on with.

tests/data/format_3 was made by the version before format 4: the shipped model over 12 sequences of 9 tokens, with
sinks over 1.02 medians; an autoencoder that was trained on it in 4 steps; and the `run.json` of that run and of the
same over a stream.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import sae
from sae.capturing import activations_at
from sae.evaluation import matching
from sae.store import manifest as manifests
from sae.store import places, verifying
from sae.text import Document, cut
from sae.trainer.identity import Identity

DATA = Path(__file__).parents[1] / "data/format_3"
SITE = "layer_0/resid_post"
LIMITS = {SITE: 23.81916169254791}
RULE = sae.Counted((0, 1, 2), False, sae.Sinks(1.02, (SITE,)))
RUN = sae.short_run(SITE, 8, 4, batch_size=16, l0_target=3.0)


@pytest.fixture(params=[2, 3])
def store(request, tmp_path):
    """The store of format 3, and one of format 2 that is made of it by hand."""
    folder = shutil.copytree(DATA / "store", tmp_path / "store")
    if request.param == 2:
        to_format_2(folder)
    return sae.ActivationStore.open(folder)


def to_format_2(folder):
    """As the version before format 3 wrote it."""
    values = json.loads((folder / "manifest.json").read_text())
    for name in ("checksum", "documents_sha256", "activation_dtype", "left_out", "origin", "parameters_dtype"):
        del values[name]
    values["format"] = 2
    (folder / "manifest.json").write_text(json.dumps(values, indent=2))
    fingerprint = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    for file in folder.glob("segment_*/segment.json"):
        facts = json.loads(file.read_text())
        checksums = {name: value for name, value in facts["checksums"].items() if "zarr.json" not in name}
        kept = {name: facts[name] for name in ("rows", "sinks", "sink_limits", "sites")}
        file.write_text(json.dumps({"manifest": fingerprint, **kept, "checksums": checksums}))


@pytest.fixture(scope="module")
def text(tiny):
    """The text of the store: sequences [12, 9]."""
    documents = [Document(f"d{i}", "s", f"And {i} days went by, and the king said unto him, Go.") for i in range(6)]
    return cut(documents, tiny.tokenizer, 9).take(np.arange(12))


def test_an_old_store_has_the_rows_and_the_rule_that_it_was_written_with(tiny, store, text):
    manifest = store.manifest
    assert manifest.corpus_sha256 == text.fingerprint() and manifest.model_fingerprint is None
    left_out = None if manifest.format == 2 else False
    assert manifest.counted == dataclasses.replace(RULE, left_out=left_out)
    assert store.counted == manifest.counted.with_limits(LIMITS) and (store.rows, store.sinks) == (43, 25)
    assert verifying.damaged(store.place) == {} and verifying.documents(store.place) is None
    x = np.asarray(activations_at(tiny, text.tokens, (SITE,))[SITE])
    for segment, rows in store.segments:
        # A row is its token's activation at its position in one of its document's sequences.
        fields = [store.rows_between(name, segment, 0, rows) for name in ("document", "position", "token")]
        for document, position, token, row in zip(*fields, store.rows_between(SITE, segment, 0, rows), strict=True):
            at = (text.document == document) & (text.tokens[:, position] == token)
            assert np.isclose(x[at, position], row, rtol=2**-7, atol=0.05).all(axis=1).any()


def test_an_old_store_is_not_written_to(tiny, store, text):
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    number = store.manifest.format
    with pytest.raises(ValueError, match=f"has store format {number}, which this version reads and no longer writes"):
        sae.harvest(tiny, text, [SITE], store.path, dtype="bfloat16", counted=RULE, shuffle_rows=6 * 8)
    assert before == {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("field", ["dropped_tokens", "sink_factor", "model_sha256", "seed"])
def test_a_changed_manifest_of_format_2_is_not_the_segments(tmp_path, field):
    """It has no checksum: the fingerprint that its segments carry is over every field."""
    folder = shutil.copytree(DATA / "store", tmp_path / "store")
    to_format_2(folder)
    file = folder / "manifest.json"
    values = json.loads(file.read_text())
    changed = {"dropped_tokens": [0, 1], "sink_factor": 3.0, "model_sha256": "0" * 64, "seed": 1}
    file.write_text(json.dumps(values | {field: changed[field]}))
    with pytest.raises(ValueError, match=r"was not written for this store's manifest\.json"):
        sae.ActivationStore.open(folder)


def test_a_damaged_manifest_of_format_3_is_named(tmp_path):
    folder = shutil.copytree(DATA / "store", tmp_path / "store")
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: its checksum differs"):
        sae.ActivationStore.open(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"counted": {}}))
    with pytest.raises(ValueError, match="has the field 'counted', which this version does not know"):
        sae.ActivationStore.open(folder)


def test_an_autoencoder_of_before_is_measured_by_its_rule_and_on_its_model(tiny, text):
    autoencoder = sae.load(DATA / "autoencoder")
    info = autoencoder.info
    assert info.counted == sae.Counted((0, 1, 2), False, sae.Sinks(limits=LIMITS))
    assert info.record.model_fingerprint is None and info.record.parameters_dtype == "float32"
    norms = np.linalg.norm(np.asarray(activations_at(tiny, text.tokens, (SITE,))[SITE]), axis=-1)
    want = (text.text((0, 1, 2)) & (norms <= LIMITS[SITE])).sum()
    assert sae.evaluate(autoencoder, tiny, text).tokens == want > 0
    # Its hash of the parameters tells a model of the same name from its own.
    other = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf * 1.01, tiny.params))
    with pytest.raises(ValueError, match=f"a gemma2-tiny with parameters {info.record.model_sha256[:12]}…, the model"):
        sae.evaluate(autoencoder, other, text)


def test_one_that_is_trained_on_an_old_store_now_knows_as_much(tiny, store, text):
    (autoencoder,), _ = sae.train(RUN, store)
    before = sae.load(DATA / "autoencoder")
    np.testing.assert_allclose(autoencoder.W_dec, before.W_dec, atol=1e-5)
    assert autoencoder.info.counted == store.counted
    assert autoencoder.info.record.model_sha256 == before.info.record.model_sha256
    matching.check_model(autoencoder.info, tiny)


def test_checkpoints_of_an_old_store_are_those_of_flat_configs_and_refused_by_number(tmp_path):
    """The store is the same as it was; the run is in format 1, before runs were made of parts."""
    run, old = json.loads((DATA / "run_of_store.json").read_text()), sae.ActivationStore.open(DATA / "store")
    assert Identity.of([RUN], old).store == run["store"]
    shutil.copy(DATA / "run_of_store.json", tmp_path / "run.json")
    with pytest.raises(ValueError, match="a run in format 1, and this version goes on with format 3: finish it"):
        sae.train(RUN, old, checkpoint_dir=tmp_path)


def test_checkpoints_of_an_old_stream_are_refused_by_number(tiny, text, tmp_path):
    shutil.copy(DATA / "run_of_stream.json", tmp_path / "run.json")
    stream = sae.stream(tiny, text, [SITE], counted=RULE, shuffle_rows=6 * 8)
    with pytest.raises(ValueError, match=r"a stream of gemma2-tiny .*in store format 3, and .*in format 4: a run"):
        sae.train(RUN, stream, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_current_format_survives_its_file(tiny, text, tmp_path):
    store = sae.harvest(tiny, text, [SITE], tmp_path / "s", counted=RULE)
    read = manifests.read(places.place(tmp_path / "s"))
    assert read == store.manifest and (read.format, read.former, read.counted) == (4, None, RULE)
    values = json.loads((tmp_path / "s" / "manifest.json").read_text())
    sinks = {"factor": 1.02, "sites": [SITE], "limits": None}
    assert values["counted"] == {"special_ids": [0, 1, 2], "left_out": False, "sinks": sinks}
    assert values["model_fingerprint"] == read.model_fingerprint and "former" not in values
