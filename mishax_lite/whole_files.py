"""Files that are written whole or not at all: under another name first, which is then changed.

All packages write so and none may import another but this one, so it stands here, as `hashing` does.
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
        path: the file that is replaced. Its folder exists.
        ending: of the new file's name, which begins with the name of `path`. Writers that may write at the same time
            need one each.
        exclusive: whether only a file that does not exist yet is made.

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
