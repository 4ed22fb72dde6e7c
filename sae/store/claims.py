"""Claims on segments: a file in `writers/` that only one writer can create says who writes a segment.

A writer that was killed leaves its file. A process of the same machine is known to be gone at once. A process of
another machine counts as gone when a second file, in which it counts all the time, has not changed for a while. The
observer's own clock measures that time, so no two clocks need to agree.

A claim only saves work: a writer may be suspended at any point, lose its claim, and go on. It then does no harm to the
store because of how it writes (`attempts.py`).
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

SILENT_SECONDS = 300  # seconds of silence after which a writer on another machine counts as gone
BEATS = 15  # signs of life in that time
_TWO_LAUNCHES = "two launches of one harvest? Stop one of them, or give each an index of its own (worker=)"
_logger = logging.getLogger(__name__)


class Claim:
    """The right to write one segment. `Claims.take` gets it; another thread may renew it.

    Attributes:
        store: the store's place.
        index: the segment's index.
        token: random; it names the files of this attempt.
        predecessor: the token of the writer from which the segment was taken over, where that writer is gone for
            certain.
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
        """Takes the segment where no writer has it, and returns whether it did."""
        self.held = self.store.create(_name(self.index), self._contents)
        return self.held

    def take_over(self, contents: bytes) -> bool:
        """Takes the segment from the writer whose file has these contents, and returns whether it did."""
        self.held = self.store.replace(_name(self.index), contents, self._contents)
        return self.held

    def renew(self) -> None:
        """Gives a sign of life; does nothing after `release`.

        Raises:
            OSError: where another writer has taken the segment over.
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
                f"another writer has taken it over, as this one was silent for more than {self._silent_seconds:g} s"
            )

    def release(self) -> None:
        """Gives the segment up, written or not. A second call does nothing."""
        with self._lock:
            if self.held:
                self.store.remove_file(_sign_name(_name(self.index), self.token))
                self.store.replace(_name(self.index), self._contents, None)
            self.held = False

    def lasts(self) -> bool:
        """Returns whether this writer still has the segment."""
        with self._lock:
            return self.held and self.store.read(_name(self.index)) == self._contents

    def _create_again(self) -> bool:
        """Creates the claim's file again, and returns whether it did. Not every bucket removes a file on a condition: a
        late writer may have removed this file in place of its own."""
        committed = self.store.read(commit_name(self.index)) is not None
        return not committed and self.store.create(_name(self.index), self._contents)


class Claims:
    """The claims of one harvest on segments of a store. As a context, it renews them and watches those of others.

    Args:
        store: the store's place.
        silent_seconds: seconds without a change of a claim after which its writer, on another machine, counts as gone.
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
        """Takes a segment to write, or takes it over from a writer that is gone. It may wait to see whether it is gone.

        Raises:
            OSError: where another writer writes it (with its process and machine), or has committed it.
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
        if self._store.read(commit_name(index)) is not None:  # committed since this process listed missing segments
            claim.release()
            raise OSError(
                f"{self._store}/{segment_name(index)} was written by another writer just now: {_TWO_LAUNCHES}"
            )
        self._held[index] = claim
        return claim

    def _silent(self, index: int, signs: bytes, writer: dict) -> bool:
        """Returns whether a claim has not changed for long enough. Raises OSError where it has changed lately."""
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
        # A bucket may be out of reach for a while; and a writer notices a lost claim before it commits.
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
    """Takes one segment, for a quick writer that renews nothing. Raises OSError as `Claims.take` does."""
    return Claims(store, silent_seconds).take(index)


def clear(store: Place, committed: Collection[int]) -> None:
    """Removes claims on committed segments, which no writer needs any more."""
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
    """Returns the name of the file in which the writer with a claim counts."""
    return f"{name}.{token}"


def _signs(store: Place, name: str, contents: bytes) -> bytes:
    """Returns bytes that change as long as the writer of a claim is alive."""
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
    """Returns a text that tells this machine, since its last start, from others, and a container's processes from those
    outside."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, processes = f"{uuid.getnode():x}", ""
    return f"{socket.gethostname()} {boot} {processes}".strip()


def _started(process: int) -> str | None:
    """Returns the start of a process of this machine, which tells it from a later process with the same number; None if
    it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)  # without /proc, as on macOS, only its existence is known
    except OSError:
        return None
    return "unknown"
