"""Where a store lies: a folder of a disk, or one of a bucket (`gs://`, `s3://`), all through tensorstore.

A file is written whole or not at all, and `create` and `move` say which of two writers was first. A bucket has no
renaming, so `move` is for folders of a disk alone.
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

# The generation of a key that does not exist: a write that asks for it creates the key or fails.
_ABSENT = b"\x02"
# tensorstore tries again after an error or a connection that was cut, but waits without end for one that says nothing.
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
      url: as the user gave it.
      folder: on a file system; None in a bucket.
    """

    url: str
    folder: Path | None

    def __str__(self) -> str:
        return self.url

    def spec(self, name: str = "") -> dict:
        """tensorstore's name for a folder within this one."""
        if self.folder is not None:
            return {"driver": "file", "path": f"{self.folder.resolve() / name}/"}
        for variable, value in _TIMEOUTS.items():
            os.environ.setdefault(variable, value)
        # Not as a URL, in which `%`, `?` and `#` would mean something.
        scheme, _, rest = self.url.partition("://")
        bucket, _, path = rest.partition("/")
        spec = {"bucket": bucket, "path": "".join(f"{part}/" for part in (path, name) if part)}
        if scheme == "gs":
            return {"driver": "gcs", "gcs_request_retries": _RETRIES, **spec}
        # The variables of Amazon's own tools, for servers that are not Amazon's.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            spec["endpoint"] = endpoint
            spec["aws_region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {"driver": "s3", "s3_request_retries": _RETRIES, **spec}

    def _keys(self) -> ts.KvStore:
        return ts.KvStore.open(self.spec()).result()

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where it does not exist."""
        answer = self._keys().read(name).result()
        return answer.value if answer.state == "value" else None

    def read_json(self, name: str):
        """Raises FileNotFoundError, or ValueError when it is not JSON; both name the file."""
        contents = self.read(name)
        if contents is None:
            raise FileNotFoundError(f"{self}/{name} is missing")
        return self.parse(name, contents)

    def parse(self, name: str, contents: bytes):
        """The JSON of a file. Raises ValueError, naming the file, when it is none."""
        try:
            return json.loads(contents)
        except ValueError as error:
            raise ValueError(f"{self}/{name} is damaged: it is not JSON ({error})") from None

    def write(self, name: str, contents: str | bytes) -> None:
        """Replaces a file: a crash leaves the old one or the new one."""
        self._write(name, contents)

    def create(self, name: str, contents: str | bytes) -> bool:
        """Writes a file that does not exist yet. False, and nothing is changed, where somebody was first.

        True also where a file with these very contents exists: a write that was done and whose answer was lost is
        tried again, and then finds its own file.
        """
        return self._write(name, contents, if_equal=_ABSENT) or self.read(name) == _bytes(contents)

    def replace(self, name: str, old: bytes, contents: str | bytes | None) -> bool:
        """Writes, or with None removes, a file whose contents are still `old`; False where they are not.

        As in `create`, contents that are there by the end count as written. Contents that somebody else may have
        written too have to say whose they are.
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
        """False where the condition does not hold."""
        if self.folder is not None:
            # pyrefly: ignore[bad-argument-type]  not None here
            return _write(self.folder / name, _bytes(contents), new=bool(condition))
        return bool(self._keys().write(name, contents, **condition).result().generation)

    def names(self, prefix: str = "") -> list[str]:
        """All files whose names, relative to this folder, begin with `prefix`."""
        span = ts.KvStore.KeyRange(prefix, _after(prefix)) if prefix else ts.KvStore.KeyRange()
        return sorted(name.decode() for name in self._keys().list(span).result())

    def entries(self, name: str) -> list[str]:
        """What a folder within this one has, on a disk; nothing, where it does not exist."""
        try:
            # pyrefly: ignore[unsupported-operation]  not None here
            return sorted(os.listdir(self.folder / name))
        except FileNotFoundError:
            return []

    def move(self, name: str, to: str) -> bool:
        """Renames a folder within this one, on a disk, which is done at once or not at all. False, and nothing is
        changed, where `to` exists and is not empty."""
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
        """A file, if it exists."""
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            self._keys().write(name, None).result()

    def remove(self, name: str) -> None:
        """A folder within this one with all that is in it, if it exists."""
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
        """Of the disk, on which the folder need not exist yet; None in a bucket."""
        if self.folder is None:
            return None
        return shutil.disk_usage(self._nearest()).free

    def check_writable(self) -> None:
        """Raises OSError where a folder of a disk cannot be written to, or made. A bucket says so when it is used."""
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
        """This folder, or the nearest above it that exists."""
        # pyrefly: ignore[missing-attribute]  not None here
        folder = self.folder.resolve()
        return next(path for path in (folder, *folder.parents) if path.exists())


def place(where: "str | Path | Place") -> Place:
    """A folder's path (`~` is the user's home), `gs://bucket/folder` or `s3://bucket/folder`; for another server than
    Amazon's, its address is in AWS_ENDPOINT_URL.

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
        raise ValueError(f"{str(where)!r} names no bucket: {scheme}://bucket/folder")
    if {".", ".."} & set(path.split("/")) or not path.isprintable():
        raise ValueError(f"a folder of a bucket has no part . or .. and no control characters; got {str(where)!r}")
    return Place(f"{scheme}://{rest.rstrip('/')}", None)


def _folder(path: Path) -> Place:
    """tensorstore (0.1.86) takes a backslash for a slash, and would write to another folder."""
    real = str(path.resolve())
    if "\\" in real or any("\ud800" <= character <= "\udfff" for character in real):
        raise ValueError(f"a store's path has no backslash and is valid UTF-8; got {real!r}: name another folder")
    return Place(str(path), path)


def _bytes(contents: str | bytes) -> bytes:
    return contents.encode() if isinstance(contents, str) else contents


def _sync(folder: Path) -> None:
    """A folder's entries are on the disk when this returns."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# On a disk, tensorstore holds a lock while it writes, for which everybody would wait if its holder were suspended.
# These hold none.


def _write(file: Path, contents: bytes, new: bool) -> bool:
    """Writes a file at once or not at all. False where it is to be new and exists."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file, _temporary_ending(), exclusive=new) as temporary:
            temporary.write_bytes(contents)
    except FileExistsError:
        return False
    _sync(file.parent)
    return True


def _replace(file: Path, old: bytes, contents: str | bytes | None) -> bool:
    """Takes a file away, which only one can, and puts another in its place. In between there is none."""
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
        with contextlib.suppress(FileExistsError):  # somebody has replaced it in between: back to where it was
            os.link(taken, file)
        return False
    finally:
        taken.unlink(missing_ok=True)


def _temporary_ending() -> str:
    """Ends the name of a file of one's own beside another, of the kind that tensorstore does not list."""
    return f".{secrets.token_hex(8)}.__lock"


def _after(prefix: str) -> str:
    """The least string after all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
