"""Gemma Scope's files: `params.npz` with float32 `W_enc W_dec b_enc b_dec threshold` (arXiv 2408.05147), on raw
activations, b_dec not subtracted at the input. Beside it `info.json`; of the
public files, which have none, the path says model and site (`gemma_scope_paths.py`).

What has a skip or is a crosscoder would be misread by others who know that file, so it goes into one of another name:
`autoencoder.npz`, the same with `W_skip`, or with a crosscoder's axes.

The files of a folder are replaced together (`sae.files.replace_together`), and only by what `load` takes.
"""

import dataclasses
import errno
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sae.autoencoder import Info, JumpReLU
from sae.crosscoder import Crosscoder
from sae.files import ARCHIVE_ERRORS, current, read_json, replace_together
from sae.formats import gemma_scope_paths, largest

GEMMA_SCOPE, OWN, INFO = "params.npz", "autoencoder.npz", "info.json"
# Name and number of axes.
ARRAYS = {"W_enc": 2, "W_dec": 2, "b_enc": 1, "b_dec": 1, "threshold": 1}
_CROSSCODER = {"W_enc": 3, "W_dec": 3, "b_enc": 1, "b_dec": 2, "threshold": 1}


def fits_gemma_scope(autoencoder: JumpReLU | Crosscoder) -> bool:
    return isinstance(autoencoder, JumpReLU) and autoencoder.W_skip is None


def save(autoencoder: JumpReLU | Crosscoder, folder: Path, name: str) -> None:
    """Writes the file and, where something is known, `info.json` into a folder; a crash leaves what was there before,
    or all of the new. Of several processes that hold parts of the arrays all have to call it, and the first writes.

    Raises:
      ValueError: for what `params.npz` has no place for, or what `load` would refuse; the folder is left as it is.
    """
    if name == GEMMA_SCOPE and not fits_gemma_scope(autoencoder):
        what = "a crosscoder" if isinstance(autoencoder, Crosscoder) else "an affine skip (W_skip)"
        raise ValueError(f"Gemma Scope's format has no place for {what}")
    present = [n for n in (*ARRAYS, "W_skip") if getattr(autoencoder, n, None) is not None]
    arrays = {n: _whole(n, getattr(autoencoder, n)) for n in present}
    try:
        _check(arrays, isinstance(autoencoder, Crosscoder))
    except ValueError as error:
        raise ValueError(f"this cannot be saved, as nothing could load it: {error}. {folder} is as it was") from None
    info = autoencoder.info
    text = None if info is None else (json.dumps(dataclasses.asdict(info), indent=2) + "\n").encode()
    if jax.process_index() != 0:
        return
    (other,) = {GEMMA_SCOPE, OWN} - {name}  # of an earlier one, which `load` would find
    files = {name: lambda file: np.savez(file, **arrays), other: None, INFO: text}
    replace_together(folder, files | largest.contents(autoencoder.largest, folder))


def _whole(name: str, array: jax.Array) -> np.ndarray:
    """On this process, also where its parts are on the devices of several."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    if not jnp.issubdtype(getattr(array, "dtype", object), jnp.floating):
        raise ValueError(f"{name} must be an array of floating-point numbers, got {array!r:.80}")
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, and refused as that
        return np.asarray(array, np.float32)


def load(file: Path) -> JumpReLU | Crosscoder:
    """Reads a file of either name.

    Raises:
      ValueError: when the file is missing, damaged, or lacks an array.
    """
    folder, name = file.parent, file.name
    file = current(folder, name)
    if file is None or not file.exists():
        raise ValueError(f"no autoencoder at {folder}: there is no {name}")
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is damaged: it is no npz archive")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in ARRAYS if name not in arrays.files]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}; it holds {', '.join(arrays.files)}")
            values = {name: arrays[name] for name in (*ARRAYS, "W_skip") if name in arrays.files}
        for key, value in values.items():
            if not isinstance(value, np.ndarray):  # numpy gives the bytes of what has no array's header
                raise ValueError(f"{key} is damaged: it is no array")
        crosscoder = name == OWN and values["W_enc"].ndim == 3
        _check(values, crosscoder)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise ValueError(f"{file} is damaged: its directory leads nowhere") from None
    return (Crosscoder if crosscoder else JumpReLU)(
        **{name: jnp.asarray(value) for name, value in values.items()},
        info=read_info(folder),
        largest=largest.read(folder, values["W_enc"].shape[-1]),
    )


def is_crosscoder(file: Path) -> bool:
    """Whether a file is a crosscoder's, by the axes of its W_enc, of which no more than the header is read.

    Raises:
      ValueError: when it is damaged.
    """
    if file.name != OWN:
        return False
    try:
        with zipfile.ZipFile(file) as archive, archive.open("W_enc.npy") as member:
            return len(_header(member).shape) == _CROSSCODER["W_enc"]
    except (*ARCHIVE_ERRORS, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def outline(file: Path) -> JumpReLU | Crosscoder:
    """As `load`, with `jax.ShapeDtypeStruct`s in the place of arrays: headers are read, and `info.json`.

    Raises:
      ValueError: as `load` does for a file without the right headers.
    """
    leaves = {}
    try:
        with zipfile.ZipFile(current(file.parent, file.name) or file) as archive:
            for name in (*ARRAYS, "W_skip"):
                if f"{name}.npy" in archive.namelist():
                    with archive.open(f"{name}.npy") as member:
                        leaves[name] = _header(member)
    except (*ARCHIVE_ERRORS, OSError, ValueError):
        return load(file)  # which says what is wrong
    if set(ARRAYS) - set(leaves):
        return load(file)
    crosscoder = file.name == OWN and len(leaves["W_enc"].shape) == 3
    return (Crosscoder if crosscoder else JumpReLU)(**leaves, info=read_info(file.parent))


def _header(member) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a .npy file."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return jax.ShapeDtypeStruct(shape, dtype)


def _check(values: Mapping[str, np.ndarray], crosscoder: bool) -> None:
    """Raises ValueError unless an autoencoder can be made of the arrays; what is saved and what is loaded pass here."""
    ranks = _CROSSCODER if crosscoder else ARRAYS | {"W_skip": 2}
    for name, value in values.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            bad = int((~np.isfinite(value)).sum()) if np.issubdtype(value.dtype, np.inexact) else 0
            raise ValueError(f"{name} must be finite float32, got {value.dtype} with {bad} values that are not finite")
        if value.ndim != ranks[name]:
            more = f"; of {len(value)} stacked ones, each goes by itself" if value.ndim == ranks[name] + 1 else ""
            raise ValueError(f"{name} must have {ranks[name]} axes, got shape {value.shape}{more}")
    if (low := values["threshold"] < 0).any():
        raise ValueError(
            f"threshold must be at least 0, got {int(low.sum())} below it, the least {values['threshold'].min():g}: a "
            "latent would be active where its activation is negative"
        )
    (Crosscoder if crosscoder else JumpReLU)(**values)


def read_info(folder: Path) -> Info | None:
    """Reads what an autoencoder's folder says of it, by its `info.json` or by its path where that is one of Gemma
    Scope's; None where nothing is known.

    Raises:
      ValueError: for a damaged file, by its name.
    """
    file = current(folder, INFO)
    if file is None or not file.exists():
        return gemma_scope_paths.info_of(folder)
    facts = read_json(file)
    try:
        return Info.of_json(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
