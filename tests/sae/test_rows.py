"""`sae.rows`: one's own activations as a source."""

import doctest
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.progress import silent
from sae.store import given, row_checks
from tests.sae.letters import Letters

SITE = "layer_1/resid"


def drawn(count=1000, dim=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def epoch(source, size, seed=0, sites=None):
    return list(itertools.islice(source.batches(size, sites, seed), source.batches_per_pass(size)))


def test_each_row_is_in_every_epoch_and_sites_are_aligned():
    x = drawn(9000)  # three blocks
    source = sae.rows({"a": x, "b": 2 * x})
    batches = epoch(source, 100)
    seen = np.concatenate([batch["a"] for batch in batches])
    np.testing.assert_array_equal(np.sort(seen[:, 0]), np.sort(x[:, 0]))
    assert (seen[:, 0] != x[:, 0]).mean() > 0.9  # shuffled
    for batch in batches:
        np.testing.assert_array_equal(batch["b"], 2 * batch["a"])


def test_a_batch_is_a_function_of_seed_and_step():
    source = sae.rows({"a": drawn()})
    whole = list(itertools.islice(source.batches(64, seed=3), 40))  # more than two epochs
    late = next(source.batches(64, seed=3, start_step=37))
    np.testing.assert_array_equal(late["a"], whole[37]["a"])
    assert (next(source.batches(64, seed=4))["a"] != whole[0]["a"]).any()


def test_statistics_are_those_of_numpy():
    x = drawn() + 3
    source = sae.rows({"a": x})
    np.testing.assert_allclose(source.mean("a"), np.float64(x).mean(axis=0))
    norms = np.linalg.norm(np.float64(x), axis=1)
    np.testing.assert_allclose(source.mean_squared_norm("a"), (norms**2).mean())
    np.testing.assert_allclose(source.median_norm("a"), np.median(norms))


def test_statistics_of_many_rows_are_over_some_that_are_evenly_spread(monkeypatch):
    monkeypatch.setattr(given, "STATISTICS", 100)
    x = np.arange(10_000, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    assert sae.rows({"a": x}).mean("a")[0] == pytest.approx(x[:, 0].mean(), rel=0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_heads_and_memory_maps_are_read(tmp_path, dtype):
    x = np.asarray(jnp.asarray(drawn().reshape(1000, 4, 4), dtype if dtype != "float64" else "float32"))
    x = x.astype(dtype) if dtype == "float64" else x
    source = sae.rows({"a": x})
    assert source.width("a") == 16 and source.manifest.sites["a"] == (4, 4)
    seen = np.concatenate([batch["a"] for batch in epoch(source, 100)])
    assert seen.dtype == np.float32 and seen.shape == (1000, 16)
    np.testing.assert_array_equal(np.sort(seen[:, 5]), np.sort(x.reshape(1000, 16)[:, 5].astype(np.float32)))
    if dtype == "float16":
        np.save(tmp_path / "x.npy", x)
        file = np.load(tmp_path / "x.npy", mmap_mode="r")
        mapped = sae.rows({"a": file})
        assert np.shares_memory(mapped.arrays["a"], file)  # nothing was read into memory
        assert mapped.manifest == source.manifest
        np.testing.assert_array_equal(next(mapped.batches(9))["a"], next(source.batches(9))["a"])


def test_other_rows_are_another_source():
    x = drawn()
    other = x.copy()
    other[500, 3] += 1
    assert sae.rows({"a": x}).manifest.fingerprint() == sae.rows({"a": x.copy()}).manifest.fingerprint()
    assert sae.rows({"a": x}).manifest.fingerprint() != sae.rows({"a": other}).manifest.fingerprint()


def test_a_change_of_any_row_is_another_source(monkeypatch):
    """Also of one that the statistics leave out, within a row, and of signs alone."""
    monkeypatch.setattr(given, "STATISTICS", 100)
    x = drawn(3000)
    before = sae.rows({"a": x}).manifest.fingerprint()
    for change in (
        lambda y: y.__setitem__((1234, 7), y[1234, 7] + 1),
        lambda y: y.__setitem__(1234, y[1234, ::-1].copy()),
        lambda y: y.__setitem__([1234, 1235], y[[1235, 1234]]),
        lambda y: y.__setitem__(1234, -y[1234]),
    ):
        change(y := x.copy())
        assert sae.rows({"a": y}).manifest.fingerprint() != before


@pytest.mark.parametrize("kind", ["in memory", "memory map"])
def test_rows_that_change_while_they_are_read_are_an_error(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(given, "STATISTICS", 100)
    x = drawn()
    if kind == "memory map":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r+")
    source = sae.rows({"b": drawn(), "a": x})
    epoch(source, 100)
    x[777, 3] += 1
    message = "row 777 at a has changed since sae.rows read it: give arrays that are not written to"
    with pytest.raises(ValueError, match=message):
        epoch(source, 100, seed=1)
    epoch(source, 100, sites=["b"])
    source.mean("b")
    x *= -1
    with pytest.raises(ValueError, match="row 0 at a has changed"):
        source.mean("a")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dim", [4, 6, 7, 16])
def test_the_check_of_a_row_sees_every_change(dtype, dim):
    x = np.asarray(jnp.asarray(drawn(500, dim))).astype(dtype)
    checks = row_checks.of(x, silent, "rows")
    assert len(set(checks.tolist())) == 500
    np.testing.assert_array_equal(row_checks.of_piece(x[::3]), checks[::3])
    swapped, one = x.copy(), x.copy()
    swapped[:, [0, -1]] = x[:, [-1, 0]]
    one.view(np.uint8)[np.arange(500), np.arange(500) % one.view(np.uint8).shape[1]] ^= 128
    for other in (-x, swapped, one, np.roll(x, 1, axis=1), x * x.dtype.type(2)):
        differs = (np.ascontiguousarray(other).view(np.uint8) != x.view(np.uint8)).any(axis=1)
        assert differs.sum() > 450  # two numbers of a row may be the same, in few bits
        np.testing.assert_array_equal(row_checks.of_piece(other) != checks, differs)


def test_sites_of_several_dtypes_record_one_that_holds_all():
    x = drawn()
    half, brain = x.astype(np.float16), np.asarray(jnp.asarray(x, jnp.bfloat16))
    for arrays, dtype in (
        ({"a": brain, "b": brain}, "bfloat16"),
        ({"a": brain, "b": x}, "float32"),
        ({"a": x, "b": brain}, "float32"),
        ({"a": half, "b": brain}, "float32"),
        ({"a": x.astype(">f4")}, "float32"),
    ):
        assert sae.rows(arrays).manifest.activation_dtype == dtype


def small_model():
    return sae.AdaptedModel(
        name="small", params=jnp.ones((4, 16)), tokenizer=Letters(), vocab_size=31, layers=2,
        kinds=(sae.SiteKind("resid", (16,), writes=True), sae.SiteKind("z", (4, 4))),
        forward=lambda params, tokens: None, readout=lambda params, x: x, direct=lambda params, x: x,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # a few steps are no run
def test_training_on_rows_records_the_model_and_goes_on_from_a_checkpoint(tmp_path, one_device):
    model, x = small_model(), drawn()
    run = sae.short_run(SITE, 32, 6, batch_size=64, l0_target=4)
    source = sae.rows({SITE: x}, model=model)
    result = sae.train(run, source, one_device, checkpoint_dir=tmp_path, save_every=3)
    info = result.autoencoder.info
    assert (info.model, info.site, info.shape) == ("small", SITE, (16,))
    assert info.record.model_fingerprint == model.fingerprint and info.counted == sae.Counted(Letters.special_ids)
    again = sae.train(run, sae.rows({SITE: x.copy()}, model=model), one_device, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(again.autoencoder.W_dec, result.autoencoder.W_dec)
    with pytest.raises(ValueError, match="another run"):
        sae.train(run, sae.rows({SITE: x + 1}, model=model), one_device, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sae.rows(drawn()), "takes a dict {site: array [rows, A]}, got an array float32 [1000, 16]"),
        (lambda: sae.rows({}), "takes a dict"),
        (lambda: sae.rows({"a": drawn(9), "b": drawn(8)}), "same rows in the same order, got 9 at a, 8 at b"),
        (
            lambda: sae.rows({"a": np.ones((3, 4), int)}),
            "the rows at a are floats [rows, A] (or [rows, N, H]), got an array int64 [3, 4]",
        ),
        (lambda: sae.rows({"a": np.ones(3)}), "give each token's activation a row"),
        (lambda: sae.rows({"a": np.full((3, 4), np.nan)}).mean("a"), "some activations at a are not finite"),
        (lambda: next(sae.rows({"a": np.full((3, 4), 1e300)}).batches(2)), "at a is not finite in float32"),
        (lambda: sae.rows({"a": drawn().reshape(10, 25, 4, 16)}), "[rows, A] (or [rows, N, H]), got an array float32"),
        (lambda: sae.rows({"a": np.ones((3, 4), "V2")}), "for a file of bfloat16 give array.view"),
        (lambda: sae.rows({"a": np.ma.masked_array(drawn())}), "the rows at a are a masked array"),
        (lambda: sae.rows({"a": drawn()}).batches(1001), "batch_size must be from 1 to the 1000 rows given"),
        (lambda: sae.rows({"a": drawn()}).batches(10, ["b"]), "has no site 'b'; it has a"),
        (lambda: sae.rows({"a": drawn()}).batches(10, ["token"]), "have no token"),
        (lambda: sae.rows({SITE: drawn(dim=8)}, model=small_model()), "of small is [16], the rows given are [8]"),
        (lambda: sae.rows({"layer_3/resid": drawn()}, model=small_model()), "no site 'layer_3/resid' in small"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_examples_run():
    for module in (given, row_checks):
        result = doctest.testmod(module, extraglobs={"sae": sae, "np": np, "silent": silent})
        assert result.attempted and not result.failed
