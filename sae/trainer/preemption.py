"""Stopping when asked to: SIGTERM, which clusters send some seconds before they take a machine away, and SIGHUP, which
comes when the terminal closes or the connection breaks."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Preempted(Exception):
    """The process was asked to stop by SIGTERM or SIGHUP, and what was trained so far is saved: the same call goes on
    from there.

    Attributes:
      signal: which signal it was.
    """

    def __init__(self, message: str, signal: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.signal = signal


class Asked(BaseException):
    """Ends a wait in which the process is asked to stop. Not an `Exception`, so that what is waited for does not take
    it for an error of its own."""


class Preemption:
    """Whether it is time to stop. All processes of a run hear the same at the same step.

    Attributes:
      signal: by which signal the process was asked to stop; None before that.
      waits: set by the run while it waits for something that it can do without: a signal then raises `Asked` there,
        since the wait may take longer than a cluster gives.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self.waits = False

    def ask(self, number: int, _) -> None:
        """Asks to stop; the signals' handler."""
        self.signal = signal.Signals(number)
        if self.waits:
            self.waits = False
            raise Asked

    def begin_wait(self) -> None:
        """Sets `waits`.

        Raises:
          Asked: when the signal came before.
        """
        self.waits = True
        if self.signal is not None:
            self.waits = False
            raise Asked

    def at(self, step: int) -> bool:
        """To be called by every process at every step."""
        if jax.process_count() > 1:
            # JAX's own handler of SIGTERM tells the other processes, and they agree on a step.
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            self.signal = self.signal or signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def watched() -> Iterator[Preemption]:
    """While this lasts, SIGTERM and SIGHUP only ask to stop. A signal that is ignored, as SIGHUP is under `nohup`,
    stays ignored; elsewhere than in the main thread, all signals stay as they are."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    if jax.process_count() > 1:
        handlers = {signal.SIGHUP: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    else:
        handlers = dict.fromkeys(SIGNALS, preemption.ask)
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            # None: a handler that C code has set, which Python cannot put back.
            if handler is not None and handler is not signal.SIG_IGN:
                signal.signal(number, handler)
