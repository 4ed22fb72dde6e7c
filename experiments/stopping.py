"""Ctrl-C, SIGTERM and SIGHUP end a launch with one line and the status that shells expect, 128 + the signal's number.

This file imports the standard library alone: it is at work while JAX is imported, which takes seconds.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

COMMAND = "mishax-"  # begins the names of console commands
# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal asked the launch to stop; raised where it came, so that what is under way is closed in order."""


def begin() -> None:
    """Has Ctrl-C end the process at once, until `watch`, if this is a launch; called when the package is imported.

    A program that imports the package for another end keeps its own handlers. Python's `-m` has "-m" as the program's
    name while it looks for the module.
    """
    if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name.startswith(COMMAND):
        signal.signal(signal.SIGINT, _at_once)


def watch() -> None:
    """Has signals raise `Stopped` in the main thread from here on. SIGHUP stays ignored, where `nohup` ignores it."""
    _received.clear()
    for number in _SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def received() -> int | None:
    """The number of the first signal that came, None if none did."""
    return _received[0] if _received else None


def check() -> None:
    """Raises `Stopped` if a signal has come: Python swallows what its handler raises in a finaliser, for one.

    Example:
      >>> for step in range(3):
      ...     check()
    """
    if _received:
        raise Stopped(_received[0])


def ignore() -> None:
    """Has further signals do nothing: the launch is ending."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int, line: str | None = None) -> NoReturn:
    """Ends the process with a line on standard error, without Python's own end.

    That one frees what threads of XLA, tensorstore and Orbax may still work on: of 24 launches that were interrupted
    while they compiled, 5 ended in a segmentation fault.
    """
    ignore()
    if line is not None:
        with contextlib.suppress(OSError):  # a terminal that has gone
            print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def words(number: int) -> str:
    """How a launch says that a signal ended it."""
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _raise(number: int, _) -> None:
    _received.append(number)
    raise Stopped(number)


def _at_once(number: int, _) -> None:
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(128 + number)
