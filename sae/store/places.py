"""Where a store lies: a folder of a disk, or one of a bucket (`gs://`, `s3://`), all through tensorstore.

There is no renaming in a bucket, so nothing here renames: a file is written whole or not at all, and `create` says
which of two writers was first.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path

import tensorstore as ts

# The generation of a key that is not there: a write that asks for it creates the key or fails.
_ABSENT = b"\x02"


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder of a file system or of a bucket. `place(…)` makes one.

    Attributes:
      url: as the user gave it.
      folder: on a file system; None in a bucket.
    """

    url: str
    folder: Path | None

    def __str__(self) -> str:
        return self.url

    def spec(self, name: str = "") -> dict:
        """tensorstore's name for a folder within this one."""
        path = f"{name}/" if name else ""
        if self.folder is not None:
            return {"driver": "file", "path": f"{self.folder.absolute()}/{path}"}
        spec = ts.KvStore.Spec(self.url.rstrip("/") + "/").to_json()
        # The variables of Amazon's own tools, for servers that are not Amazon's.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if spec["driver"] == "s3" and endpoint:
            spec["endpoint"] = endpoint
            spec["aws_region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {**spec, "path": spec.get("path", "") + path}

    def _keys(self) -> ts.KvStore:
        return ts.KvStore.open(self.spec()).result()

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where it is not there."""
        found = self._keys().read(name).result()
        return found.value if found.state == "value" else None

    def read_json(self, name: str):
        """Raises FileNotFoundError, or ValueError when it is not JSON; both name the file."""
        contents = self.read(name)
        if contents is None:
            raise FileNotFoundError(f"{self}/{name} is missing")
        try:
            return json.loads(contents)
        except ValueError as error:
            raise ValueError(f"{self}/{name} is damaged: it is not JSON ({error})") from None

    def write(self, name: str, contents: str | bytes) -> None:
        """Replaces a file: a crash leaves the old one or the new one."""
        self._keys().write(name, contents).result()

    def create(self, name: str, contents: str | bytes) -> bool:
        """Writes a file that is not there yet. False, and nothing is changed, where somebody was first."""
        return bool(self._keys().write(name, contents, if_equal=_ABSENT).result().generation)

    def replace(self, name: str, old: bytes, contents: str | bytes | None) -> bool:
        """Writes, or with None removes, a file whose contents are still `old`; False where they are not."""
        keys = self._keys()
        found = keys.read(name).result()
        if found.state != "value" or found.value != old:
            return False
        return bool(keys.write(name, contents, if_equal=found.stamp.generation).result().generation)

    def names(self, prefix: str = "") -> list[str]:
        """All files whose names, relative to this folder, begin with `prefix`."""
        span = ts.KvStore.KeyRange(prefix, _after(prefix)) if prefix else ts.KvStore.KeyRange()
        return sorted(name.decode() for name in self._keys().list(span).result())

    def remove(self, name: str) -> None:
        """A folder within this one with all that is in it, if it is there."""
        if self.folder is not None:  # with the temporary files of writers that were killed, which no key names
            shutil.rmtree(self.folder / name, ignore_errors=True)
        else:
            self._keys().delete_range(ts.KvStore.KeyRange(f"{name}/", _after(f"{name}/"))).result()

    def uncache(self, name: str) -> None:
        """Has the kernel forget a file that is on the disk by now, where this is a folder. Stores are larger than
        memory as a rule, and would push everything else out of it; and pages used again are cheaper than fresh ones, in
        virtual machines by far."""
        if self.folder is None or not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(FileNotFoundError):  # another writer of the same segment may have removed it
            file = os.open(self.folder / name, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)

    def free_bytes(self) -> int | None:
        """Of the disk; None in a bucket."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free


def place(where: "str | Path | Place") -> Place:
    """A folder's path, `gs://bucket/folder` or `s3://bucket/folder`; for another server than Amazon's, its address is
    in AWS_ENDPOINT_URL.

    Raises:
      ValueError: for another kind of address.
    """
    if isinstance(where, Place):
        return where
    scheme, separator, rest = str(where).partition("://")
    if not separator:
        return Place(str(where), Path(where))
    if scheme == "file":
        return Place(rest, Path(rest))
    if scheme not in ("gs", "s3"):
        raise ValueError(f"a store is in a folder, gs://bucket/folder or s3://bucket/folder; got {str(where)!r}")
    return Place(str(where).rstrip("/"), None)


def _after(prefix: str) -> str:
    """The least string after all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
