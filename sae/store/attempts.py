"""One attempt at writing a segment: under names of its own, until the whole segment exists at once.

A writer may be suspended between any two of its steps, for hours, while another writer takes its segment over. So no
step may touch files of another writer, and a commit must fail where another writer has removed files of the attempt:

- On a disk, it writes to `writers/segment_00000-TOKEN/`, whose name is random. A commit renames that folder to
  `segment_00000`, which fails where that exists. The folder of another attempt is renamed before it is removed, so that
  its writer, should it go on, has either all its files to rename, or none.
- A bucket has no renaming. The attempt writes to `segment_00000/CONTENT/`, named by a checksum of the arrays' contents:
  all writers of these names write the same bytes. A commit creates `segment.json`, which names the folder, and fails
  where it exists. Nothing is removed before a commit.

Either way a store is the same, byte for byte, however often its writers were suspended or killed.
"""

import re
import secrets
from collections.abc import Callable, Collection

from sae.store import sealing
from sae.store.claims import Claim
from sae.store.manifest import commit_name, segment_name
from sae.store.places import Place


class Attempt:
    """The files of one writer of a segment, and their commit.

    Args:
        claim: the claim on the segment.
        content: returns a name for the arrays' contents; called for a bucket alone.

    Attributes:
        folder: the folder of the arrays.
        inner: the folder's name within the committed segment; "" on a disk.
    """

    def __init__(self, claim: Claim, content: Callable[[], str]):
        self._claim, self._store = claim, claim.store
        self._segment = segment_name(claim.index)
        if self._store.folder is None:
            self.inner = content()
            self.folder = f"{self._segment}/{self.inner}"
        else:
            self.inner = ""
            self.folder = _staging(claim.index, claim.token)
            if claim.predecessor is not None:
                _remove(self._store, _staging(claim.index, claim.predecessor))
            _make_room(self._store, claim)

    def commit(self, facts: dict, files: Collection[str]) -> None:
        """Makes the segment exist, from `files` in `folder`.

        Raises:
            OSError: where another writer has committed it or taken it over.
        """
        contents = sealing.seal(facts | ({"folder": self.inner} if self.inner else {}))
        self._claim.renew()
        if self._store.folder is None:
            names = self._store.names(f"{self._segment}/")
            self._check(files, names)
            if not self._store.create(commit_name(self._claim.index), contents):
                raise OSError("another writer has committed it meanwhile")
            for folder in {name.split("/")[1] for name in names if name.count("/") > 1} - {self.inner}:
                self._store.remove(f"{self._segment}/{folder}")
        else:
            self._store.write(f"{self.folder}/segment.json", contents)
            self._check(files, self._store.names(f"{self.folder}/"))
            if not self._moved(contents):
                raise OSError("another writer has committed it meanwhile")
            clear(self._store, {self._claim.index: facts})

    def _check(self, files: Collection[str], names: Collection[str]) -> None:
        if lost := {f"{self.folder}/{file}" for file in files} - set(names):
            raise OSError(f"another writer has taken it over and has removed {min(lost)}")

    def _moved(self, contents: bytes) -> bool:
        try:
            return self._store.move(self.folder, self._segment)
        except FileNotFoundError:  # removed by another writer; or moved by a network file system that repeats requests
            return self._store.read(commit_name(self._claim.index)) == contents

    def abandon(self) -> None:
        """Removes the files of the attempt on a disk. In a bucket another writer may have written them too."""
        if self._store.folder is not None:
            self._store.remove(self.folder)


def clear(store: Place, segments: dict[int, dict]) -> None:
    """Removes files that attempts have left at committed segments, {index: its facts}."""
    if store.folder is not None:
        for name in store.entries("writers"):
            index = re.fullmatch(r"segment_(\d+)(-\w+|\.json\..*\.__lock)", name)
            if name.startswith("removed-"):
                store.remove(f"writers/{name}")
            elif index and int(index[1]) in segments:
                if index[2].startswith("-"):
                    _remove(store, f"writers/{name}")
                else:
                    store.remove_file(f"writers/{name}")
        return
    folders = {tuple(name.split("/")[:2]) for name in store.names("segment_") if name.count("/") > 1}
    kept = {(segment_name(index), facts["folder"]) for index, facts in segments.items() if "folder" in facts}
    committed = {segment for segment, _ in kept}
    for segment, folder in folders - kept:
        if segment in committed:
            store.remove(f"{segment}/{folder}")


def discard(store: Place, index: int) -> None:
    """Removes a segment from a store."""
    if store.folder is not None:
        _remove(store, segment_name(index))
        return
    # segment.json first, so that a crash in between leaves no half of a segment.
    contents = store.read(commit_name(index))
    if contents is not None:
        store.replace(commit_name(index), contents, None)
    store.remove(segment_name(index))


def _staging(index: int, token: str) -> str:
    return f"writers/{segment_name(index)}-{token}"


def _remove(store: Place, name: str) -> None:
    """Removes a folder of a disk in one step, as its writer may be about to rename it."""
    away = f"writers/removed-{secrets.token_hex(8)}"
    try:
        store.move(name, away)
    except FileNotFoundError:
        return
    store.remove(away)


def _make_room(store: Place, claim: Claim) -> None:
    """Removes a segment's folder without segment.json, which writers of earlier versions left."""
    name = segment_name(claim.index)
    if not store.entries(name) or store.read(commit_name(claim.index)) is not None:
        return
    away = _staging(claim.index, f"{claim.token}old")
    store.move(name, away)
    if store.read(f"{away}/segment.json") is not None:  # committed in between
        store.move(away, name)
    store.remove(away)
