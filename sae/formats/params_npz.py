"""Gemma Scope's files: `params.npz` with float32 `W_enc W_dec b_enc b_dec threshold` (arXiv 2408.05147), on raw
activations, b_dec not subtracted at the input. Beside it `info.json`, which the public files do not have."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.files import read_json, replace_file

# Name and number of axes.
ARRAYS = {"W_enc": 2, "W_dec": 2, "b_enc": 1, "b_dec": 1, "threshold": 1}


def save(autoencoder: JumpReLU, folder: Path) -> None:
    """Writes `params.npz` and, where something is known, `info.json` into a folder; the file is whole or not there.

    Raises:
      ValueError: for an affine skip, which this format has no place for.
    """
    if autoencoder.W_skip is not None:
        raise ValueError("Gemma Scope's format has no place for an affine skip (W_skip)")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "params.npz.new"
    with open(temporary, "wb") as file:
        np.savez(file, **{name: np.asarray(getattr(autoencoder, name), np.float32) for name in ARRAYS})
    if autoencoder.info is not None:
        replace_file(folder / "info.json", json.dumps(dataclasses.asdict(autoencoder.info), indent=2) + "\n")
    temporary.replace(folder / "params.npz")


def load(path: Path) -> JumpReLU:
    """Reads a folder, or its `params.npz`.

    Raises:
      ValueError: when the file is missing, damaged, or lacks an array.
    """
    file = path / "params.npz" if path.is_dir() else path
    if file.exists() and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is damaged: it is no npz archive")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in ARRAYS if name not in arrays.files]
            if missing:
                raise ValueError(f"{file} has no {', '.join(missing)}; it holds {', '.join(arrays.files)}")
            values = {name: arrays[name] for name in ARRAYS}
    except FileNotFoundError:
        raise ValueError(f"no autoencoder at {path}: there is no {file.name}") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    for name, value in values.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise ValueError(
                f"{file}: {name} must be finite float32, got {value.dtype} with "
                f"{int((~np.isfinite(value)).sum())} values that are not finite"
            )
        if value.ndim != ARRAYS[name]:
            raise ValueError(f"{file}: {name} must have {ARRAYS[name]} axes, got shape {value.shape}")
    return JumpReLU(
        **{name: jnp.asarray(value) for name, value in values.items()}, info=_info(file.parent / "info.json")
    )


def _info(file: Path) -> Info | None:
    if not file.exists():
        return None
    try:
        return Info(**read_json(file))
    except TypeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
