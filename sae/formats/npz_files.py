"""npz archives of arrays: read with every damage named, or their headers alone."""

import errno
import zipfile
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np

from sae.files import ARCHIVE_ERRORS, current


def read(file: Path, needed: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of an archive.

    Args:
        file: its path, where `sae.files.current` looks.
        needed: names that it has to have.

    Raises:
        ValueError: when it is damaged, or lacks an array.
    """
    place = current(file.parent, file.name) or file
    if not zipfile.is_zipfile(place):
        raise ValueError(f"{file} is damaged: it is no npz archive")
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


def headers(file: Path) -> dict[str, jax.ShapeDtypeStruct] | None:
    """The shapes and dtypes of an archive's arrays, of which nothing else is read; None where that cannot be done."""
    shapes = {}
    try:
        with zipfile.ZipFile(current(file.parent, file.name) or file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    one = version == (1, 0)
                    read_header = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read_header(member)
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
    try:
        with np.load(current(file.parent, file.name) or file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    except (*ARCHIVE_ERRORS, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
