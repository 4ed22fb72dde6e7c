"""How a run ends: nothing that was trained is lost, and whatever went wrong is said."""

import dataclasses
import json
import signal
import threading

import jax
import numpy as np
import pytest

import sae
from sae.trainer import checkpoints, programs
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary

CONFIG = sae.short_run("x", 64, 30, batch_size=128, l0_target=4.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(6000, features=256, dimensions=64)
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=2000)


@pytest.fixture(scope="module")
def unbroken(small, one_device):
    """The autoencoder of a run that nothing disturbed."""
    return sae.train(CONFIG, small, one_device)[0][0]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Failing(sae.Report):
    """A report that raises when it is told of a step, or closed."""

    def __init__(self, step=None, error=None):
        self._step, self._error = step, error or RuntimeError("the logger broke")
        self.closed = False

    def record(self, records, rates):
        if records[0]["step"] == self._step:
            raise self._error

    def close(self):
        self.closed = True
        if self._step is None:
            raise self._error


@pytest.mark.parametrize("step", [29, None], ids=["last record", "close"])
def test_a_report_that_fails_at_the_end_loses_nothing(small, unbroken, one_device, tmp_path, step):
    # Without checkpoints an error would lose the autoencoder.
    with pytest.warns(sae.TrainingWarning, match=r"all steps are made, but Failing failed at the end: .*logger broke"):
        (autoencoder,), _ = sae.train(CONFIG, small, one_device, reports=[Failing(step)])
    assert_same(autoencoder, unbroken)
    # With them the error is raised, and the same call has nothing left to train.
    with pytest.raises(RuntimeError, match="the logger broke") as failure:
        sae.train(CONFIG, small, one_device, checkpoint_dir=tmp_path / "c", reports=[Failing(step)])
    assert f"The checkpoint of step 30 is kept in {tmp_path / 'c'}" in "".join(failure.value.__notes__)
    seen = []
    (again,), _ = sae.train(
        CONFIG, small, one_device, checkpoint_dir=tmp_path / "c", progress=lambda s, **_: seen.extend(s) or s
    )
    assert_same(again, unbroken)
    assert seen == []


@pytest.mark.parametrize("error", [RuntimeError("the logger broke"), KeyboardInterrupt()], ids=repr)
def test_a_report_that_fails_before_the_end_ends_the_run(small, one_device, tmp_path, error):
    report, other = Failing(10, error), Failing(99)
    where = {"checkpoint_dir": tmp_path / "c", "save_every": 5, "log_every": 5}
    with pytest.raises(type(error)) as failure:
        sae.train(CONFIG, small, one_device, reports=[report, other], **where)
    assert report.closed and other.closed
    assert "The checkpoint of step 10 is kept" in "".join(failure.value.__notes__)
    assert steps_in(tmp_path / "c")[-1] == 10


def test_what_ended_a_run_stays_the_error_when_a_report_cannot_be_closed(small, one_device):
    with pytest.raises(ZeroDivisionError) as failure:
        sae.train(CONFIG, small, one_device, reports=[Failing(0, ZeroDivisionError()), Failing()])
    assert failure.value.__notes__ == ["Closing Failing failed as well: RuntimeError('the logger broke')"]


def test_a_progress_bar_that_leaves_out_steps_is_an_error(small, unbroken, one_device, tmp_path):
    where = {"checkpoint_dir": tmp_path / "c", "save_every": 5}
    with pytest.raises(ValueError, match="progress gave 2 where 1 comes, after 1 of 30: it has to give every one"):
        sae.train(CONFIG, small, one_device, progress=lambda steps, **_: list(steps)[::2])
    with pytest.raises(ValueError, match="progress ended after 12 of 30: it has to give every one"):
        sae.train(CONFIG, small, one_device, progress=lambda steps, **_: list(steps)[:12], **where)
    (autoencoder,), _ = sae.train(CONFIG, small, one_device, **where)
    assert_same(autoencoder, unbroken)


def test_a_folder_that_is_no_step_is_none(small, one_device, tmp_path):
    (tmp_path / "c" / "²").mkdir(parents=True)
    config = dataclasses.replace(CONFIG, steps=2)
    sae.train(config, small, one_device, checkpoint_dir=tmp_path / "c")
    assert sae.train(config, small, one_device, checkpoint_dir=tmp_path / "c").history[-1]["step"] == 1


def test_what_is_no_report_is_refused_before_anything_is_written(small, one_device, tmp_path):
    class Duck:
        def record(self, records, rates):
            raise AssertionError("it was told of something")

    with pytest.raises(ValueError, match=r"reports are objects of subclasses of sae\.Report, got .*Duck"):
        sae.train(CONFIG, small, one_device, checkpoint_dir=tmp_path / "c", reports=[Duck()])
    assert not (tmp_path / "c").exists()


def test_reports_do_not_reach_the_history(small, one_device):
    class Emptying(sae.Report):
        def record(self, records, rates):
            for record in records:
                record.pop("density")
                record["gradients"].clear()

    history = sae.train(
        dataclasses.replace(CONFIG, steps=2), small, one_device, reports=[Emptying(), Emptying()]
    ).history
    assert all(record["density"] and record["gradients"] for record in history)


