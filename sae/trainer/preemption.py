"""Stopping on request: SIGTERM, which clusters send some seconds before they take a machine away, and SIGHUP, which
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
    """SIGTERM or SIGHUP has stopped training, and what was trained so far is saved: the same call goes on from there.

    Attributes:
      signal: the signal.

    Example:
      >>> try:
      ...     raise sae.Preempted("stopped by SIGTERM after step 20 of 600")  # as sae.train does with checkpoint_dir
      ... except sae.Preempted as stop:
      ...     print(stop.signal.name)
      SIGTERM
    """

    def __init__(self, message: str, signal: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.signal = signal


class StopRequest(BaseException):
    """Ends a wait when a signal requests a stop. It is no `Exception`, so that the code that waits does not take it for
    an error of its own."""


class Preemption:
    """Whether it is time to stop. All processes of a run hear the same at the same step.

    Attributes:
      signal: the signal that requested the stop; None before that.
      waits: set by the run during a wait that may be broken off. A signal then raises `StopRequest` there, since the
        wait may take longer than a cluster gives.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self.waits = False

    def request(self, number: int, _) -> None:
        """Requests a stop; the signals' handler."""
        self.signal = signal.Signals(number)
        if self.waits:
            self.waits = False
            raise StopRequest

    def begin_wait(self) -> None:
        """Sets `waits`.

        Raises:
          StopRequest: when the signal came before.
        """
        self.waits = True
        if self.signal is not None:
            self.waits = False
            raise StopRequest

    def at(self, step: int) -> bool:
        """Whether to stop after a step. Every process calls it at every step."""
        if jax.process_count() > 1:
            # JAX's own handler of SIGTERM tells the other processes, and they agree on a step.
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            self.signal = self.signal or signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def watched() -> Iterator[Preemption]:
    """Makes SIGTERM and SIGHUP only request a stop, while the context lasts.

    A signal that is ignored, as SIGHUP is under `nohup`, stays ignored. In another thread than the main one, all
    signals stay as they are.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    if jax.process_count() > 1:
        handlers = {signal.SIGHUP: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    else:
        handlers = dict.fromkeys(SIGNALS, preemption.request)
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
