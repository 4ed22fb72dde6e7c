"""Stopping when asked to: SIGTERM, which clusters send some seconds before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The process was asked to stop by SIGTERM, and what was trained so far is saved: the same call goes on from
    there."""


class Preemption:
    """Whether it is time to stop. All processes of a run hear the same at the same step."""

    def __init__(self):
        self._asked = threading.Event()

    def ask(self, *_) -> None:
        """Asks to stop; the signal's handler."""
        self._asked.set()

    def at(self, step: int) -> bool:
        """To be called by every process at every step."""
        if jax.process_count() > 1:
            # JAX's own handler of SIGTERM tells the other processes, and they agree on a step.
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()


@contextlib.contextmanager
def watched() -> Iterator[Preemption]:
    """While this lasts, SIGTERM only asks to stop. Elsewhere than in the main thread, signals stay as they are."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield preemption
        return
    before = signal.signal(signal.SIGTERM, preemption.ask)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
