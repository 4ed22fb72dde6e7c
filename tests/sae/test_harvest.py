"""Harvesting the shipped model, to a store and without one."""

import collections
import itertools
import os
import shutil

import jax
import numpy as np
import pytest

import gemma
import mishax_lite
import sae
from sae import filling
from sae.capturing import activations_at
from sae.evaluation.counting import counted_text
from sae.text import Document, cut, is_text

SITES = ["layer_1/attn_z", "layer_0/mlp_out"]


def text_for(tiny, documents=40, length=32, **about):
    texts = [f"In the beginning number {i} was the word. " * (i % 5 + 1) for i in range(documents)]
    return cut([Document(f"d{i}", "s", text) for i, text in enumerate(texts)], tiny.tokenizer, length, **about)


def with_sinks(tiny, factor, sites=()):
    return sae.Counted(tiny.tokenizer.special_ids, sinks=sae.Sinks(factor, sites))


def take(store, count, *args, **kwargs):
    return list(itertools.islice(store.batches(*args, **kwargs), count))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_rows(tiny, sequences, batch, sites):
    """Every 17th row is the model's activation at a token with that id, position and document."""
    text = is_text(sequences.tokens, tiny.tokenizer.special_ids)
    documents = sequences.document_at()
    _, captured = jax.jit(mishax_lite.capture(tiny.apply, sites))(sequences.tokens)
    for site in sites:
        flat = np.asarray(captured[site]).reshape(*sequences.tokens.shape, -1)
        lookup = {}
        for r in range(len(sequences)):
            for t in np.flatnonzero(text[r]):
                lookup.setdefault((sequences.tokens[r, t], t, documents[r, t]), []).append(flat[r, t])
        for i in range(0, len(batch["token"]), 17):
            key = (batch["token"][i], batch["position"][i], batch["document"][i])
            assert min(np.abs(row - batch[site][i]).max() for row in lookup[key]) < 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_harvest_equals_the_model_and_resumes(tiny, tmp_path, packed):
    sequences = text_for(tiny, packed=packed)
    store = sae.harvest(tiny, sequences, SITES, tmp_path / "a", shuffle_rows=12 * 31)
    assert store.manifest.sequences_per_segment == 12 and len(store.segments) > 2
    assert store.rows == is_text(sequences.tokens, tiny.tokenizer.special_ids).sum()
    batch = take(store, 1, store.rows, sites=[*SITES, "token", "position", "document"])[0]
    check_rows(tiny, sequences, batch, SITES)
    # Interrupted: a segment that is missing and one half written are written again, to the same bytes.
    first = files(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "segment_00001")
    (tmp_path / "a" / "segment_00000" / "segment.json").unlink()
    sae.harvest(tiny, sequences, SITES, tmp_path / "a", shuffle_rows=12 * 31)
    assert first == files(tmp_path / "a")


def test_shares_make_one_store(tiny, tmp_path):
    sequences = text_for(tiny)
    sae.harvest(tiny, sequences, SITES, tmp_path / "one", shuffle_rows=310)
    second = sae.harvest(tiny, sequences, SITES, tmp_path / "two", shuffle_rows=310, worker=(1, 2))
    assert second.growing and all(index % 2 for index, _ in second.segments)
    sae.harvest(tiny, sequences, SITES, tmp_path / "two", shuffle_rows=310, worker=(0, 2))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_harvest_on_eight_devices_gives_the_same_rows(tiny, tmp_path, meshes):
    sequences, site = text_for(tiny), "layer_2/resid_post"
    one = sae.harvest(tiny, sequences, [site], tmp_path / "one")
    mesh = meshes(8, 1)
    eight = sae.harvest(gemma.load("gemma2-tiny", mesh=mesh), sequences, [site], tmp_path / "eight", mesh=mesh)
    a, b = (take(s, 1, s.rows, sites=[site, "token"])[0] for s in (one, eight))
    np.testing.assert_array_equal(a["token"], b["token"])
    np.testing.assert_allclose(a[site], b[site], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"not on the mesh's devices: load the model onto the mesh, as gemma.load"):
        sae.harvest(tiny, sequences, [site], tmp_path / "other", mesh=mesh)


