"""Harvesting the shipped model, to a store and without one."""

import itertools
import shutil

import jax
import numpy as np
import pytest

import gemma
import mishax_lite
import sae
from sae import filling
from sae.evaluation.counting import counted, sinks_of
from sae.text import Document, cut, is_text

SITES = ["layer_1/attn_z", "layer_0/mlp_out"]


def text_for(tiny, documents=40, length=32, **about):
    texts = [f"In the beginning number {i} was the word. " * (i % 5 + 1) for i in range(documents)]
    return cut([Document(f"d{i}", "s", text) for i, text in enumerate(texts)], tiny.tokenizer, length, **about)


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
    second = sae.harvest(tiny, sequences, SITES, tmp_path / "two", shuffle_rows=310, share=(1, 2))
    assert second.growing and all(index % 2 for index, _ in second.segments)
    sae.harvest(tiny, sequences, SITES, tmp_path / "two", shuffle_rows=310, share=(0, 2))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_harvest_on_eight_devices_gives_the_same_rows(tiny, tmp_path, meshes):
    sequences, site = text_for(tiny), "layer_2/resid_post"
    one = sae.harvest(tiny, sequences, [site], tmp_path / "one")
    mesh = meshes(8, 1)
    eight = sae.harvest(gemma.load("gemma2-tiny", mesh=mesh), sequences, [site], tmp_path / "eight", mesh=mesh)
    a, b = (take(s, 1, s.rows, sites=[site, "token"])[0] for s in (one, eight))
    np.testing.assert_array_equal(a["token"], b["token"])
    np.testing.assert_allclose(a[site], b[site], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"not on the mesh's devices: gemma.load\(…, mesh=mesh\)"):
        sae.harvest(tiny, sequences, [site], tmp_path / "other", mesh=mesh)


def test_sinks_are_left_out_and_counted(tiny, tmp_path):
    sequences, site = text_for(tiny), "layer_2/resid_post"
    plain = sae.harvest(tiny, sequences, [site, SITES[0]], tmp_path / "all")
    x = take(plain, 1, plain.rows, sites=[site])[0][site]
    norms = np.linalg.norm(x, axis=1)
    factor = float(np.sort(norms)[-20:-18].mean() / np.median(norms))  # between two rows' norms
    store = sae.harvest(tiny, sequences, [site, SITES[0]], tmp_path / "some", sink_factor=factor)
    assert store.manifest.sink_sites == (site,)  # of the residual stream; attn_z is not asked
    assert store.sinks == (norms > factor * np.median(norms)).sum() > 10
    assert store.rows == plain.rows - store.sinks
    kept = take(store, 1, store.rows, sites=[site])[0][site]
    assert np.linalg.norm(kept, axis=1).max() <= factor * np.median(norms)
    assert store.mean_squared_norm(site) == pytest.approx((kept.astype(np.float64) ** 2).sum(1).mean(), rel=1e-6)
    # The rule is recorded with an autoencoder, and evaluation goes by it.
    (autoencoder,), _ = sae.train(sae.short_run(site, 64, 2, batch_size=64, l0_target=5.0), store)
    sinks = sinks_of(autoencoder.info)
    assert dict(sinks) == {site: pytest.approx(factor * np.median(kept_norms(kept)), rel=0.02)}
    metrics = sae.evaluate(autoencoder, tiny, sequences.tokens)
    assert plain.rows > metrics.tokens == counted(tiny, sequences.tokens, sinks).sum()
    with pytest.raises(ValueError, match="sink_sites has 'layer_3/resid_post', which is not harvested"):
        sae.harvest(tiny, sequences, [site], tmp_path / "x", sink_factor=2.0, sink_sites=["layer_3/resid_post"])


def kept_norms(x):
    return np.linalg.norm(x, axis=1)


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
        ValueError, match=r"no room for one sequence: 31 rows of 512 bytes, 2 times, .* Give 126,976 bytes"
    ):
        filling.sequences_in(1000, 100, 32, shapes)


def test_unknown_sites_offer_the_nearest(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"no site 'layer_1/resid_pots'.*did you mean layer_1/resid_post"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/resid_pots"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"has 6 layers, 0 to 5"):
        sae.harvest(tiny, text_for(tiny), ["layer_6/resid_post"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"every pair of tokens"):
        sae.harvest(tiny, text_for(tiny), ["layer_1/attn_pattern"], tmp_path / "s")
    with pytest.raises(ValueError, match=r"share is \(which, of how many\)"):
        sae.harvest(tiny, text_for(tiny), SITES, tmp_path / "s", share=(2, 2))
    assert not (tmp_path / "s").exists()


def test_a_stream_gives_what_the_model_computes(tiny):
    sequences = text_for(tiny)
    stream = sae.stream(tiny, sequences, SITES, shuffle_rows=12 * 31)
    per_pass = stream.batches_per_pass(64)
    batches = take(stream, per_pass, 64, sites=[*SITES, "token", "position", "document"])
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    check_rows(tiny, sequences, whole, SITES)
    identities = set(zip(whole["document"], whole["position"], whole["token"], strict=True))
    assert len(identities) > 0.7 * len(whole["token"])  # little comes twice
    store_like = sae.stream(tiny, sequences, SITES, sink_factor=1.2, sink_sites=SITES[:1], shuffle_rows=12 * 31)
    norms = np.linalg.norm(take(store_like, 1, 64)[0][SITES[0]], axis=1)
    assert norms.max() < np.linalg.norm(whole[SITES[0]], axis=1).max()
    assert store_like.mean_squared_norm(SITES[0]) < stream.mean_squared_norm(SITES[0])


def test_a_place_in_a_stream_is_a_function_of_seed_and_step(tiny):
    stream = sae.stream(tiny, text_for(tiny), SITES[1:], shuffle_rows=12 * 31)
    per_pass = stream.batches_per_pass(64)
    whole = take(stream, 2 * per_pass, 64, sites=[SITES[1], "token"])
    for start in (1, per_pass - 1, per_pass + 2):
        (batch,) = take(stream, 1, 64, sites=["token"], start_step=start)
        np.testing.assert_array_equal(batch["token"], whole[start]["token"])
    assert not np.array_equal(whole[0]["token"], whole[per_pass]["token"])
    assert not np.array_equal(whole[0]["token"], take(stream, 1, 64, sites=["token"], seed=1)[0]["token"])
    with pytest.raises(ValueError, match=r"batch_size must be from 1 to a segment's \d+ rows, got 5000"):
        stream.batches(5000)


def test_training_from_a_stream(tiny, tmp_path):
    stream = sae.stream(tiny, text_for(tiny), SITES[1:], shuffle_rows=12 * 31)
    config = sae.short_run(SITES[1], 32, 12, batch_size=64, l0_target=4.0)
    (whole,), history = sae.train(config, stream)
    assert history[-1]["loss"] < history[0]["loss"]
    (again,), _ = sae.train(config, stream, checkpoint_dir=tmp_path / "c", save_every=5)
    np.testing.assert_array_equal(whole.W_dec, again.W_dec)
