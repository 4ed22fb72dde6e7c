"""Folders that are replaced whole, as `sae.files` replaces files: whoever looks sees the old folder or the new one."""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_WORKING_FOLDER = -100  # AT_FDCWD: paths are taken as open(2) takes them
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # the kernel or the file system lacks the exchange


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, in which a new version of `folder` can be written before `swap` puts it in its place.

    What is left of the new folder when the block ends is removed; of a process that was killed, the next call removes
    it.

    Args:
        folder: may be missing.

    Yields:
        The path of the new folder, on the file system of `folder`. Its name begins with a dot.

    Raises:
        ValueError: while another process has the new folder of the same `folder`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "pages")
        >>> with beside(folder) as new:
        ...     size = (new / "index.html").write_text("all of it", encoding="utf-8")
        ...     swap(new, folder)
        >>> (folder / "index.html").read_text(encoding="utf-8")
        'all of it'
    """
    new, aside = _name(folder, "new"), _name(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_name(folder, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process writes {folder} now: wait until it ends, or name another folder") from None
    try:
        if aside.exists() and not folder.exists():  # of a process that was killed between two renames
            os.rename(aside, folder)
        for stale in (new, aside):
            if stale.exists():
                shutil.rmtree(stale)
        new.mkdir()
        yield new
    finally:
        try:
            if new.exists():
                shutil.rmtree(new)
            if aside.exists() and folder.exists():
                shutil.rmtree(aside)
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                os.unlink(lock.lock_file)
        finally:
            lock.release()


def swap(new: Path, folder: Path) -> None:
    """Puts a folder in the place of another, which afterwards has the new one's name, or none.

    A process that is killed at any point leaves `folder` as it was, or as it is to be: Linux exchanges two names in one
    step. Where the system or the file system cannot, the old folder is moved aside first. A process that is killed
    right between the two renames leaves no `folder` then, and the next call of `beside` puts the old one back.

    Args:
        new: from `beside`.
        folder: may be missing.
    """
    if not folder.exists():
        os.rename(new, folder)
    elif not _exchange(new, folder):
        os.rename(folder, _name(folder, "old"))
        os.rename(new, folder)


def _name(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{ending}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; returns whether the system could."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # a C library of before 2018
        return False
    if rename(_WORKING_FOLDER, os.fsencode(one), _WORKING_FOLDER, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