def test_sinks_are_left_out_and_counted(tiny, tmp_path):
    sequences, site = text_for(tiny), "layer_2/resid_post"
    plain = sae.harvest(tiny, sequences, [site, SITES[0]], tmp_path / "all")
    x = take(plain, 1, plain.rows, sites=[site])[0][site]
    norms = np.linalg.norm(x, axis=1)
    factor = float(np.sort(norms)[-20:-18].mean() / np.median(norms))  # between two rows' norms
    store = sae.harvest(tiny, sequences, [site, SITES[0]], tmp_path / "some", counted=with_sinks(tiny, factor))
    assert store.manifest.counted.sinks.sites == (site,)  # of the residual stream; attn_z is not asked
    assert store.sinks == (norms > factor * np.median(norms)).sum() > 10
    assert store.rows == plain.rows - store.sinks
    kept = take(store, 1, store.rows, sites=[site])[0][site]
    assert np.linalg.norm(kept, axis=1).max() <= factor * np.median(norms)
    assert store.mean_squared_norm(site) == pytest.approx((kept.astype(np.float64) ** 2).sum(1).mean(), rel=1e-6)
    # The rule is recorded with an autoencoder, and evaluation goes by it.
    (autoencoder,), _ = sae.train(sae.short_run(site, 64, 2, batch_size=64, l0_target=5.0), store)
    limits = dict(autoencoder.info.counted.sink_limits)
    assert limits == store.sink_limits() == {site: pytest.approx(factor * np.sqrt(np.median(np.square(norms))))}
    assert limits[site] > factor * np.median(np.linalg.norm(kept, axis=1))
    metrics = sae.evaluate(autoencoder, tiny, sequences)
    text = counted_text(autoencoder.info, tiny, sequences)
    captured = activations_at(tiny, jax.numpy.asarray(text.tokens), text.rule.sink_sites)
    counted = text.mask(0, len(text.tokens), captured)
    assert plain.rows > store.rows == metrics.tokens == counted.sum()
    with pytest.raises(ValueError, match="the sites of sinks have 'layer_3/resid_post', which is not harvested"):
        sae.harvest(tiny, sequences, [site], tmp_path / "x", counted=with_sinks(tiny, 2.0, ["layer_3/resid_post"]))


def test_what_is_left_out_of_the_text_is_not_harvested(tiny, tmp_path):
    sequences = text_for(tiny)
    left_out = np.zeros(sequences.tokens.shape, bool)
    left_out[:, :20] = True
    left_out[:10] = True  # nothing left of a whole segment, perhaps
    some = type(sequences)(sequences.tokens, sequences.document, sequences.offset, sequences.documents, left_out)
    store = sae.harvest(tiny, some, SITES[:1], tmp_path / "s", shuffle_rows=31)
    assert store.rows == some.text(tiny.tokenizer.special_ids).sum()
    assert (0, 0) in {(0, rows) for _, rows in store.segments}  # segments without a row are there, and empty
    batch = take(store, 1, store.rows, sites=["position"])[0]
    assert batch["position"].min() >= 20
    assert np.isfinite(store.mean_squared_norm(SITES[0]))