class Waiting(sae.ActivationStore):
    """A store whose batch of step `AT` does not come, while a signal does."""

    AT = 0
    SIGNAL = signal.SIGTERM

    def batches(self, *arguments, start_step=0, **more):
        return Late(self, super().batches(*arguments, start_step=start_step, **more), start_step)


class Late:
    def __init__(self, store, batches, step):
        self._store, self._batches, self.step = store, batches, step
        self.passes = batches.passes

    def __next__(self):
        if self.step == self._store.AT:
            signal.raise_signal(self._store.SIGNAL)
            threading.Event().wait(5)
            raise AssertionError("still waiting for a batch that does not come")
        self.step += 1
        return next(self._batches)

    def close(self):
        self._batches.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_a_batch_and_saves(small, unbroken, one_device, tmp_path, number):
    waiting = Waiting.open(small.path)
    Waiting.AT, Waiting.SIGNAL = 7, number
    with pytest.raises(sae.Preempted, match=f"stop by {number.name} after step 7 of 30; saved in") as stop:
        sae.train(CONFIG, waiting, one_device, checkpoint_dir=tmp_path / "c")
    assert stop.value.signal is number and steps_in(tmp_path / "c") == [7]
    (autoencoder,), _ = sae.train(CONFIG, small, one_device, checkpoint_dir=tmp_path / "c")
    assert_same(autoencoder, unbroken)


def test_a_signal_before_the_first_step_saves_nothing(small, one_device, tmp_path):
    waiting = Waiting.open(small.path)
    Waiting.AT = 0
    with pytest.raises(sae.Preempted, match=r"asked to stop by SIG[A-Z]+ before the first step"):
        sae.train(CONFIG, waiting, one_device, checkpoint_dir=tmp_path / "c")
    assert steps_in(tmp_path / "c") == []


def no_step(monkeypatch):
    """Makes the first compilation of a step, and with it every step, an error."""

    def fail(*_):
        raise AssertionError("something was compiled before the arguments were checked")

    monkeypatch.setattr(programs, "compiled_step", fail)


def test_what_cannot_be_saved_is_refused_before_anything_is_compiled(small, one_device, tmp_path, monkeypatch):
    no_step(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the checkpoints cannot go to .*file is no folder"):
        sae.train(CONFIG, small, one_device, checkpoint_dir=tmp_path / "file" / "c")
    with pytest.raises(ValueError, match=r"checkpoints go to a folder, of this machine or mounted; got gs://b/c"):
        sae.train(CONFIG, small, one_device, checkpoint_dir="gs://b/c")
    with pytest.raises(ValueError, match=r"event files cannot go to .*file is no folder"):
        sae.TensorBoard(tmp_path / "file" / "tb")
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 1000)
    with pytest.raises(OSError, match=r"the disk is full: a checkpoint of 0 MB goes to .*/c, up to 2 more of them"):
        sae.train(CONFIG, small, one_device, checkpoint_dir=tmp_path / "c")
    for every, message in ((0, "at least 1 step, got 0"), (1.5, "a whole number of steps, got 1.5")):
        with pytest.raises(ValueError, match=f"log_every must be {message}"):
            sae.train(CONFIG, small, one_device, log_every=every)
    with pytest.raises(ValueError, match=r"train takes a run, .*got the text 'x'"):
        sae.train("x", small, one_device)
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_recorded_is_an_error_before_the_first_step(small, one_device, monkeypatch):
    """An object that JSON does not know, where an autoencoder's record would have it."""
    store = dataclasses.replace(small, manifest=dataclasses.replace(small.manifest, activation_dtype=object()))
    with pytest.raises(TypeError, match="not JSON serializable"):
        sae.train(CONFIG, store, one_device, progress=lambda steps, **_: pytest.fail("a step was begun"))


def test_a_run_records_how_much_it_saw_and_what_was_dead(small, unbroken, one_device):
    facts = json.loads(unbroken.info.training)
    assert (facts["source"], facts["tokens"], facts["dead_tokens"]) == ("store", 30 * 128, 30 * 128 // 20)
    assert 0 <= facts["dead"] <= 64
    assert sae.Run.of_json(facts["run"]) == CONFIG


def test_the_moments_go_before_the_autoencoders_are_made(small, one_device):
    """So that to release takes no more memory than a step."""
    from sae.inputs import Units
    from sae.trainer.sweeps import Sweep

    sweep = Sweep([CONFIG], [{"x": Units(np.zeros(64, np.float32), np.float32(1))}], {"x": 64}, one_device)
    sweep.begin()
    moments = jax.tree.leaves(sweep.states()[0].optimizer)
    (autoencoder,) = sweep.released()
    assert autoencoder.W_enc.shape == (64, 64) and sweep.groups[0].state is None and moments


def test_a_checkpoint_of_another_run_in_a_runs_folder_is_refused(small, one_device, tmp_path):
    for name, config in (("a", CONFIG), ("b", dataclasses.replace(CONFIG, seed=1))):
        sae.train(config, small, one_device, checkpoint_dir=tmp_path / name)
    (tmp_path / "b" / "30").rename(tmp_path / "kept")
    (tmp_path / "a" / "30").rename(tmp_path / "b" / "30")
    with pytest.raises(ValueError, match=r"b/30 is of another run than .*b/run.json says"):
        sae.train(dataclasses.replace(CONFIG, seed=1), small, one_device, checkpoint_dir=tmp_path / "b")
