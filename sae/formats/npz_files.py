"""npz archives of arrays: read with every damage named, or their headers alone."""

import errno
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import jax
import numpy as np

from sae.files import ARCHIVE_ERRORS, check_archive, current

_SMALL = 1 << 25  # bytes: what so small an archive may hold, however it is compressed
_COMPRESSED = 20  # by how much weights may be compressed; trained ones hardly are


def read(file: Path, needed: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of an archive.

    Args:
        file: its path, where `sae.files.current` looks.
        needed: names that it has to have.

    Raises:
        ValueError: when it is damaged, or lacks an array.
    """
    place = current(file.parent, file.name) or file
    if not place.is_file() or not zipfile.is_zipfile(place):
        raise ValueError(f"{file} is damaged: it is no npz archive")
    check(file)
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if missing := [name for name in needed if name not in arrays.files]:
                raise ValueError(f"{file}: it has no {', '.join(missing)}; it holds {', '.join(arrays.files)}")
            values = {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise error if str(error).startswith(str(file)) else ValueError(f"{file}: {error}") from None
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise ValueError(f"{file} is damaged: its directory leads nowhere") from None
    for name, value in values.items():
        if not isinstance(value, np.ndarray):  # numpy gives the bytes of what has no array's header
            raise ValueError(f"{file}: {name} is damaged: it is no array")
    return values


def check(file: Path) -> None:
    """Checks an archive before numpy makes room for its arrays, whose sizes it believes.

    Args:
        file: an npz archive, where `sae.files.current` looks.

    Raises:
        ValueError: naming the file and the array, for one that is there twice, or is shorter or longer than its shape
            says, and for arrays that are far larger than the archive.
    """
    place = current(file.parent, file.name) or file
    size, total, seen = place.stat().st_size, 0, set()
    try:
        check_archive(place)
        with zipfile.ZipFile(place) as archive:
            for member in archive.infolist():
                if member.filename in seen:
                    raise ValueError(f"{member.filename} is there twice")
                seen.add(member.filename)
                total += _checked_size(archive, member)
        if total > max(_SMALL, _COMPRESSED * size):
            raise ValueError(f"its arrays would have {total:,} bytes, of {size:,} in the archive")
    except (*ARCHIVE_ERRORS, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise ValueError(f"{file} is damaged: its directory leads nowhere") from None


def _checked_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The bytes of a member's array, by its own header; 0 of what is no array, of which the reader says so."""
    with archive.open(member) as stream:
        try:
            shape, _, dtype = _read_header(stream)
        except ValueError:
            return 0
        wanted, has = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if wanted != has and not dtype.hasobject:
        raise ValueError(f"{member.filename} would be {dtype}{list(shape)}, of {wanted:,} bytes, and has {has:,}")
    return has


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def headers(file: Path) -> dict[str, jax.ShapeDtypeStruct] | None:
    """The shapes and dtypes of an archive's arrays, of which nothing else is read; None where that cannot be done."""
    shapes = {}
    try:
        with zipfile.ZipFile(current(file.parent, file.name) or file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    shape, _, dtype = _read_header(member)
                    if dtype.kind not in "USO":  # a text, which JAX has no dtype for
                        shapes[name.removesuffix(".npy")] = jax.ShapeDtypeStruct(shape, dtype)
    except (*ARCHIVE_ERRORS, OSError, ValueError):
        return None
    return shapes


def some(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those arrays of an archive that it has, of some names; the others are not read.

    Raises:
        ValueError: when it is damaged.
    """
    check(file)
    try:
        with np.load(current(file.parent, file.name) or file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    except (*ARCHIVE_ERRORS, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
