"""Writes files whole or not at all: under another name first, which then changes to the file's name.

All packages write files this way, and this is the one package that all of them may import. `hashing` is here for the
same reason.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, ending: str = ".new", *, exclusive: bool = False) -> Iterator[Path]:
    """Yields the path of a file to write, which takes the place of `path` when the block ends without an error.

    After a crash at any point `path` has its old contents or all of the new ones, on the disk. After an error the new
    file is removed; a killed process leaves it, and the next one writes over it if the ending is the same.

    Args:
        path: the file to replace. Its folder exists.
        ending: the end of the new file's name, which begins with the name of `path`. Writers that may write at the same
            time need different endings.
        exclusive: whether to refuse a file that exists.

    Yields:
        The path of the new file, in the folder of `path`. The block writes it and closes it.

    Raises:
        FileExistsError: if `path` exists and `exclusive` is set.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.txt")
        >>> with replacing(path) as new:
        ...     size = new.write_text("all of it", encoding="utf-8")
        >>> path.read_text(encoding="utf-8")
        'all of it'
    """
    new = path.with_name(path.name + ending)
    try:
        yield new
        with open(new, "r+b") as file:  # Windows syncs no file that is open for reading alone
            os.fsync(file.fileno())
        if exclusive:
            os.link(new, path)
        else:
            os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if exclusive:
        new.unlink()
