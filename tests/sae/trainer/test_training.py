import dataclasses
import json

import jax
import numpy as np
import pytest

import sae
from sae.inputs import Units
from sae.trainer.checkpoints import Checkpoints, Saved
from sae.trainer.sweeps import Sweep
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(6000, features=256, dimensions=64)
    y = np.tanh(x[:, :40])
    sites = {"x": x, "y": y, "w": np.roll(x, 3, axis=1)}
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", sites, segment_rows=2000)


ONE = Units(np.zeros(64, np.float32), np.float32(1))


class Stop(Exception):
    pass


def interrupted(step):
    """A progress bar that raises at a step."""

    def progress(steps, **_):
        for s in steps:
            if s == step:
                raise Stop
            yield s

    return progress


def config(site="x", **changes):
    return sae.short_run(site, 64, **{"steps": 30, "l0_target": 4.0, "batch_size": 128, **changes})


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without_number(records):
    return [{k: v for k, v in record.items() if k != "run"} for record in records]


@pytest.mark.slow
def test_side_by_side_is_the_same_as_alone(small):
    runs = [
        config(),
        config(l0_target=8.0, seed=3, learning_rate=1e-3),
        config("y"),
        config(l0_target=None, coefficient=0.01),
        dataclasses.replace(config(), width=96),
        config(site_out="y", skip=True),
        config(("x", "w")),
    ]
    together, history = sae.train(runs, small)
    for number, (run, autoencoder) in enumerate(zip(runs, together, strict=True)):
        (alone,), own = sae.train(run, small)
        assert_same(autoencoder, alone)
        assert without_number(own) == without_number(r for r in history if r["run"] == number)
    assert [r["site"] for r in history[:7]] == ["x", "x", "y", "x", "x", "x", "x+w"]
    assert not np.array_equal(together[0].W_enc, together[1].W_enc)
    assert isinstance(together[6], sae.Crosscoder) and together[6].info.site == ("x", "w")
    assert together[5].W_skip.shape == (64, 40) and together[5].info.site_out == "y"


@pytest.mark.slow
@pytest.mark.parametrize("together", ["vmapped", "scanned"])
def test_stacked_is_the_same_as_side_by_side(small, together, tmp_path):
    runs = [config(), config("y"), config(l0_target=8.0, seed=3), config(learning_rate=1e-3)]
    one, history = sae.train(runs, small)
    other, other_history = sae.train(runs, small, together=together, checkpoint_dir=tmp_path / "c", save_every=10)
    for a, b in zip(history, other_history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["l0"] == pytest.approx(b["l0"], rel=1e-5)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3 * np.abs(x).max())
    # Each ends in a checkpoint of its own, whichever way it was trained.
    assert {p.name for p in (tmp_path / "c" / "30").glob("run_*")} == {f"run_{i}" for i in range(4)}


def test_reading_is_done_once_for_all(small, monkeypatch):
    """The bytes that a sweep reads are those of one run."""
    read = []
    original = sae.ActivationStore.read

    def counted(self, name, segment, start, stop):
        read.append((stop - start) * (4 if name in ("token", "position", "document") else 4 * self.width(name)))
        return original(self, name, segment, start, stop)

    monkeypatch.setattr(sae.ActivationStore, "read", counted)
    sae.train(config(), small)
    one = sum(read)
    read.clear()
    sae.train([config(l0_target=float(n)) for n in range(1, 9)], small)
    assert sum(read) == one > 0


@pytest.mark.slow
def test_a_stopped_run_ends_where_an_unbroken_one_does(small, tmp_path):
    unbroken, history = sae.train([config(), config("y")], small)

    for step in (7, 19, 26):
        with pytest.raises(Stop):
            sae.train(
                [config(), config("y")], small, checkpoint_dir=tmp_path / "c", save_every=5, progress=interrupted(step)
            )
    resumed, resumed_history = sae.train([config(), config("y")], small, checkpoint_dir=tmp_path / "c", save_every=5)
    assert_same(unbroken, resumed)
    assert history == resumed_history
    # Finished: the same again, with no step made.
    seen = []
    again, _ = sae.train(
        [config(), config("y")], small, checkpoint_dir=tmp_path / "c", progress=lambda s, **_: seen.extend(s) or s
    )
    assert_same(unbroken, again)
    assert seen == []


