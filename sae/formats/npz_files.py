"""Reads npz archives of arrays, or their headers alone; errors name every damage."""

import errno
import math
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import jax
import numpy as np

from sae.files import ARCHIVE_ERRORS, check_archive, current
from sae.formats import mapped

_SMALL = 1 << 25  # arrays of up to this many bytes may be compressed by any factor
_COMPRESSED = 20  # the factor by which weights may be compressed; trained ones hardly can be
_LENGTHS = 26  # the place, in a member's own header, of the lengths of its name and its extra field, which end it


def read(file: Path, needed: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an archive; large ones that are not compressed are read while they are used.

    Args:
        file: the path, which `sae.files.current` resolves.
        needed: the names that the archive has to have.

    Raises:
        ValueError: for a damaged archive, or a missing array.
    """
    place = current(file.parent, file.name) or file
    if not place.is_file() or not zipfile.is_zipfile(place):
        raise ValueError(f"{file} is damaged: it is no npz archive")
    check(file)
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if missing := [name for name in needed if name not in arrays.files]:
                raise ValueError(f"{file}: it has no {', '.join(missing)}; it holds {', '.join(arrays.files)}")
            values = {name: _mapped(place, arrays.zip, f"{name}.npy") for name in arrays.files}
            values = {name: arrays[name] if value is None else value for name, value in values.items()}
    except ValueError as error:
        raise error if str(error).startswith(str(file)) else ValueError(f"{file}: {error}") from None
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # an offset before the file's beginning
            raise
        raise ValueError(f"{file} is damaged: its directory leads nowhere") from None
    for name, value in values.items():
        if not isinstance(value, np.ndarray):  # numpy gives the bytes of a member without an array's header
            raise ValueError(f"{file}: {name} is damaged: it is no array")
    return values


def check(file: Path) -> None:
    """Checks an archive before numpy, which trusts the sizes in it, makes room for its arrays.

    Args:
        file: the path of an npz archive, which `sae.files.current` resolves.

    Raises:
        ValueError: naming the file and the array, for an array that comes twice, or is shorter or longer than its shape
            says, and for arrays that are far larger than the archive.
    """
    place = current(file.parent, file.name) or file
    size, total, seen = place.stat().st_size, 0, set()
    try:
        check_archive(place)
        with zipfile.ZipFile(place) as archive:
            for member in archive.infolist():
                if member.filename in seen:
                    raise ValueError(f"{member.filename} comes twice")
                seen.add(member.filename)
                total += _checked_size(archive, member)
        if total > max(_SMALL, _COMPRESSED * size):
            raise ValueError(f"its arrays would have {total:,} bytes, of {size:,} in the archive")
    except (*ARCHIVE_ERRORS, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # an offset before the file's beginning
            raise
        raise ValueError(f"{file} is damaged: its directory leads nowhere") from None


def _checked_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Returns the bytes of a member's array, by its header; 0 for a member that is no array, which the reader
    refuses."""
    with archive.open(member) as stream:
        try:
            shape, _, dtype = _read_header(stream)
        except ValueError:
            return 0
        wanted, has = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if wanted != has and not dtype.hasobject:
        raise ValueError(f"{member.filename} would be {dtype}{list(shape)}, of {wanted:,} bytes, and has {has:,}")
    return has


def _mapped(place: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """A large member that is not compressed, once its bytes agree with their checksum; None for any other."""
    if name not in archive.namelist():
        return None
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < mapped.LARGE:
        return None
    with archive.open(member) as stream:
        try:
            shape, fortran, dtype = _read_header(stream)
        except ValueError:
            return None
        if dtype.hasobject:
            return None
        header = stream.tell()
        while stream.read(1 << 20):  # zipfile raises an error where the checksum is another
            pass
    with place.open("rb") as file:
        file.seek(member.header_offset + _LENGTHS)
        lengths = struct.unpack("<HH", file.read(4))
    begin = member.header_offset + _LENGTHS + 4 + sum(lengths)
    return mapped.mapped(place, dtype, shape, begin + header, "F" if fortran else "C")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def headers(file: Path) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Returns the shapes and dtypes of an archive's arrays, whose values are not read; None where the headers cannot be
    read."""
    shapes = {}
    try:
        with zipfile.ZipFile(current(file.parent, file.name) or file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    shape, _, dtype = _read_header(member)
                    if dtype.kind not in "USO":  # JAX has no dtype for texts
                        shapes[name.removesuffix(".npy")] = jax.ShapeDtypeStruct(shape, dtype)
    except (*ARCHIVE_ERRORS, OSError, ValueError):
        return None
    return shapes


def some(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the arrays with some names, where the archive has them; other arrays are not read.

    Raises:
        ValueError: for a damaged archive.
    """
    check(file)
    try:
        with np.load(current(file.parent, file.name) or file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    except (*ARCHIVE_ERRORS, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
