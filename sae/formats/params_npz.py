"""Gemma Scope's files: `params.npz` with float32 `W_enc W_dec b_enc b_dec threshold` (arXiv 2408.05147), on raw
activations, b_dec not subtracted at the input. Beside it `info.json`, which the public files do not have.

What has a skip or is a crosscoder would be misread by others who know that file, so it goes into one of another name:
`autoencoder.npz`, the same with `W_skip`, or with a crosscoder's axes.
"""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sae.autoencoder import Info, JumpReLU
from sae.crosscoder import Crosscoder
from sae.files import read_json, replace_file

GEMMA_SCOPE, OWN = "params.npz", "autoencoder.npz"
# Name and number of axes.
ARRAYS = {"W_enc": 2, "W_dec": 2, "b_enc": 1, "b_dec": 1, "threshold": 1}
_CROSSCODER = {"W_enc": 3, "W_dec": 3, "b_enc": 1, "b_dec": 2, "threshold": 1}


def fits_gemma_scope(autoencoder: JumpReLU | Crosscoder) -> bool:
    return isinstance(autoencoder, JumpReLU) and autoencoder.W_skip is None


def save(autoencoder: JumpReLU | Crosscoder, folder: Path, name: str) -> None:
    """Writes the file and, where something is known, `info.json` into a folder; the file is whole or not there. Of
    several processes that hold parts of the arrays all have to call it, and the first writes.

    Raises:
      ValueError: for what `params.npz` has no place for.
    """
    if name == GEMMA_SCOPE and not fits_gemma_scope(autoencoder):
        what = "a crosscoder" if isinstance(autoencoder, Crosscoder) else "an affine skip (W_skip)"
        raise ValueError(f"Gemma Scope's format has no place for {what}")
    present = [n for n in (*ARRAYS, "W_skip") if getattr(autoencoder, n, None) is not None]
    arrays = {n: _whole(getattr(autoencoder, n)) for n in present}
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.new"
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    for other in {GEMMA_SCOPE, OWN} - {name}:  # of an earlier one, which `load` would find
        (folder / other).unlink(missing_ok=True)
    if autoencoder.info is not None:
        replace_file(folder / "info.json", json.dumps(dataclasses.asdict(autoencoder.info), indent=2) + "\n")
    temporary.replace(folder / name)


def _whole(array: jax.Array) -> np.ndarray:
    """On this process, also where its parts are on the devices of several."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array, np.float32)


def load(file: Path) -> JumpReLU | Crosscoder:
    """Reads a file of either name.

    Raises:
      ValueError: when the file is missing, damaged, or lacks an array.
    """
    if file.exists() and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is damaged: it is no npz archive")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in ARRAYS if name not in arrays.files]
            if missing:
                raise ValueError(f"{file} has no {', '.join(missing)}; it holds {', '.join(arrays.files)}")
            values = {name: arrays[name] for name in (*ARRAYS, "W_skip") if name in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"no autoencoder at {file.parent}: there is no {file.name}") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    crosscoder = file.name == OWN and values["W_enc"].ndim == 3
    ranks = _CROSSCODER if crosscoder else ARRAYS | {"W_skip": 2}
    for name, value in values.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise ValueError(
                f"{file}: {name} must be finite float32, got {value.dtype} with "
                f"{int((~np.isfinite(value)).sum())} values that are not finite"
            )
        if value.ndim != ranks[name]:
            raise ValueError(f"{file}: {name} must have {ranks[name]} axes, got shape {value.shape}")
    return (Crosscoder if crosscoder else JumpReLU)(
        **{name: jnp.asarray(value) for name, value in values.items()}, info=_info(file.parent / "info.json")
    )


def _info(file: Path) -> Info | None:
    if not file.exists():
        return None
    try:
        return Info(**read_json(file))
    except TypeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
