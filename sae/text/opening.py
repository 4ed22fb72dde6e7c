"""Opens files as streams of UTF-8 bytes: unpacked, without a byte order mark, and with errors in words.

A file's first bytes tell how it is packed and encoded. Its name may be wrong: browsers unpack downloads and keep the
name.
"""

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sae.text.members import Members

HEAD = 2**20  # the most bytes in `Stream.head`
_CHUNK = 2**20
PACKED = (".gz", ".zst", ".bz2", ".xz")  # ends of the names of packed files
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
# A skippable frame of zstd, which `pzstd` writes first, begins with one of these.
_MAGIC |= {bytes([0x50 + i]) + b"\x2a\x4d\x18": "zstd" for i in range(16)}
# Longer marks come first: UTF-32's mark begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_REFUSED = {
    b"PK\x03\x04": "a zip archive (or a document of an office program): unpack it, or export it as text",
    b"%PDF-": "a PDF: extract its text first",
}


class Stream(NamedTuple):
    """A file that is being read.

    Attributes:
        file: the file's bytes, unpacked, in UTF-8, without a byte order mark.
        start: the number of bytes of the unpacked file before the first of these.
        head: the first bytes, at most `HEAD`; `file` gives them too.
        whole: whether `head` has all bytes.
    """

    file: io.BufferedReader
    start: int
    head: bytes
    whole: bool


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Stream]:
    """Opens a file for reading.

    Raises:
        ValueError: for a file that is missing, a packed file that is damaged or ends too early, and a file that is no
            text. All errors of later reading are ValueErrors as well; they name the file.

    Example:
        >>> import gzip, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt.gz"
        >>> _ = path.write_bytes(gzip.compress("the sea".encode("utf-16")))
        >>> with open_text(path) as stream:
        ...     stream.file.read()
        b'the sea'
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise unreadable(path, error) from None
    with raw:
        # A packed file may have a packed file in it: `a.gz.gz`.
        file, kind = io.BufferedReader(_Checked(path, "", raw), _CHUNK), ""
        for _ in range(3):
            head = file.peek(6)
            kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
            if not kind:
                break
            file = io.BufferedReader(_Checked(path, kind, _unpacked(path, kind, file)), _CHUNK)
        head = file.peek(HEAD)
        mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
        file.read(len(mark))
        if _MARKS.get(mark, "utf-8") != "utf-8":
            file = io.BufferedReader(_Transcoded(path, _MARKS[mark], file, len(mark)), _CHUNK)
        head = bytes(file.peek(HEAD))
        _check(path, head)
        # pyrefly: ignore[bad-argument-type]  typeshed has BufferedReader of raw files alone
        yield Stream(file, len(mark), head, len(head) < HEAD - len(mark))


def check_regular(path: Path) -> None:
    """Raises ValueError for a pipe or a device, which can be read only once: files are first looked at, and then read.

    Example:
        >>> check_regular(Path("/dev/null"))
        Traceback (most recent call last):
        ...
        ValueError: /dev/null is no file on a disk but a pipe or a device: write its text to a file, and name that
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file on a disk but a pipe or a device: write its text to a file, and name that")


def unreadable(path: Path, error: OSError) -> ValueError:
    """Returns the error for a file that the system cannot read."""
    return ValueError(f"cannot read the text {path}: {error.strerror or error}")


def decode(path: Path, content: bytes, start: int) -> str:
    """Returns the text of bytes that begin at byte `start` of the file.

    Raises:
        ValueError: for bytes that are not UTF-8, with their place in the file.

    Example:
        >>> decode(Path("a.txt"), b"the sea", 0)
        'the sea'
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, content[error.start], start + error.start) from None


def not_utf8(path: Path, byte: int, offset: int) -> ValueError:
    """Returns the error for a byte that is not UTF-8."""
    return ValueError(
        f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it first, such as with "
        "`iconv -f latin1 -t utf-8`"
    )


def _check(path: Path, head: bytes) -> None:
    what = next((what for magic, what in _REFUSED.items() if head.startswith(magic)), None)
    if what is None and head[257:262] == b"ustar":
        what = "a tar archive: unpack it, and name the folder"
    if what is not None:
        raise ValueError(f"{path} is {what}")
    if b"\0" in head:
        raise ValueError(
            f"{path} is no text: byte 0x00 at offset {head.index(0)}. If it is UTF-16 without a byte order mark, "
            "convert it to UTF-8 first"
        )


def _unpacked(path: Path, kind: str, file: BinaryIO) -> BinaryIO:
    if kind == "gzip":
        # pyrefly: ignore[bad-return]  it reads as a BinaryIO does
        return gzip.GzipFile(fileobj=file)
    if kind == "bzip2":
        # pyrefly: ignore[bad-return,bad-argument-type]  it reads as a BinaryIO does
        return Members(file, bz2.BZ2Decompressor)
    if kind == "xz":
        # pyrefly: ignore[bad-return,bad-argument-type]  it reads as a BinaryIO does
        return Members(file, lzma.LZMADecompressor)
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        pass
    else:
        # Large archives are packed with `--long=31`, whose frames need 2 GiB.
        return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: 31})
    try:
        import pyarrow
    except ImportError:
        raise ValueError(
            f"unpacking {path} takes Python 3.14 or pyarrow: pip install pyarrow, or unpack it with `zstd -d`"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


class _Checked(io.RawIOBase):
    """The bytes of a file as an unpacker gives them; errors are ValueErrors that name the path."""

    def __init__(self, path: Path, kind: str, file: BinaryIO):
        self._path, self._kind, self._file = path, kind, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        view, count = memoryview(buffer), 0
        try:
            # Filled up to the end of the file, so that the head of a file is whole.
            while count < len(view) and (piece := self._file.read(len(view) - count)):
                view[count : count + len(piece)] = piece
                count += len(piece)
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from None
        except OSError as error:
            if not self._kind:
                raise unreadable(self._path, error) from None
            raise self._damaged(error) from None
        except Exception as error:  # Python's ZstdError, whose module older Pythons lack
            if self._kind != "zstd" or isinstance(error, ValueError):
                raise
            raise self._damaged(error) from None
        return count

    def _damaged(self, error: Exception) -> ValueError:
        if "requires too much memory" in str(error):
            return ValueError(f"{self._path} was packed with a long window: unpack it with `zstd -d --long=31`")
        return ValueError(
            f"{self._path} is damaged or ends too early: it does not unpack as {self._kind} ({error}); fetch it again"
        )


class _Transcoded(io.RawIOBase):
    """A file in UTF-16 or UTF-32, in UTF-8."""

    def __init__(self, path: Path, encoding: str, file: BinaryIO, start: int):
        self._path, self._encoding, self._file, self._offset = path, encoding, file, start
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        view, count = memoryview(buffer), 0
        while count < len(view):
            if not self._ready:
                if self._ended:
                    break
                self._ready = self._next_piece()
            size = min(len(view) - count, len(self._ready))
            view[count : count + size] = self._ready[:size]
            count, self._ready = count + size, self._ready[size:]
        return count

    def _next_piece(self) -> bytes:
        pending = len(self._decoder.getstate()[0])
        content = self._file.read(_CHUNK)
        self._ended = not content
        try:
            text = self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._path} is not {self._encoding[:6].upper()}, although its byte order mark says so: the bytes at "
                f"offset {self._offset - pending + error.start} are no character"
            ) from None
        self._offset += len(content)
        return text.encode("utf-8")