def test_a_run_over_few_rows_is_stopped_in_any_epoch(tmp_path):
    """Three steps an epoch, the last of which is filled up; stopped within an epoch and at its end."""
    x, _, _ = known_dictionary(300, features=256, dimensions=64)
    store = examples.make_store(tmp_path / "s", {"x": x})
    unbroken, history = sae.train(config(), store, log_every=1)
    for step in (8, 16):
        with pytest.raises(Stop):
            sae.train(config(), store, checkpoint_dir=tmp_path / "c", save_every=4, progress=interrupted(step))
    resumed, resumed_history = sae.train(config(), store, checkpoint_dir=tmp_path / "c", log_every=1)
    assert_same(unbroken, resumed)
    assert history[-1] == resumed_history[-1]


def test_meshes_agree(small, meshes):
    # With this seed no pre-activation comes within rounding of its threshold; where one does, a latent is on for one
    # mesh and off for another, and the losses part by 1e-3 for some steps (seed 0, step 21).
    run = config(seed=1)
    (one,), history = sae.train(run, small, mesh=meshes(1, 1))
    for data, latent in ((8, 1), (2, 4), (1, 8)):
        (other,), other_history = sae.train(run, small, mesh=meshes(data, latent))
        for a, b in zip(history, other_history, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert np.linalg.norm(np.asarray(x) - np.asarray(y)) < 1e-3 * np.linalg.norm(x)


def test_a_store_that_has_grown_does_not_change_a_runs_units(tmp_path, one_device):
    x, _, _ = known_dictionary(4000, features=256, dimensions=64)
    x[2000:] *= 3.0  # what comes later is of another size
    examples.make_store(tmp_path / "s", {"x": x}, segment_rows=1000)
    (tmp_path / "later").mkdir()
    for index in (2, 3):
        (tmp_path / "s" / f"segment_{index:05d}").rename(tmp_path / "later" / f"segment_{index:05d}")
    growing = sae.ActivationStore.open(tmp_path / "s", growing=True)
    run = config(steps=40)  # 16 steps in a pass over the first half
    (first,), _ = sae.train(config(steps=2), growing, one_device)
    with pytest.raises(Stop):
        sae.train(run, growing, one_device, checkpoint_dir=tmp_path / "c", save_every=5, progress=interrupted(12))
    for folder in (tmp_path / "later").iterdir():
        folder.rename(tmp_path / "s" / folder.name)
    whole = sae.ActivationStore.open(tmp_path / "s")
    (resumed,), history = sae.train(run, whole, one_device, checkpoint_dir=tmp_path / "c")
    scale = json.loads(first.info.training)["scale"]
    assert json.loads(resumed.info.training)["scale"] == scale
    assert scale["x"] < 0.6 * np.sqrt(whole.mean_squared_norm("x"))
    # The new segments, nine times the variance in these units, come in with the next pass.
    assert history[-1]["reconstruction"] > 1.5


def test_it_goes_on_on_another_mesh(small, meshes, tmp_path):
    (whole,), history = sae.train(config(seed=1), small, mesh=meshes(1, 1))
    stop = interrupted(13)
    with pytest.raises(Stop):
        sae.train(config(seed=1), small, mesh=meshes(8, 1), checkpoint_dir=tmp_path / "c", save_every=5, progress=stop)
    (resumed,), other = sae.train(config(seed=1), small, mesh=meshes(2, 4), checkpoint_dir=tmp_path / "c")
    for a, b in zip(history, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.linalg.norm(np.asarray(x) - np.asarray(y)) < 1e-3 * np.linalg.norm(x)


def test_states_are_made_where_they_lie(small, meshes):
    sweep = Sweep([config()], [{"x": ONE}], {"x": 64}, meshes(2, 4))
    sweep.begin()
    (state,) = sweep.states()
    for array in (state.params.W_enc, state.params.W_dec, state.optimizer[1].nu.W_dec, state.params.threshold):
        assert {shard.data.size * 4 for shard in array.addressable_shards} == {array.size}
    assert {shard.data.shape for shard in state.silent.addressable_shards} == {(16,)}


def state_of(run, mesh):
    """The state with which a run begins."""
    sweep = Sweep([run], [{"x": ONE}], {"x": 64}, mesh)
    sweep.begin()
    return sweep.states()[0]


def saved(fvu, l0=4.0, before=20):
    """What a checkpoint holds whose last record has an FVU; the record before it is of a step."""
    records = [{"run": 0, "step": step, "fvu": fvu, "l0": l0} for step in (before, before + 5)]
    return Saved(records, (), [{"x": ONE}], {})


def test_the_last_and_the_best_are_kept(small, one_device, tmp_path):
    run = config(steps=100, coefficient_warmup=10)
    state = state_of(run, one_device)
    checkpoints = Checkpoints(tmp_path / "c", [run], small, save_every=10)
    checkpoints.open()
    # 20 would be the best, but its lambda is not yet at its full strength; 50, but its L0 is far off the target.
    for step, about in (
        *((10, saved(0.5)), (20, saved(0.1, before=5)), (30, saved(0.2))),
        *((40, saved(0.4)), (50, saved(0.1, l0=8.0)), (60, saved(0.3))),
    ):
        checkpoints.save(step, [state], about)
        checkpoints.wait()
        best = {10: [10], 20: [10, 20], 30: [30], 40: [30, 40], 50: [30, 50], 60: [30, 60]}[step]
        assert checkpoints.steps() == best
    checkpoints.close()


def test_moments_in_bfloat16_are_refused(small, one_device, tmp_path):
    run = config(steps=4)
    state = state_of(run, one_device)
    rounded = jax.tree.map_with_path(
        lambda path, leaf: leaf.astype("bfloat16") if "nu" in str(path) and "W_dec" in str(path) else leaf, state
    )
    checkpoints = Checkpoints(tmp_path / "c", [run], small, save_every=2)
    checkpoints.open()
    checkpoints.save(2, [rounded], saved(0.5))
    checkpoints.close()
    with pytest.raises(ValueError, match=r"run_0/optimizer/1/nu/W_dec is bfloat16, masters and .* are float32"):
        sae.train(run, small, one_device, checkpoint_dir=tmp_path / "c")


def test_another_runs_checkpoint_is_refused_and_kept(small, tmp_path):
    sae.train(config(steps=2), small, checkpoint_dir=tmp_path / "c")
    before = sorted(str(p) for p in (tmp_path / "c").rglob("*"))
    with pytest.raises(ValueError, match=r"checkpoint of another run: runs\[0\].width is 64 there, 32 asked for"):
        sae.train(dataclasses.replace(config(steps=2), width=32), small, checkpoint_dir=tmp_path / "c")
    assert before == sorted(str(p) for p in (tmp_path / "c").rglob("*"))


def test_what_cannot_be_is_refused(small, meshes):
    with pytest.raises(ValueError, match=r"agree in steps, got \[30, 31\]"):
        sae.train([config(), dataclasses.replace(config(), steps=31)], small)
    with pytest.raises(ValueError, match=r"has no site 'z'; it has x, y"):
        sae.train(config("z"), small)
    with pytest.raises(ValueError, match=r"batch of 129 cannot be split over 8 devices"):
        sae.train(config(batch_size=129), small)
    with pytest.raises(ValueError, match=r"64 latents cannot be split over 3 devices"):
        sae.train(config(), small, mesh=meshes(1, 3))
    with pytest.raises(ValueError, match=r"agree in data_seed, got \[0, 1\]"):
        sae.train([config(), config(data_seed=1)], small)
    with pytest.raises(ValueError, match=r"sites must have activations of one dim, got 40, 64 for x, y"):
        sae.train(config(("x", "y")), small)
    with pytest.raises(ValueError, match=r"together is one of side_by_side, vmapped, scanned, got 'apart'"):
        sae.train(config(), small, together="apart")
    with pytest.raises(ValueError, match=r"the loss of x is nan at step 29: lower the learning rate"):
        sae.train(config(learning_rate=1e30), small)
    with pytest.raises(ValueError, match=r"one run at least"):
        sae.train([], small)


def test_info_says_where_it_comes_from(small):
    (autoencoder,), _ = sae.train(config(), small)
    assert (autoencoder.info.model, autoencoder.info.site, autoencoder.info.units) == ("made-up", "x", "raw")
    assert '"l0_target": 4.0' in autoencoder.info.training
    assert autoencoder.info.counted == small.manifest.counted == sae.Counted((0, 1, 2))
    assert autoencoder.info.record.model_fingerprint == small.manifest.model_fingerprint == "0"
    assert autoencoder.info.record.corpus_sha256 == small.manifest.corpus_sha256