def test_rows_are_as_well_shuffled_as_a_true_shuffles(tiny, tmp_path):
    """The share of neighbouring rows from one document, against permutations of all rows."""
    sequences = text_for(tiny, documents=200)
    store = sae.harvest(tiny, sequences, SITES[1:], tmp_path / "s", shuffle_rows=64 * 31)
    assert len(store.segments) >= 4
    count = store.batches_per_pass(256)
    documents = np.concatenate([batch["document"] for batch in take(store, count, 256, sites=["document"])])
    share = (documents[1:] == documents[:-1]).mean()
    rng = np.random.default_rng(0)
    true = [(p[1:] == p[:-1]).mean() for p in (rng.permutation(documents) for _ in range(200))]
    # Within a segment of n sequences, neighbours are of one sequence with probability 1/n.
    assert share < np.mean(true) + 6 * np.std(true) + 1 / 64, (share, np.mean(true))
    in_order = np.sort(documents)
    assert (in_order[1:] == in_order[:-1]).mean() > 0.9  # what an unshuffled store would have
    print(f"neighbours of one document: {share:.4f}, a true shuffle's {np.mean(true):.4f} ± {np.std(true):.4f}")


def test_memory_decides_how_much_is_shuffled(tiny):
    shapes = {"a": (64,), "b": (4, 16)}
    assert filling.sequences_in(4 * 2 * 4 * 128 * 31 * 10, 10**9, 32, shapes) == 10
    assert filling.sequences_in(2**30, 10**9, 32, shapes) == 5 * 2**27 // (2 * 4 * 128 * 31) // 16 * 16
    assert filling.sequences_in(10**9, 100, 32, shapes) == 4
    with pytest.raises(
        ValueError, match=r"no room for one sequence: 31 rows of 512 bytes, 2 times, .* Give at least 126,976 bytes"
    ):
        filling.sequences_in(1000, 100, 32, shapes)


def test_unknown_sites_offer_the_nearest(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"no site 'layer_1/resid_pots'.*did you mean layer_1/resid_post"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/resid_pots"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"it has layer_0/resid_post to layer_5/resid_post"):
        sae.harvest(tiny, text_for(tiny), ["layer_6/resid_post"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"every pair of tokens"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/attn_pattern"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"worker is \(index, count\) with an index from 0 to count - 1, got \(2, 2\)"):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "s", worker=(2, 2))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**32}, r"a harvest's seed is from 0 to 4294967295, .*; got 4294967296"),
        ({"seed": -1}, r"a harvest's seed is from 0 to"),
        ({"seed": 1.5}, r"seed is a whole number, got 1\.5"),
        ({"seed": True}, r"seed is a whole number, got True"),
        ({"shuffle_rows": 1e6}, r"shuffle_rows is a whole number, got 1000000\.0"),
        ({"worker": (0.0, 1)}, r"worker is a whole number, got 0\.0"),
        ({"silent_seconds": 0}, r"silent_seconds is above 0, got 0"),
        ({"dtype": "float64"}, r"a store's dtype is one of"),
        ({"counted": 4.0}, r"`counted` is a sae.Counted, or None for the default; got 4.0"),
        ({"counted": sae.Counted((0,), left_out=True)}, r"are those of a text that leaves tokens out .*`counted=`"),
        ({"counted": sae.Counted((0,), sinks=sae.Sinks(limits={SITES[0]: 9.0}))}, r"limits of another harvest's sinks"),
    ],
)
def test_nothing_is_written_before_all_arguments_are_checked(tiny, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "a" / "s", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_harvest_that_does_not_fit_the_disk_leaves_no_folder(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"has 0\.00 GB free"):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "a" / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_store_below_a_file_or_in_a_read_only_folder_is_refused(tiny, tmp_path, monkeypatch):
    (tmp_path / "f").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"/f is a file, so .*/f/s cannot be a store"):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "f" / "s")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for any user but root
    with pytest.raises(PermissionError, match=r"nothing can be written to .*, so .* cannot be a store"):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_numpy_numbers_are_plain_ones(tiny, tmp_path):
    sequences = text_for(tiny)
    numbers = {
        "seed": np.uint32(2**32 - 1),
        "shuffle_rows": np.int64(12 * 31),
        "counted": with_sinks(tiny, np.float32(4.0)),
    }
    store = sae.harvest(tiny, sequences, SITES, tmp_path / "a", worker=(np.int64(0), np.int64(1)), **numbers)
    plain = {"seed": 2**32 - 1, "shuffle_rows": 12 * 31, "counted": with_sinks(tiny, 4.0)}
    sae.harvest(tiny, sequences, SITES, tmp_path / "b", **plain)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert store.manifest.seed == 2**32 - 1


