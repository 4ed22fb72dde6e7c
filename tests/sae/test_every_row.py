"""Every row is in every epoch, each epoch has an order of its own, and a step's batch depends on (seed, step) alone."""

import itertools

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sae.store import joining, order
from tests.sae import examples


def values(rows):
    return {"x": np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)}


def take(store, count, *args, **kwargs):
    batches = store.batches(*args, **kwargs)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


# A store smaller than a block; hardly more than a batch; batches in no lanes; segments of unequal length, one in many
# blocks.
@pytest.mark.parametrize(
    ("rows", "batch_size", "segment_rows"),
    [
        (4000, 1024, 10**6),
        (2047, 1024, 10**6),
        (8000, 4096, 10**6),
        (1025, 1024, 400),
        (500, 77, 130),
        (9001, 640, 9000),
    ],
)
def test_every_epoch_has_every_row_in_an_order_of_its_own(tmp_path, rows, batch_size, segment_rows):
    store = examples.make_store(tmp_path / "s", values(rows), segment_rows=segment_rows)
    count, epochs = store.batches_per_pass(batch_size), 8
    tokens = [batch["token"] for batch in take(store, epochs * count, batch_size, ["token"], seed=3)]
    of_epochs = np.asarray(tokens).reshape(epochs, count, batch_size)
    twice = []
    for epoch in of_epochs:
        numbers, times = np.unique(epoch, return_counts=True)
        np.testing.assert_array_equal(numbers, np.arange(rows))
        assert times.max() <= 2 and epoch.size - rows < batch_size
        twice.append(tuple(numbers[times == 2]))
    assert len({tuple(batch) for batch in tokens}) == epochs * count
    if (epoch.size - rows) > 10:
        assert len(set(twice)) == epochs  # no row is favoured


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_sites_stay_with_their_tokens_where_rows_are_shuffled_anew(tmp_path, dtype):
    x = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
    store = examples.make_store(tmp_path / "s", {"x": x, "y": -x}, segment_rows=300, dtype=dtype)
    for batch in take(store, 9, 96, ["x", "token", "y"], seed=1):
        np.testing.assert_array_equal(batch["x"], -batch["y"])
        np.testing.assert_allclose(batch["x"], x[batch["token"]], atol=0.02)


def test_a_reader_that_begins_late_gets_the_same_batches_on_one_device_and_on_eight(tmp_path, meshes):
    store = examples.make_store(tmp_path / "s", values(1500), segment_rows=600)
    count = store.batches_per_pass(256)
    whole = take(store, 3 * count, 256, seed=5)
    split = NamedSharding(meshes(8, 1), PartitionSpec("data"))
    for start in range(0, 3 * count, 2):
        (late,) = take(store, 1, 256, seed=5, start_step=start)
        (placed,) = take(store, 1, 256, seed=5, start_step=start, sharding=split)
        np.testing.assert_array_equal(late["x"], whole[start]["x"])
        np.testing.assert_array_equal(placed["x"], whole[start]["x"])


def test_rows_of_a_block_are_shuffled_in_other_numbers_than_blocks():
    """Zeros at the end of a seed's words count for nothing: the first block's order is not that of the blocks."""
    plan = order.Pass(0, 0, ((0, 64 * 64),), block=64)
    blocks, _ = order._line(plan.segments, plan.block, 7, 2)
    first = order._shuffled(order.Block(0, 0, 64), 7, 2)
    assert [block.start // 64 for block in blocks] != first.tolist()


def pieces_of(*sizes):
    """Pieces of rows numbered on; each is overwritten when the next is asked for."""
    start = 0
    for size in sizes:
        x = np.arange(start, start + size, dtype=np.float64)[:, None] * [1, 10]
        number = np.arange(start, start + size, dtype=np.int32)
        yield {"x": x, "number": number}, np.random.default_rng(size).permutation(size)
        x[:], number[:] = -1, -1
        start += size


@pytest.mark.parametrize("sizes", [(5, 0, 7, 1, 20), (0, 33), (33,), (8, 8, 16), (30, 0, 0, 2)])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 20])
def test_pieces_are_joined_to_batches(sizes, batch_size):
    rows = sum(sizes)
    batches = list(joining.batches_of(pieces_of(*sizes), batch_size, rows))
    assert len(batches) == -(-rows // batch_size)
    assert {batch["x"].dtype for batch in batches} == {np.dtype(np.float32)}
    number = np.concatenate([batch["number"] for batch in batches])
    assert sorted(number[:rows]) == list(range(rows))
    # What fills the last batch up is of the one before it, even after its reader has changed that.
    assert set(number[rows:]) <= set(number[:rows][-2 * batch_size :])
    for batch in batches:
        assert batch["x"].shape == (batch_size, 2)
        np.testing.assert_array_equal(batch["x"], batch["number"][:, None] * [1, 10])


def test_joined_batches_may_be_changed_by_their_reader_and_begin_late():
    sizes, rows = (5, 0, 7, 1, 20), 33
    whole = [batch["number"].copy() for batch in joining.batches_of(pieces_of(*sizes), 8, rows)]
    changed = []
    for batch in joining.batches_of(pieces_of(*sizes), 8, rows):
        changed.append(batch["number"].copy())
        batch["number"][:] = -5
    np.testing.assert_array_equal(whole, changed)
    for first in range(5):
        start = joining.start_of(8, rows, first)
        values, order_of_rows = next(pieces_of(rows))
        late = list(joining.batches_of([(values, order_of_rows[start:])], 8, rows, first))
        want = list(joining.batches_of([next(pieces_of(rows))], 8, rows))[first:]
        np.testing.assert_array_equal([b["number"] for b in late], [b["number"] for b in want])
