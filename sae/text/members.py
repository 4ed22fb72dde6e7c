"""Files of several packed parts, one after another, as `cat a.bz2 b.bz2`, `pbzip2` and `xz` of several files write
them.

Python's own readers (`bz2.BZ2File`, `lzma.LZMAFile`) silently take damage in any part but the first for the end of the
file. Here a part has to be followed by another part, or by zeros, which fill up.
"""

import io
from collections.abc import Callable
from typing import BinaryIO, Protocol

_CHUNK = 2**18


class Decompressor(Protocol):
    """Unpacks one part: `bz2.BZ2Decompressor`, `lzma.LZMADecompressor`."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Members(io.RawIOBase):
    """The unpacked bytes of all parts.

    Args:
        file: the packed file.
        begin: returns an object that unpacks one part.

    Raises (while reading):
        EOFError: for a part that ends too early.
        OSError, lzma.LZMAError: for a damaged part, and for other bytes than zeros after a part.

    Example:
        >>> import bz2
        >>> Members(io.BytesIO(bz2.compress(b"the ") + bz2.compress(b"sea")), bz2.BZ2Decompressor).read(9)
        b'the sea'
    """

    def __init__(self, file: BinaryIO, begin: Callable[[], Decompressor]):
        self._file, self._begin, self._part = file, begin, begin()
        self._ahead = b""  # bytes that were read and not yet given to the part

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Returns at most `size` bytes; fewer only at the end."""
        pieces, count = [], 0
        while size < 0 or count < size:
            if self._part.eof and not self._next_part():
                break
            content = b""
            if self._part.needs_input and not (content := self._take()):
                raise EOFError("it ends before its end-of-stream marker")
            pieces.append(self._part.decompress(content, -1 if size < 0 else size - count))
            count += len(pieces[-1])
        return b"".join(pieces)

    def _take(self) -> bytes:
        content, self._ahead = self._ahead or self._file.read(_CHUNK), b""
        return content

    def _next_part(self) -> bool:
        """Begins the part after the one that has ended; returns False at the end of the file."""
        rest = self._part.unused_data.lstrip(b"\0")
        while not rest:
            if not (content := self._file.read(_CHUNK)):
                return False
            rest = content.lstrip(b"\0")
        self._part, self._ahead = self._begin(), rest
        return True