def test_a_stream_gives_what_the_model_computes(tiny):
    sequences = text_for(tiny)
    stream = sae.stream(tiny, sequences, SITES, shuffle_rows=12 * 31)
    per_pass = stream.batches_per_pass(64)
    batches = take(stream, per_pass, 64, sites=[*SITES, "token", "position", "document"])
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    check_rows(tiny, sequences, whole, SITES)
    # Every row once, but for what fills up the last batch.
    keep = sequences.text(tiny.tokenizer.special_ids)
    fields = (sequences.document_at(), np.indices(keep.shape)[1], sequences.tokens)
    want = collections.Counter(zip(*(field[keep].tolist() for field in fields), strict=True))
    names = ("document", "position", "token")
    got = collections.Counter(zip(*(whole[name].tolist() for name in names), strict=True))
    assert set(got) == set(want) and (got - want).total() == per_pass * 64 - stream.rows < 64
    store_like = sae.stream(tiny, sequences, SITES, counted=with_sinks(tiny, 1.2, SITES[:1]), shuffle_rows=12 * 31)
    norms = np.linalg.norm(take(store_like, 1, 64)[0][SITES[0]], axis=1)
    assert norms.max() < np.linalg.norm(whole[SITES[0]], axis=1).max()
    assert store_like.mean_squared_norm(SITES[0]) < stream.mean_squared_norm(SITES[0])


def test_a_place_in_a_stream_is_a_function_of_seed_and_step(tiny):
    stream = sae.stream(tiny, text_for(tiny), SITES[1:], shuffle_rows=12 * 31)
    per_pass = stream.batches_per_pass(64)
    whole = take(stream, 2 * per_pass, 64, sites=[SITES[1], "token"])
    for start in (1, per_pass - 2, per_pass - 1, per_pass, per_pass + 2, 2 * per_pass - 1):
        (batch,) = take(stream, 1, 64, sites=["token"], start_step=start)
        np.testing.assert_array_equal(batch["token"], whole[start]["token"])
    assert not np.array_equal(whole[0]["token"], whole[per_pass]["token"])
    assert not np.array_equal(whole[0]["token"], take(stream, 1, 64, sites=["token"], seed=1)[0]["token"])
    with pytest.raises(ValueError, match=r"batch_size must be from 1 to the stream's \d+ rows, got 5000"):
        stream.batches(5000)


def test_an_epoch_of_a_stream_has_every_row_that_is_no_sink(tiny, tmp_path):
    """One segment, so that the median is that of the store."""
    sinks = {"counted": with_sinks(tiny, 1.2, SITES[:1])}
    store = sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "s", **sinks)
    stream = sae.stream(tiny, text_for(tiny), SITES, **sinks)
    assert store.sinks > 20
    names = ["document", "position", "token"]

    def identities(source, epoch):
        count = source.batches_per_pass(64)
        batches = take(source, count, 64, sites=names, start_step=epoch * count)
        return {row for batch in batches for row in zip(*(batch[name].tolist() for name in names), strict=True)}

    assert identities(store, 0) == identities(stream, 0) == identities(stream, 3)


def test_training_from_a_stream(tiny, tmp_path):
    stream = sae.stream(tiny, text_for(tiny), SITES[1:], shuffle_rows=12 * 31)
    config = sae.short_run(SITES[1], 32, 12, batch_size=64, l0_target=4.0)
    (whole,), history = sae.train(config, stream)
    assert history[-1]["loss"] < history[0]["loss"]
    (again,), _ = sae.train(config, stream, checkpoint_dir=tmp_path / "c", save_every=5)
    np.testing.assert_array_equal(whole.W_dec, again.W_dec)
