"""Ctrl-C, SIGTERM and SIGHUP end a launch with one line and the status that shells expect, 128 + the signal's number.

This file imports the standard library alone: it works while JAX is imported, which takes seconds.
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
    """A signal asks the launch to stop. It is raised where the signal comes, so that open files are closed in order."""


def begin() -> None:
    """Makes Ctrl-C end a launch at once, until `watch` is called. The package calls it when it is imported.

    A program that imports the package for another purpose keeps its own handlers. Python's `-m` has "-m" as the
    program's name while it looks for the module.
    """
    if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name.startswith(COMMAND):
        signal.signal(signal.SIGINT, _at_once)


def watch() -> None:
    """Makes signals raise `Stopped` in the main thread from here on. SIGHUP stays ignored where `nohup` ignores it."""
    _received.clear()
    for number in _SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def received() -> int | None:
    """Returns the number of the first signal that came; None where none came."""
    return _received[0] if _received else None


def check() -> None:
    """Raises `Stopped` if a signal has come: Python swallows what the handler raises in a finaliser, for example.

    Example:
      >>> for step in range(3):
      ...     check()
    """
    if _received:
        raise Stopped(_received[0])


def ignore() -> None:
    """Makes further signals do nothing, since the launch is ending."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int, line: str | None = None) -> NoReturn:
    """Ends the process with a line on standard error, without Python's own clean-up.

    Python's clean-up frees memory that threads of XLA, tensorstore and Orbax may still use: of 24 launches that were
    interrupted while they compiled, 5 ended in a segmentation fault.
    """
    ignore()
    if line is not None:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def words(number: int) -> str:
    """Returns in words that a signal ended the launch."""
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _raise(number: int, _) -> None:
    _received.append(number)
    raise Stopped(number)


def _at_once(number: int, _) -> None:
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(128 + number)
