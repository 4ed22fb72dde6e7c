"""The place of a store: a folder on a disk or in a bucket (`gs://`, `s3://`), all through tensorstore.

A file is written whole or not at all, and `create` and `move` tell which of two writers was first. A bucket has no
renaming, so `move` is for folders on a disk alone.
"""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
from pathlib import Path

import tensorstore as ts

from mishax_lite.whole_files import replacing
from sae.files import local_path

# The generation of a key that does not exist: a write under this condition creates the key or fails.
_ABSENT = b"\x02"
# tensorstore tries again after an error or a lost connection, but waits without end for a silent one.
_TIMEOUTS = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}
_RETRIES = {"max_retries": 32, "initial_delay": "100ms", "max_delay": "32s"}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder of a file system or of a bucket. `place(…)` makes one.

    Attributes:
        url: the address or the path, as the user gave it.
        folder: the folder on a file system; None in a bucket.
    """

    url: str
    folder: Path | None

    def __str__(self) -> str:
        return self.url

    def spec(self, name: str = "") -> dict:
        """Returns tensorstore's spec of a folder within this one."""
        if self.folder is not None:
            return {"driver": "file", "path": f"{self.folder.resolve() / name}/"}
        for variable, value in _TIMEOUTS.items():
            os.environ.setdefault(variable, value)
        # Not as a URL, in which `%`, `?` and `#` have a meaning.
        scheme, _, rest = self.url.partition("://")
        bucket, _, path = rest.partition("/")
        spec = {"bucket": bucket, "path": "".join(f"{part}/" for part in (path, name) if part)}
        if scheme == "gs":
            return {"driver": "gcs", "gcs_request_retries": _RETRIES, **spec}
        # The variables of Amazon's own tools, for servers of others.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            spec["endpoint"] = endpoint
            spec["aws_region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {"driver": "s3", "s3_request_retries": _RETRIES, **spec}

    def _keys(self) -> ts.KvStore:
        return ts.KvStore.open(self.spec()).result()

    def read(self, name: str) -> bytes | None:
        """Returns a file's contents; None where it does not exist."""
        answer = self._keys().read(name).result()
        return answer.value if answer.state == "value" else None

    def read_json(self, name: str):
        """Returns the value in a JSON file. Raises FileNotFoundError for a missing file, ValueError for one that is not
        JSON; both name the file."""
        contents = self.read(name)
        if contents is None:
            raise FileNotFoundError(f"{self}/{name} is missing")
        return self.parse(name, contents)

    def parse(self, name: str, contents: bytes):
        """Returns the JSON value of a file's contents. Raises ValueError, naming the file, where they are not JSON."""
        try:
            return json.loads(contents)
        except ValueError as error:
            raise ValueError(f"{self}/{name} is damaged: it is not JSON ({error})") from None

    def write(self, name: str, contents: str | bytes) -> None:
        """Replaces a file: a crash leaves the old one or the new one."""
        self._write(name, contents)

    def create(self, name: str, contents: str | bytes) -> bool:
        """Writes a file that does not exist yet. Returns False, and changes nothing, where another writer was first.

        It returns True also where a file with these very contents exists: a write whose answer was lost is tried again,
        and then meets its own file.
        """
        return self._write(name, contents, if_equal=_ABSENT) or self.read(name) == _bytes(contents)

    def replace(self, name: str, old: bytes, contents: str | bytes | None) -> bool:
        """Writes, or with None removes, a file whose contents are still `old`; returns False for other contents.

        As in `create`, a file with the new contents counts as written. So contents that another writer may write too
        have to name their writer.
        """
        if self.folder is not None:
            return _replace(self.folder / name, old, contents)
        file = self._keys().read(name).result()
        if file.state != "value" or file.value != old:
            return False
        if self._write(name, contents, if_equal=file.stamp.generation):
            return True
        return self.read(name) == (None if contents is None else _bytes(contents))

    def _write(self, name: str, contents: str | bytes | None, **condition: bytes) -> bool:
        """Writes or removes a file; returns False where the condition does not hold."""
        if self.folder is not None:
            # pyrefly: ignore[bad-argument-type]  not None here
            return _write(self.folder / name, _bytes(contents), new=bool(condition))
        return bool(self._keys().write(name, contents, **condition).result().generation)

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names, relative to this folder, of all files that begin with `prefix`."""
        span = ts.KvStore.KeyRange(prefix, _after(prefix)) if prefix else ts.KvStore.KeyRange()
        return sorted(name.decode() for name in self._keys().list(span).result())

    def entries(self, name: str) -> list[str]:
        """Returns the names in a folder within this one, on a disk; none where it does not exist."""
        try:
            # pyrefly: ignore[unsupported-operation]  not None here
            return sorted(os.listdir(self.folder / name))
        except FileNotFoundError:
            return []

    def move(self, name: str, to: str) -> bool:
        """Renames a folder within this one, on a disk, in one step. Returns False, and changes nothing, where `to`
        exists and is not empty."""
        try:
            # pyrefly: ignore[unsupported-operation]  not None here
            (self.folder / to).parent.mkdir(parents=True, exist_ok=True)
            # pyrefly: ignore[unsupported-operation]  not None here
            os.rename(self.folder / name, self.folder / to)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        # pyrefly: ignore[unsupported-operation]  not None here
        for parent in {(self.folder / name).parent, (self.folder / to).parent}:
            _sync(parent)
        return True

    def remove_file(self, name: str) -> None:
        """Removes a file, if it exists."""
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            self._keys().write(name, None).result()

    def remove(self, name: str) -> None:
        """Removes a folder within this one with its contents, if it exists."""
        if self.folder is not None:  # also temporary files of killed writers, which no key names
            shutil.rmtree(self.folder / name, ignore_errors=True)
        else:
            self._keys().delete_range(ts.KvStore.KeyRange(f"{name}/", _after(f"{name}/"))).result()

    def uncache(self, name: str) -> None:
        """Drops a file that is on the disk from the kernel's page cache; does nothing in a bucket. Stores are usually
        larger than memory and would push everything else out of it; and pages used again are cheaper than fresh ones,
        by far in virtual machines."""
        if self.folder is None or not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(FileNotFoundError):  # another writer of the same segment may have removed it
            file = os.open(self.folder / name, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)

    def free_bytes(self) -> int | None:
        """Returns the free bytes of the disk, on which the folder need not exist yet; None in a bucket."""
        if self.folder is None:
            return None
        return shutil.disk_usage(self._nearest()).free

    def check_writable(self) -> None:
        """Raises OSError for a folder on a disk that cannot be written to, or made. A bucket fails when it is used."""
        if self.folder is None:
            return
        nearest = self._nearest()
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file, so {self} cannot be a store: name another folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(
                f"nothing can be written to {nearest}, so {self} cannot be a store: name another folder"
            )

    def _nearest(self) -> Path:
        """Returns this folder, or the nearest above it that exists."""
        # pyrefly: ignore[missing-attribute]  not None here
        folder = self.folder.resolve()
        return next(path for path in (folder, *folder.parents) if path.exists())


def place(where: "str | Path | Place") -> Place:
    """Returns the place of a folder's path (`~` is the user's home), `gs://bucket/folder` or `s3://bucket/folder`. The
    address of another server than Amazon's is in AWS_ENDPOINT_URL.

    Raises:
        ValueError: for another kind of address, or a path that tensorstore cannot write to.
    """
    if isinstance(where, Place):
        return where
    scheme, separator, rest = str(where).partition("://")
    if not separator:
        return _folder(local_path(where))
    if scheme == "file":
        return _folder(Path(rest))
    if scheme not in ("gs", "s3"):
        raise ValueError(f"a store is in a folder, gs://bucket/folder or s3://bucket/folder; got {str(where)!r}")
    bucket, _, path = rest.rstrip("/").partition("/")
    if not bucket:
        raise ValueError(f"{str(where)!r} names no bucket: give {scheme}://bucket/folder")
    if {".", ".."} & set(path.split("/")) or not path.isprintable():
        raise ValueError(f"a folder of a bucket has no part . or .. and no control characters; got {str(where)!r}")
    return Place(f"{scheme}://{rest.rstrip('/')}", None)


def _folder(path: Path) -> Place:
    """Returns the place of a folder. tensorstore (0.1.86) takes a backslash for a slash, and would write to another
    folder, so such a path is refused."""
    real = str(path.resolve())
    if "\\" in real or any("\ud800" <= character <= "\udfff" for character in real):
        raise ValueError(f"a store's path has no backslash and is valid UTF-8; got {real!r}: name another folder")
    return Place(str(path), path)


def _bytes(contents: str | bytes) -> bytes:
    return contents.encode() if isinstance(contents, str) else contents


def _sync(folder: Path) -> None:
    """Writes a folder's entries to the disk before it returns."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# On a disk, tensorstore holds a lock while it writes; if its holder were suspended, all others would wait. These
# functions hold no lock.


def _write(file: Path, contents: bytes, new: bool) -> bool:
    """Writes a file whole or not at all. Returns False where it has to be new and exists."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file, _temporary_ending(), exclusive=new) as temporary:
            temporary.write_bytes(contents)
    except FileExistsError:
        return False
    _sync(file.parent)
    return True


def _replace(file: Path, old: bytes, contents: str | bytes | None) -> bool:
    """Moves a file away, which only one writer can do, and puts another in its place. In between the file is
    missing."""
    taken = file.with_name(file.name + _temporary_ending())
    try:
        if file.read_bytes() != old:
            return False
        os.rename(file, taken)
    except FileNotFoundError:
        return False
    try:
        if taken.read_bytes() == old:
            return contents is None or _write(file, _bytes(contents), new=True)
        with contextlib.suppress(FileExistsError):  # another writer has replaced it in between: move it back
            os.link(taken, file)
        return False
    finally:
        taken.unlink(missing_ok=True)


def _temporary_ending() -> str:
    """Returns a new ending for the name of a temporary file beside another, which tensorstore does not list."""
    return f".{secrets.token_hex(8)}.__lock"


def _after(prefix: str) -> str:
    """Returns the least string after all strings that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
