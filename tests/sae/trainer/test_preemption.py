"""Signals during a run: SIGTERM and SIGHUP request a stop, also while the run waits for data."""

import signal
import threading

import pytest

from sae.trainer.preemption import StopRequest, watched


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_to_stop_and_afterwards_does_what_it_did(number):
    before = signal.getsignal(number)
    with watched() as preemption:
        assert not preemption.at(1)
        signal.raise_signal(number)
        assert preemption.at(2) and preemption.signal is number
    assert signal.getsignal(number) == before


def test_a_signal_ends_a_wait_at_once():
    with watched() as preemption:
        preemption.begin_wait()
        with pytest.raises(StopRequest):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)  # the next one only requests: the run is saving
        assert preemption.at(1)
        with pytest.raises(StopRequest):  # a signal that came just before a wait ends the wait as well
            preemption.begin_wait()
        assert not preemption.waits


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watched() as preemption:
            signal.raise_signal(signal.SIGHUP)
            assert not preemption.at(1) and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_elsewhere_than_in_the_main_thread_signals_stay_as_they_are():
    handlers = []

    def run():
        with watched():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
