import errno
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts

import gemma
import mishax_lite
import sae
from sae.store import arrays, writing
from sae.text import Document, cut, is_text
from tests.sae import examples

ROWS = 10_000


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    return {
        "layer_0/mlp_out": rng.normal(size=(ROWS, 5)).astype(np.float32),
        "b": rng.normal(size=(ROWS, 3)).astype("f4"),
    }


@pytest.fixture(scope="module")
def store(values, tmp_path_factory):
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", values, segment_rows=3000)


def take(store, count, *args, **kwargs):
    return list(itertools.islice(store.batches(*args, **kwargs), count))


def test_a_pass_has_every_row_once_and_sites_stay_aligned(store, values):
    batches = take(store, 10, 1000, sites=["layer_0/mlp_out", "b", "token"])
    rows = np.concatenate([batch["token"] for batch in batches])
    assert sorted(rows) == list(range(ROWS))
    for site in values:
        np.testing.assert_array_equal(np.concatenate([batch[site] for batch in batches]), values[site][rows])


def test_position_is_a_function_of_seed_and_step(store):
    whole = take(store, 40, 768, seed=5)
    for start in (1, 13, 26, 39):
        np.testing.assert_array_equal(take(store, 1, 768, seed=5, start_step=start)[0]["b"], whole[start]["b"])
    assert not np.array_equal(whole[0]["b"], take(store, 1, 768, seed=6)[0]["b"])
    assert not np.array_equal(whole[0]["b"], whole[13]["b"])  # 13 batches a pass: another pass, another order


def test_statistics_are_those_of_all_rows(store, values):
    x = values["b"].astype(np.float64)
    np.testing.assert_allclose(store.mean("b"), x.mean(axis=0), rtol=1e-10)
    assert store.mean_squared_norm("b") == pytest.approx((x**2).sum(axis=1).mean(), rel=1e-12)


