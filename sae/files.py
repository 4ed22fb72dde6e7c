"""Files on this machine: paths as the user gives them, whole replacement of one file or of several in a folder, JSON
with errors that name the file, and checks of folders before they are written to."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from mishax_lite.whole_files import replacing

NEW = ".new"  # the end of the names of files that are not in their places yet
_JOURNAL = "replacing.json"
# pathlib makes one slash of two.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:gs|s3|hf|https?):/")


def local_path(source: str | os.PathLike) -> Path:
    """Returns the path of a file or folder, where `~` and `~user` are the home of a user, as in a shell.

    Shells leave `--out_dir=~/runs` unchanged, and the system would take it for a folder called `~`. Such a folder is
    named by `./~`.

    Raises:
        ValueError: for the home of an unknown user, the address of a bucket, and an empty text.

    Example:
        >>> local_path("~/runs") == Path.home() / "runs"
        True
    """
    text, path = os.fspath(source), Path(source)
    if not text:
        raise ValueError("a path is empty: name a file or a folder, the working folder by '.'")
    if address := _ADDRESS.match(text):
        raise ValueError(
            f"a path has to be on this machine, not at an address {address[0]}…; got {text}: download or mount it"
        )
    if not path.parts or not path.parts[0].startswith("~"):
        return path
    if not text.startswith("~"):
        return path.absolute()  # pathlib drops the `./`, and the next reader of the path would see a home
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with the home of a user that this machine does not have") from error


# The errors of zipfile and numpy for a damaged archive; its directory may call a member encrypted, say.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


_DIRECTORY_BYTES = 1 << 18  # the most bytes in an archive's list of members; a member takes about a hundred


def check_archive(path: Path) -> None:
    """Raises ValueError for a zip archive whose list of members is longer than that of any file of arrays: reading the
    list alone would fill the memory. A file that is no archive passes; its reader refuses it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22))
        end = file.read()
        at = end.rfind(b"PK\x05\x06")
        if at < 0 or len(end) < at + 22:
            return
        length = int.from_bytes(end[at + 12 : at + 16], "little")
        if length == 0xFFFFFFFF and at >= 20 and end[at - 20 : at - 16] == b"PK\x06\x07":  # a large archive's record
            file.seek(min(size, int.from_bytes(end[at - 12 : at - 4], "little")) + 40)
            length = int.from_bytes(file.read(8), "little")
    if length > _DIRECTORY_BYTES:
        raise ValueError(f"the list of its members has {length:,} bytes, and at most {_DIRECTORY_BYTES:,} are read")


def read_json(path: Path):
    """Returns the value in a JSON file. Raises ValueError, naming the file, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old one or the new one."""
    with replacing(path, NEW) as new:
        new.write_text(text, encoding="utf-8")


def replace_together(folder: Path, contents: Mapping[str, bytes | Callable[[BinaryIO], None] | None]) -> None:
    """Replaces several files of a folder as one: after a crash at any point, `current` gives all old files or all new
    ones.

    The new files are written beside the old ones. Then the journal `replacing.json` is written, which lists them: from
    there on they count. Then they are renamed, and the journal is removed.

    Args:
        folder: the folder; it is made where it is missing.
        contents: {name: the bytes of the file, or a function that writes them}; None removes a file.

    Raises:
        OSError: where the disk is full, say; the old files are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)  # a call that was killed
    new = {name: content for name, content in contents.items() if content is not None}
    for name in contents.keys() - new.keys():  # left by a call that was killed before it wrote its journal
        (folder / f"{name}{NEW}").unlink(missing_ok=True)
    try:
        for name, content in new.items():
            with open(folder / f"{name}{NEW}", "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        replace_file(folder / _JOURNAL, json.dumps({name: name in new for name in contents}))
    except BaseException:
        if not (folder / _JOURNAL).exists():
            for name in (*new, _JOURNAL):
                (folder / f"{name}{NEW}").unlink(missing_ok=True)
        raise
    _finish(folder)


def current(folder: Path, name: str) -> Path | None:
    """Returns the path with a file's current contents, also after a killed `replace_together`; None where the file was
    removed."""
    listed = _journal(folder)
    if name not in listed:
        return folder / name
    if not listed[name]:
        return None
    new = folder / f"{name}{NEW}"
    return new if new.exists() else folder / name


def _finish(folder: Path) -> None:
    """Moves the files that the journal lists into their places."""
    for name, kept in _journal(folder).items():
        if not kept:
            (folder / name).unlink(missing_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError):  # renamed before the crash
                os.replace(folder / f"{name}{NEW}", folder / name)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _journal(folder: Path) -> dict[str, bool]:
    """Returns {name: whether the file is to exist}; empty without a journal."""
    return read_json(folder / _JOURNAL) if (folder / _JOURNAL).exists() else {}


def check_folder(folder: Path, what: str) -> None:
    """Checks that files can be written to a folder, which need not exist yet; nothing is left behind.

    Args:
        folder: the folder.
        what: the files in words, for the message.

    Raises:
        ValueError: where the folder, or the nearest path above it that exists, is no folder or cannot be written to.
    """
    above = _existing(folder)
    if not above.is_dir():
        raise ValueError(f"{what} cannot go to {folder}: {above} is no folder. Name another one")
    problem = f"{what} cannot go to {folder}: {above} cannot be written to. Name another folder"
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(problem)
    try:  # on some file systems, such as /proc, the permissions alone do not tell
        os.rmdir(tempfile.mkdtemp(dir=above))
    except (FileNotFoundError, PermissionError):
        raise ValueError(problem) from None


def free_bytes(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest path above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
