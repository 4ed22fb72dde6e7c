"""Who is writing a segment: a file in `writers/` that only one writer can create.

A writer that was killed leaves its file. A process of the same machine is known to be gone at once. One of another
machine counts as gone when a second file, in which it counts on all the time, has stayed the same for a while. That
while is measured by the clock of the one who looks, so no two clocks need to agree.

A claim spares work and no more: a writer may be suspended at any point, lose its claim, and go on. What it then does
to the store is harmless because of how it writes (`attempts.py`).
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from sae.store.manifest import commit_name, segment_name
from sae.store.places import Place

SILENT_SECONDS = 300  # after which a writer on another machine counts as gone
BEATS = 15  # signs of life in that time
_TWO_LAUNCHES = "two launches of one harvest? Stop one of them, or give each an index of its own (worker=)"
_logger = logging.getLogger(__name__)


class Claim:
    """The right to write one segment. `Claims.take` gets it; it may be renewed from another thread.

    Attributes:
      store, index: which segment of which store.
      token: random; names what this attempt writes.
      predecessor: token of the writer from which it was taken over, where that one is gone for certain.
    """

    def __init__(self, store: Place, index: int, silent_seconds: float, predecessor: str | None = None):
        self.store, self.index, self.predecessor = store, index, predecessor
        self.token = secrets.token_hex(8)
        self._silent_seconds = silent_seconds
        process = os.getpid()
        writer = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": process,
            "started": _started(process),
        }
        self._contents, self._beat = json.dumps(writer).encode(), 0
        self._lock = threading.Lock()
        self.held = False

    def create(self) -> bool:
        """Takes the segment, if nobody has it."""
        self.held = self.store.create(_name(self.index), self._contents)
        return self.held

    def take_over(self, contents: bytes) -> bool:
        """Takes the segment from the writer whose file has these contents, if it still has."""
        self.held = self.store.replace(_name(self.index), contents, self._contents)
        return self.held

    def renew(self) -> None:
        """Says that this writer is alive; nothing, once it has let go of the segment.

        Raises:
          OSError: when another one has taken the segment over.
        """
        with self._lock:
            if not self.held:
                return
            name = _name(self.index)
            if self.store.read(name) == self._contents or self._create_again():
                self._beat += 1
                self.store.write(_sign_name(name, self.token), str(self._beat))
                return
            raise OSError(
                "another writer has taken it over, as this one had not been heard of for more than "
                f"{self._silent_seconds:g} s"
            )

    def release(self) -> None:
        """Lets go of the segment, written or not. A second time does nothing."""
        with self._lock:
            if self.held:
                self.store.remove_file(_sign_name(_name(self.index), self.token))
                self.store.replace(_name(self.index), self._contents, None)
            self.held = False

    def lasts(self) -> bool:
        """Whether nobody has taken the segment over."""
        with self._lock:
            return self.held and self.store.read(_name(self.index)) == self._contents

    def _create_again(self) -> bool:
        """Not every bucket removes a file on a condition: a late writer may have removed this one for its own."""
        committed = self.store.read(commit_name(self.index)) is not None
        return not committed and self.store.create(_name(self.index), self._contents)


class Claims:
    """The claims of one harvest on segments of a store. As a context, it renews them and watches those of others.

    Args:
      store: where.
      silent_seconds: after which a writer of another machine, whose claim has not changed, counts as gone.
    """

    def __init__(self, store: Place, silent_seconds: float = SILENT_SECONDS):
        self._store, self._silent_seconds = store, silent_seconds
        self._held: dict[int, Claim] = {}
        self._seen: dict[str, tuple[bytes, float, bool]] = {}  # signs, since when, whether they changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> "Claims":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        for claim in self._held.values():
            claim.release()

    def __getitem__(self, index: int) -> Claim:
        return self._held[index]

    def take(self, index: int) -> Claim:
        """Takes a segment to write, or takes it over from a writer that is gone. May wait to see whether it is.

        Raises:
          OSError: when another writer is at it, with its process and machine, or has committed it.
        """
        name = _name(index)
        claim = Claim(self._store, index, self._silent_seconds)
        while not claim.create():
            contents = self._store.read(name)
            if contents is None:
                continue  # released in between
            writer = _writer(self._store, name, contents)
            if writer["machine"] == _machine():
                if _started(writer["process"]) == writer["started"] is not None:
                    raise self._refusal(index, writer, "which is alive")
                claim.predecessor = writer["token"]
            elif not self._silent(index, _signs(self._store, name, contents), writer):
                self._stop.wait(self._silent_seconds / BEATS / 2)
                continue
            if claim.take_over(contents):
                self._store.remove_file(_sign_name(name, writer["token"]))
                break
            claim.predecessor = None
        if self._store.read(commit_name(index)) is not None:  # since this process looked for what is missing
            claim.release()
            raise OSError(
                f"{self._store}/{segment_name(index)} was written by another writer just now: {_TWO_LAUNCHES}"
            )
        self._held[index] = claim
        return claim

    def _silent(self, index: int, signs: bytes, writer: dict) -> bool:
        """Whether a claim has not changed for long enough. Raises OSError where it has changed lately."""
        name = _name(index)
        unknown = name not in self._seen
        self._look(name, signs)
        _, since, changed = self._seen[name]
        seconds = time.monotonic() - since
        if seconds >= self._silent_seconds:
            return True
        if changed and seconds < self._silent_seconds / 3:
            raise self._refusal(index, writer, f"last heard of {seconds:.0f} s ago")
        if unknown:
            _logger.warning(
                "%s/%s is claimed by process %s on %s: waiting up to %g s for a sign of life",
                *(self._store, segment_name(index), writer["process"], writer["host"], self._silent_seconds),
            )
        return False

    def _look(self, name: str, signs: bytes) -> None:
        before = self._seen.get(name)
        if before is None or before[0] != signs:
            self._seen[name] = (signs, time.monotonic(), before is not None)

    def _refusal(self, index: int, writer: dict, sign: str) -> OSError:
        return OSError(
            f"{self._store}/{segment_name(index)} is being written by process {writer['process']} on {writer['host']}, "
            f"{sign}: {_TWO_LAUNCHES}. If that process is gone for good, delete {_name(index)}"
        )

    def _beat(self) -> None:
        # A bucket may be out of reach for a while; and that a claim is lost, the writer finds before it commits.
        tolerant = contextlib.suppress(OSError, ValueError)
        while not self._stop.wait(self._silent_seconds / BEATS):
            for claim in list(self._held.values()):
                with tolerant:
                    claim.renew()
            with tolerant:
                for name in self._store.names("writers/segment_"):
                    if name.endswith(".json") and name.count("/") == 1:
                        contents = self._store.read(name)
                        if contents is not None:
                            self._look(name, _signs(self._store, name, contents))


def claim(store: Place, index: int, silent_seconds: float = SILENT_SECONDS) -> Claim:
    """Takes one segment, for a writer that is quick and so renews nothing. Raises as `Claims.take` does."""
    return Claims(store, silent_seconds).take(index)


def clear(store: Place, committed: Collection[int]) -> None:
    """Removes claims of segments that are committed: nobody needs them, whoever is at work."""
    names = set(map(_name, committed))
    for name in store.names("writers/"):  # few: most segments have none
        claim, json_, token = name.partition(".json")
        if claim + json_ not in names:
            continue
        if token:
            store.remove_file(name)
        elif (contents := store.read(name)) is not None:
            store.replace(name, contents, None)


def _name(index: int) -> str:
    return f"writers/{segment_name(index)}.json"


def _sign_name(name: str, token: str) -> str:
    """The file in which the writer with a claim counts on."""
    return f"{name}.{token}"


def _signs(store: Place, name: str, contents: bytes) -> bytes:
    """What changes as long as the writer of a claim is alive."""
    return contents + (store.read(_sign_name(name, _writer(store, name, contents)["token"])) or b"")


def _writer(store: Place, name: str, contents: bytes) -> dict:
    try:
        writer = json.loads(contents)
        return {key: writer[key] for key in ("token", "host", "machine", "process", "started")}
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{store}/{name} is damaged ({error!r}): delete it, once no harvest writes to this store"
        ) from None


def _machine() -> str:
    """Tells this machine, since its last start, from others, and a container's processes from those outside."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, processes = f"{uuid.getnode():x}", ""
    return f"{socket.gethostname()} {boot} {processes}".strip()


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