def test_any_zarr_v3_reader_could_open_it(store):
    metadata = json.loads((store.path / "segment_00000" / "layer_0.mlp_out" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3 and metadata["data_type"] == "float32"
    assert [codec["name"] for codec in metadata["codecs"]] == ["sharding_indexed"]


def test_bfloat16(values, tmp_path):
    store = examples.make_store(tmp_path / "s", values, dtype="bfloat16")
    batch = take(store, 1, 500, sites=["b", "token"])[0]
    assert batch["b"].dtype == np.float32
    np.testing.assert_allclose(batch["b"], values["b"][batch["token"]], rtol=2**-8)


def test_a_flipped_byte_is_found(values, tmp_path):
    store = examples.make_store(tmp_path / "s", values)
    file = max((tmp_path / "s" / "segment_00002" / "b").rglob("*"), key=lambda p: p.stat().st_size)
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"segment_00002/b/(.|\n)*Digest mismatch"):
        take(store, 10, 1000)


def test_what_is_not_there_is_named(store, values, tmp_path):
    with pytest.raises(ValueError, match=r"has no site 'c'; it has layer_0/mlp_out, b"):
        store.batches(10, sites=["c"])
    with pytest.raises(ValueError, match=r"batch_size must be from 1 to the store's 10000 rows, got 10001"):
        store.batches(10_001)
    with pytest.raises(ValueError, match=r"no activation store"):
        sae.ActivationStore.open(tmp_path)
    examples.make_store(tmp_path / "s", values)
    shutil.rmtree(tmp_path / "s" / "segment_00004")
    with pytest.raises(ValueError, match=r"segment_00004 of 10 segments is missing; run the harvest again"):
        sae.ActivationStore.open(tmp_path / "s")


def test_another_models_store_is_refused_and_kept(values, tmp_path):
    examples.make_store(tmp_path / "s", values)
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*"))
    with pytest.raises(ValueError, match=r"model: the store has made-up, asked for other(.|\n)*Nothing was changed"):
        examples.make_store(tmp_path / "s", values, model="other")
    assert before == sorted(p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*"))


def test_a_full_disk_keeps_what_is_finished(values, tmp_path, monkeypatch):
    written = itertools.count()
    whole = arrays.write

    def fails_in_the_third_segment(folder, array):
        if next(written) == 2 * 5 + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(folder, array)

    monkeypatch.setattr(arrays, "write", fails_in_the_third_segment)
    with pytest.raises(OSError, match=r"segment_00002 failed \(the disk is full\); the segments before it are kept"):
        examples.make_store(tmp_path / "s", values)
    assert sorted(p.name for p in (tmp_path / "s").glob("segment*")) == ["segment_00000", "segment_00001"]
    assert examples.make_store(tmp_path / "s", values).rows == ROWS


def test_too_small_a_disk_is_refused_before_work(store, monkeypatch):
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"needs up to 0\.\d+ GB and .* has 0\.00 GB free"):
        writing.check_space(store.path, store.manifest, 4, ROWS)


def text_for(tiny):
    documents = [Document(f"d{i}", "s", f"In the beginning number {i} was the word. " * (i % 5 + 1)) for i in range(40)]
    return cut(documents, tiny.tokenizer, 32)


def test_harvest_equals_the_model_and_resumes(tiny, tmp_path):
    sequences = text_for(tiny)
    sites = ["layer_1/attn_z", "layer_0/mlp_out"]
    store = sae.harvest(tiny, sequences, sites, tmp_path / "a", sequences_per_segment=24)
    text = is_text(sequences.tokens, tiny.tokenizer.special_ids)
    assert store.rows == text.sum()
    batch = take(store, 1, store.rows, sites=[*sites, "token", "position", "document"])[0]
    _, captured = jax.jit(mishax_lite.capture(tiny.apply, sites))(sequences.tokens)
    for site in sites:
        flat = np.asarray(captured[site]).reshape(*sequences.tokens.shape, -1)
        lookup = {}
        for r in range(len(sequences)):
            for t in np.flatnonzero(text[r]):
                lookup.setdefault((sequences.tokens[r, t], t, sequences.document[r]), []).append(flat[r, t])
        for i in range(0, store.rows, 17):
            key = (batch["token"][i], batch["position"][i], batch["document"][i])
            assert min(np.abs(row - batch[site][i]).max() for row in lookup[key]) < 1e-5
    # Interrupted: a segment that is missing and one half written are written again, to the same bytes.
    first = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    shutil.rmtree(tmp_path / "a" / "segment_00001")
    (tmp_path / "a" / "segment_00001.partial").mkdir()
    sae.harvest(tiny, sequences, sites, tmp_path / "a", sequences_per_segment=24)
    assert first == {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}


def test_harvest_on_eight_devices_gives_the_same_rows(tiny, tmp_path, meshes):
    sequences, site = text_for(tiny), "layer_2/resid_post"
    one = sae.harvest(tiny, sequences, [site], tmp_path / "one")
    mesh = meshes(8, 1)
    eight = sae.harvest(gemma.load("gemma2-tiny", mesh=mesh), sequences, [site], tmp_path / "eight", mesh=mesh)
    a, b = (take(s, 1, s.rows, sites=[site, "token"])[0] for s in (one, eight))
    np.testing.assert_array_equal(a["token"], b["token"])
    np.testing.assert_allclose(a[site], b[site], atol=1e-4, rtol=1e-4)


def test_unknown_sites_offer_the_nearest(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"no site 'layer_1/resid_pots'.*did you mean layer_1/resid_post"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/resid_pots"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"has 6 layers, 0 to 5"):
        sae.harvest(tiny, text_for(tiny), ["layer_6/resid_post"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"every pair of tokens"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/attn_pattern"], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_tensorstore_reads_a_row_range(store):
    assert isinstance(arrays.open_array(store.path / "segment_00000" / "token"), ts.TensorStore)
    assert store.rows_between("b", 1, 5, 9).shape == (4, 3)
