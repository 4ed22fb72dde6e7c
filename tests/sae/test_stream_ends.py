"""Training from a stream ends: with the result, an error or a signal, whatever it is; and its thread ends with it."""

import itertools
import os
import signal
import threading

import numpy as np
import pytest

import sae
from sae import filling
from sae.text import Document, cut
from sae.trainer.checkpoints import Checkpoints
from sae.trainer.sweeps import Sweep

SITE = "layer_0/mlp_out"
CONFIG = sae.short_run(SITE, 32, 12, batch_size=64, l0_target=4.0)


@pytest.fixture(scope="module")
def text(tiny):
    words = [f"In the beginning number {i} was the word. " * (i % 5 + 1) for i in range(12)]
    return cut([Document(f"d{i}", "s", text) for i, text in enumerate(words)], tiny.tokenizer, 32)


@pytest.fixture
def stream(tiny, text):
    """All of the text in one segment, as by default any text under a million rows is."""
    return sae.stream(tiny, text, [SITE])


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "stream"] == []


class Failing(sae.Report):
    def __init__(self, error):
        self._error = error

    def record(self, records, rates):
        raise self._error


def test_training_from_a_text_of_one_segment_ends(stream, one_device):
    assert stream.manifest.segments == 1
    per_pass = stream.batches_per_pass(64)
    assert CONFIG.steps > 1.5 * per_pass, "it has to go over the text more than once"
    autoencoders, history = sae.train(CONFIG, stream, one_device)
    assert len(autoencoders) == 1 and history[-1]["step"] == 11


@pytest.mark.parametrize("error", [ValueError("a report"), KeyboardInterrupt()], ids=repr)
def test_what_a_report_raises_surfaces(stream, one_device, error):
    with pytest.raises(type(error)):
        sae.train(CONFIG, stream, one_device, reports=[Failing(error)])
    for thread in threading.enumerate():  # Ctrl-C does not wait for it
        if thread.name == "stream":
            thread.join(20)


def test_what_progress_raises_surfaces(stream, one_device):
    def progress(steps, **_):
        yield from itertools.islice(steps, 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sae.train(CONFIG, stream, one_device, progress=progress)


def test_what_the_thread_raises_surfaces(stream, one_device, monkeypatch):
    original, calls = filling.activations_at, itertools.count()
    batches = -(-len(stream._sequences) // filling.BATCH)

    def breaking(*arguments):
        # The first reading is for the statistics; the third is the second that is trained on.
        if next(calls) == 2 * batches:
            raise ZeroDivisionError("on the device")
        return original(*arguments)

    monkeypatch.setattr(filling, "activations_at", breaking)
    with pytest.raises(ZeroDivisionError, match="on the device"):
        sae.train(CONFIG, stream, one_device)


def test_a_signal_ends_the_wait_for_a_segment(stream, one_device, tmp_path, monkeypatch):
    """The segment after the first pass takes for ever, and a signal comes once all of the first is used."""
    original, update, calls = filling.activations_at, Sweep.update, itertools.count()
    never, steps, per_pass = threading.Event(), threading.Semaphore(0), stream.batches_per_pass(64)
    batches = -(-len(stream._sequences) // filling.BATCH)

    def slow(*arguments):
        if next(calls) == 2 * batches:
            for _ in range(per_pass):
                steps.acquire()
            os.kill(os.getpid(), signal.SIGTERM)
            never.wait(120)
        return original(*arguments)

    def counted(sweep, batch):
        steps.release()
        return update(sweep, batch)

    save = tell_when_called(Checkpoints.save, per_pass, never)
    for owner, name, function in (
        (filling, "activations_at", slow),
        (Sweep, "update", counted),
        (Checkpoints, "save", save),
    ):
        monkeypatch.setattr(owner, name, function)
    with pytest.raises(sae.Preempted, match=f"asked to stop by SIGTERM after step {per_pass} of 12; saved in"):
        sae.train(CONFIG, stream, one_device, checkpoint_dir=tmp_path / "c")
    assert (tmp_path / "c" / str(per_pass)).exists()
    for thread in threading.enumerate():
        if thread.name == "stream":
            thread.join(20)


def tell_when_called(save, step, event):
    """Saves as `save` does; of a step, while something is still waited for, which the event then ends."""

    def told(checkpoints, done, *arguments):
        assert not event.is_set()
        save(checkpoints, done, *arguments)
        if done == step:
            event.set()

    return told


def test_a_stream_and_its_store_do_not_share_checkpoints(tiny, text, stream, one_device, tmp_path):
    store = sae.harvest(tiny, text, [SITE], tmp_path / "store")
    sources = {"a stream of gemma2-tiny": stream, f"the store {store.name} of gemma2-tiny": store}
    for (name, source), (other, another) in itertools.permutations(sources.items(), 2):
        folder = tmp_path / f"begun on {source.kind}"
        sae.train(CONFIG, source, one_device, checkpoint_dir=folder)
        with pytest.raises(ValueError, match="another run") as refusal:
            sae.train(CONFIG, another, one_device, checkpoint_dir=folder)
        assert f"it was begun on {name}" in str(refusal.value) and f"this call reads {other}" in str(refusal.value)


def test_sinks_of_a_stream_by_a_number_of_numpy_are_recorded(tiny, text, one_device):
    """`info` is written before the first step, and a stream's manifest never was."""
    counted = sae.Counted(tiny.tokenizer.special_ids, sinks=sae.Sinks(np.float32(4), [SITE]))
    stream = sae.stream(tiny, text, [SITE], counted=counted, seed=np.int64(1))
    (autoencoder,), _ = sae.train(CONFIG, stream, one_device)
    assert '"source": "stream"' in autoencoder.info.training


def test_batches_that_are_dropped_end_their_thread(stream):
    batches = stream.batches(64)
    next(batches)
    del batches
