"""Paths of files on this machine, `~` included, or in a bucket (`gs://`, `s3://`), through `etils.epath`.

`etils.epath` comes with Orbax. It reads buckets through fsspec, with `gcsfs` or `s3fs`, or through TensorFlow.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from etils import epath

# `pathlib.Path("gs://bucket/a")` is `gs:/bucket/a`.
_BUCKET = re.compile(r"(gs|s3|az|hf):/{1,2}(?=[^/])")
T = TypeVar("T")


def path(source: str | os.PathLike) -> Any:
    """Returns the path of a file or folder.

    Raises:
        ValueError: for the home of a user that this machine lacks.
    """
    text = os.fspath(source)
    bucket = _BUCKET.match(text)
    if bucket:
        return epath.Path(f"{bucket[1]}://{text[bucket.end() :]}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with the home of a user that this machine does not have") from error


def in_bucket(place: Path) -> bool:
    """Returns whether a path is in a bucket, and not in this machine's own file system."""
    return _BUCKET.match(str(place)) is not None


def absolute(place: str | os.PathLike) -> Path:
    """Returns the absolute path; Orbax takes no other."""
    whole = path(place)
    return whole if in_bucket(whole) else whole.absolute()


def size(file: Any) -> int:
    """Returns the number of bytes of a file."""
    return int(file.stat().length) if in_bucket(file) else file.stat().st_size


def read_bytes(file: Path, offset: int, count: int) -> np.ndarray:
    """Reads uint8 [count] from a file, opened anew so that threads do not share a position.

    Args:
        file: the file.
        offset: the first byte.
        count: the number of bytes.

    Raises:
        ValueError: if the file has fewer bytes.
    """
    if in_bucket(file):
        with file.open("rb") as stream:
            stream.seek(offset)
            data = np.frombuffer(stream.read(count), np.uint8)
    else:
        data = np.fromfile(file, np.uint8, count, offset=offset)
    if data.size < count:
        raise ValueError(f"{file.name} ends at byte {offset + data.size}, within this tensor")
    return data


def reach(place: Path, look: Callable[[], T]) -> T:
    """Returns the result of `look`, with one kind of error for buckets.

    Args:
        place: the path that `look` reads.
        look: a function that reads.

    Raises:
        ValueError: with the reason, if the path is in a bucket that cannot be read.
    """
    if not in_bucket(place):
        return look()
    try:
        return look()
    except ValueError:
        raise
    except ImportError as error:
        raise ValueError(f"reading {place} needs another package: {error} (pip install gcsfs, or s3fs)") from error
    except Exception as error:  # of the bucket's library, of its network
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{place} cannot be read: {reason}") from error
