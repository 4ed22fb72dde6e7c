"""What a reader of a store gets."""

import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest
import zarr
from jax.sharding import NamedSharding, PartitionSpec

import sae
from sae.store import arrays, order, places, verifying
from sae.store import batches as batches_module
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


@pytest.mark.parametrize("wrong", [{"batch_size": 2.0}, {"batch_size": True}, {"batch_size": 4, "start_step": "1"}])
def test_counts_of_batches_are_whole_numbers(store, wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]} is a whole number, got"):
        store.batches(**wrong)


def take(store, count, *args, **kwargs):
    return list(itertools.islice(store.batches(*args, **kwargs), count))


def test_shards_do_not_stay_in_the_page_cache(values, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(arrays, "SHARD_BYTES", 1 << 13)
    real, names = places.Place.uncache, []
    monkeypatch.setattr(places.Place, "uncache", lambda self, name: (names.append(name), real(self, name)))
    store = examples.make_store(tmp_path / "store", values, segment_rows=3000)
    shards = [name for name in store.place.names() if "/c/" in name]
    forgotten = [re.sub(r"^writers/(segment_\d+)-\w+", r"\1", name) for name in names]
    assert len(shards) > 40 and sorted(forgotten) == sorted(shards)
    assert not verifying.damaged(store)


@pytest.mark.parametrize("batch_size", [1000, 500, 16])
def test_a_pass_has_every_row_once_and_sites_stay_aligned(store, values, batch_size):
    batches = take(store, ROWS // batch_size, batch_size, sites=["layer_0/mlp_out", "b", "token"])
    rows = np.concatenate([batch["token"] for batch in batches])
    assert sorted(rows) == list(range(ROWS))
    for site in values:
        np.testing.assert_array_equal(np.concatenate([batch[site] for batch in batches]), values[site][rows])


def test_position_is_a_function_of_seed_and_step(store, monkeypatch):
    monkeypatch.setattr(batches_module, "READ_BYTES", 3 * 96 * 20)  # three steps a read, so that some begin in one
    whole = take(store, 40, 768, seed=5)
    for start in (1, 13, 26, 39):
        np.testing.assert_array_equal(take(store, 1, 768, seed=5, start_step=start)[0]["b"], whole[start]["b"])
    assert not np.array_equal(whole[0]["b"], take(store, 1, 768, seed=6)[0]["b"])
    assert not np.array_equal(whole[0]["b"], whole[14]["b"])  # 14 batches a pass: another pass, another order


def test_how_much_is_read_at_a_time_changes_nothing(store, monkeypatch):
    whole = take(store, 30, 768, seed=1)
    monkeypatch.setattr(batches_module, "READ_BYTES", 1)
    for a, b in zip(whole, take(store, 30, 768, seed=1), strict=True):
        np.testing.assert_array_equal(a["b"], b["b"])


def test_a_batch_has_rows_of_many_segments(tmp_path):
    rows = 40 * order.BLOCK_ROWS
    store = examples.make_store(
        tmp_path / "s", {"x": np.zeros((rows, 2), np.float32)}, segment_rows=2 * order.BLOCK_ROWS
    )
    segments = [len(set(batch["token"] // (2 * order.BLOCK_ROWS))) for batch in take(store, 40, 4096, sites=["token"])]
    assert np.mean(segments) > 6  # eight lanes; some are in the same segment by chance


def test_statistics_are_those_of_all_rows(store, values):
    x = values["b"].astype(np.float64)
    np.testing.assert_allclose(store.mean("b"), x.mean(axis=0), rtol=1e-10)
    assert store.mean_squared_norm("b") == pytest.approx((x**2).sum(axis=1).mean(), rel=1e-12)
    assert store.rounding("b") == 0.0
    assert store.median_norm("b") == pytest.approx(np.median(np.linalg.norm(x, axis=1)), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_zarr_python_reads_the_same_numbers(values, tmp_path, dtype):
    store = examples.make_store(tmp_path / "s", values, dtype=dtype, segment_rows=3000)
    folder = tmp_path / "s" / "segment_00001"
    theirs = zarr.open_array(folder / "layer_0.mlp_out", mode="r")
    assert theirs.dtype == dtype and theirs.shape == (3000, 5)
    x = theirs[:].astype(np.float32)
    if dtype == "int8":
        x *= zarr.open_array(folder / "layer_0.mlp_out.scale", mode="r")[:][:, None]
    np.testing.assert_array_equal(x, store.rows_between("layer_0/mlp_out", 1, 0, 3000))
    number = zarr.open_array(folder / "token", mode="r")[:]
    np.testing.assert_allclose(x, values["layer_0/mlp_out"][number], atol=0.02)


@pytest.mark.parametrize(("dtype", "off"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_narrow_types_round_each_row(values, tmp_path, dtype, off):
    """bfloat16: relative to each number; int8: half a step of the row's own scale, which is its largest over 127."""
    store = examples.make_store(tmp_path / "s", values, dtype=dtype)
    batch = take(store, 1, 500, sites=["layer_0/mlp_out", "token"])[0]
    x = values["layer_0/mlp_out"][batch["token"]]
    assert batch["layer_0/mlp_out"].dtype == np.float32
    unit = np.abs(x) if dtype == "bfloat16" else np.abs(x).max(axis=1, keepdims=True)
    error = np.abs(batch["layer_0/mlp_out"] - x)
    assert store.rounding("layer_0/mlp_out") == pytest.approx((error**2).sum() / x.var(axis=0).sum() / 500, rel=0.2)
    assert (error <= unit * off * 1.001).all() and error.max() > 0


def test_rows_of_zeros_stay_so_in_int8(tmp_path):
    store = examples.make_store(tmp_path / "s", {"x": np.zeros((50, 4), np.float32)}, dtype="int8")
    np.testing.assert_array_equal(take(store, 1, 50)[0]["x"], np.zeros((50, 4)))


def test_batches_are_placed_on_a_mesh(store, meshes):
    split = NamedSharding(meshes(4, 2), PartitionSpec("data"))
    (placed,) = take(store, 1, 512, sharding=split)
    (plain,) = take(store, 1, 512)
    assert placed["b"].sharding == split
    np.testing.assert_array_equal(placed["b"], plain["b"])


def test_a_process_reads_only_the_lanes_of_its_devices(store, meshes, monkeypatch):
    """As on several machines: half of the devices of the mesh are somebody else's."""
    split = NamedSharding(meshes(8, 1), PartitionSpec("data"))
    own = jax.devices()[2:4]
    whole = type(split).addressable_devices_indices_map
    mine = lambda self, shape: {d: i for d, i in whole(self, shape).items() if d in own}  # noqa: E731
    monkeypatch.setattr(type(split), "addressable_devices_indices_map", mine)
    loader = batches_module._Loader(store, 512, ("b", "token"), 0, split)
    read = loader.next_read([order.Pass(0, 0, store.segments)], 0)
    begun = loader.begin(read)
    assert set(begun) == {2, 3}
    loader._placed = lambda batch: batch
    batch = loader.finish(read, begun)[0]
    np.testing.assert_array_equal(batch["token"].reshape(-1), take(store, 1, 512, sites=["token"])[0]["token"][128:256])


def test_a_growing_store_joins_new_segments_at_the_next_pass(values, tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "READ_BYTES", 1)  # two batches ahead of their use
    examples.make_store(tmp_path / "s", values)  # ten segments of 1,000 rows
    later = tmp_path / "later"
    later.mkdir()
    for index in range(4, 10):
        shutil.move(tmp_path / "s" / f"segment_{index:05d}", later)
    with pytest.raises(ValueError, match=r"is not complete: segment_00004 and 5 more of 10 segments are missing"):
        sae.ActivationStore.open(tmp_path / "s")
    store = sae.ActivationStore.open(tmp_path / "s", growing=True)
    batches = store.batches(500, sites=["token"])
    before = [next(batches)["token"] for _ in range(3)]
    for folder in list(later.iterdir()):
        shutil.move(folder, tmp_path / "s")
    before += [next(batches)["token"] for _ in range(5)]
    assert sorted(np.concatenate(before)) == list(range(4000))  # the pass that had begun
    after = [next(batches)["token"] for _ in range(20)]
    assert sorted(np.concatenate(after)) == list(range(ROWS))
    assert [(p.first_step, p.number, p.rows) for p in batches.passes] == [(0, 0, 4000), (8, 1, ROWS)]
    # A reader that goes on from a checkpoint within the first pass has the same order, though the store has grown.
    again = sae.ActivationStore.open(tmp_path / "s").batches(500, ["token"], start_step=5, passes=batches.passes)
    for expected in (before + after)[5:12]:
        np.testing.assert_array_equal(next(again)["token"], expected)


def test_what_is_not_there_is_named(store, tmp_path):
    with pytest.raises(ValueError, match=r"has no site 'c'; it has layer_0/mlp_out, b"):
        store.batches(10, sites=["c"])
    with pytest.raises(ValueError, match=r"batch_size must be from 1 to the store's 10000 rows, got 10001"):
        store.batches(10_001)
    with pytest.raises(ValueError, match=r"no activation store"):
        sae.ActivationStore.open(tmp_path)
    with pytest.raises(ValueError, match=r"a folder, gs://bucket/folder or s3://bucket/folder; got 'http://x'"):
        sae.ActivationStore.open("http://x")


def test_chunks_and_shards_are_powers_of_two_so_that_runs_are_aligned():
    for row_bytes in (1, 4, 640 * 4, 4608 * 2, 36864 * 4, 1 << 22):
        chunk, shard = arrays.chunk_rows(row_bytes), arrays.shard_rows(row_bytes)
        assert chunk & (chunk - 1) == 0 and shard % chunk == 0
        assert chunk * row_bytes <= max(row_bytes, arrays.CHUNK_BYTES)


def test_zarr_metadata(store):
    metadata = json.loads((store.path / "segment_00000" / "layer_0.mlp_out" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3 and metadata["data_type"] == "float32"
    assert [codec["name"] for codec in metadata["codecs"]] == ["sharding_indexed"]
    assert store.rows_between("b", 1, 5, 9).shape == (4, 3)
    assert places.place(store.place) is store.place


def test_every_block_is_read_once(tmp_path, monkeypatch):
    rows = 10 * order.BLOCK_ROWS + 123
    store = examples.make_store(tmp_path / "s", {"x": np.zeros((rows, 2), np.float32)}, segment_rows=rows)
    monkeypatch.setattr(batches_module, "READ_BYTES", 1)  # so that it stays within the first pass
    read = []
    whole = type(store).read

    def counting(self, name, segment, start, stop):
        read.append((start, stop))
        return whole(self, name, segment, start, stop)

    monkeypatch.setattr(type(store), "read", counting)
    batches = store.batches(256, ["x"])
    for _ in range(store.batches_per_pass(256) // 2):
        next(batches)
    assert len(read) > 4 and all(start % order.BLOCK_ROWS == 0 for start, _ in read)
    # Two lanes may meet within a block; within a lane it is read once.
    assert max(read.count(span) for span in read) <= 2


def test_blocks_are_whole_chunks_of_every_array():
    for width in (1, 5, 640, 4608, 36864):
        for size in (1, 2, 4):
            block = order.block_rows(width)
            assert block % min(block, arrays.chunk_rows(size * width)) == 0 and block <= order.BLOCK_ROWS
