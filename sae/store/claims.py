"""Who is writing a segment: a file in `writers/` that only one writer can create.

A writer that was killed leaves its file. On the same machine it is seen at once that its process is gone; on another
one, the file says when it was last heard of.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from sae.store.manifest import segment_name
from sae.store.places import Place

SILENT_SECONDS = 600  # after which a writer on another machine counts as gone; one that lives renews more often


class Claim:
    """The right to write one segment. `claim(…)` gets it; it may be renewed from another thread."""

    def __init__(self, store: Place, index: int, contents: bytes):
        self._store, self.index, self._contents = store, index, contents
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Says that this writer is alive.

        Raises:
          OSError: when another one has taken the segment, as this one had not been heard of.
        """
        with self._lock:
            contents = _contents()
            if not self._store.replace(_name(self.index), self._contents, contents):
                raise OSError(
                    "another writer has taken it over, as this one had not been heard of for more than "
                    f"{SILENT_SECONDS} s"
                )
            self._contents = contents

    def release(self) -> None:
        """Lets go of the segment, written or not. A second time does nothing."""
        with self._lock:
            self._store.replace(_name(self.index), self._contents, None)
            self._contents = b""

    @property
    def held(self) -> bool:
        return bool(self._contents)


@contextlib.contextmanager
def heartbeat(held: dict[int, Claim]) -> Iterator[None]:
    """Renews claims now and then, while a segment is filled or written, which may take long."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(SILENT_SECONDS / 10):
            for claim in list(held.values()):
                with contextlib.suppress(OSError):  # the writer finds out, before it commits
                    if claim.held:
                        claim.renew()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def claim(store: Place, index: int) -> Claim:
    """Takes a segment to write, or takes it over from a writer that is gone.

    Raises:
      OSError: when another writer is at it, with its process and machine.
    """
    name, contents = _name(index), _contents()
    if store.create(name, contents):
        return Claim(store, index, contents)
    there = store.read(name)
    if there is not None:
        _refuse_if_alive(store, index, there)
        if not store.replace(name, there, contents):
            raise OSError(f"{store}/{segment_name(index)} was taken by another writer just now; it will write it")
        return Claim(store, index, contents)
    return claim(store, index)  # released in between


def clear(store: Place, committed: Collection[int]) -> None:
    """Removes what writers left that were killed just after they had committed a segment."""
    for name in store.names("writers/"):  # few: most segments have none
        there = store.read(name)
        if name in map(_name, committed) and there is not None and not _alive(json.loads(there)):
            store.replace(name, there, None)


def _name(index: int) -> str:
    return f"writers/{segment_name(index)}.json"


def _contents() -> bytes:
    me = {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid()), "heard": time.time()}
    return json.dumps(me).encode()


def _refuse_if_alive(store: Place, index: int, contents: bytes) -> None:
    writer = json.loads(contents)
    if _alive(writer):
        raise OSError(
            f"{store}/{segment_name(index)} is being written by process {writer['process']} on {writer['host']}, last "
            f"heard of {time.time() - writer['heard']:.0f} s ago: two launches of one harvest? Stop one of them, or "
            f"give them different shares of it. If that process is gone for good, delete {_name(index)}"
        )


def _alive(writer: dict) -> bool:
    if writer["host"] != socket.gethostname():
        return time.time() - writer["heard"] < SILENT_SECONDS
    return _started(writer["process"]) == writer["started"] is not None


def _started(process: int) -> str | None:
    """When a process of this machine started, which tells it from a later one with the same number; None if it is
    gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)  # no /proc here, as on macOS: only whether there is one
    except OSError:
        return None
    return "unknown"
