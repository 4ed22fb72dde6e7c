"""`largest.npz` beside an autoencoder's file: the largest activation of each latent, and the number of tokens.

It is a file of its own, since `params.npz` is Gemma Scope's down to the names and `info.json` is for people to read.
"""

import io
from pathlib import Path

import numpy as np

from sae.autoencoder import Largest
from sae.files import ARCHIVE_ERRORS, current, replace_together
from sae.formats import npz_files

NAME = "largest.npz"


def contents(largest: Largest | None, folder: Path) -> dict[str, bytes | None]:
    """Returns the files, for `sae.files.replace_together`, that give a folder this record, or no record for None. It
    returns {} where the folder has the same record already, so that its file stays untouched.

    Args:
        largest: the record of the autoencoder that the folder has or will have.
        folder: the folder, which may be missing.
    """
    if largest is None:
        return {NAME: None}
    if _same(folder, largest):
        return {}
    file = io.BytesIO()
    np.savez(file, largest=largest.values, tokens=np.int64(largest.tokens))
    return {NAME: file.getvalue()}


def write(largest: Largest | None, folder: Path) -> None:
    """Writes this record to a folder, or removes the record for None; a crash leaves the old one or the new one."""
    if changes := contents(largest, folder):
        replace_together(folder, changes)


def _same(folder: Path, largest: Largest) -> bool:
    try:
        return read(folder) == largest
    except ValueError:  # damaged, and to be replaced
        return False


def read(folder: Path, width: int | None = None) -> Largest | None:
    """Returns the record in a folder; None where it has none.

    Args:
        folder: an autoencoder's folder.
        width: Z, the number of latents of the autoencoder there, for a check; None for no check.

    Raises:
        ValueError: for a damaged file, or one of another width; it says how to make it anew.
    """
    file = current(folder, NAME)
    if file is None or not file.exists():
        return None
    try:
        npz_files.check(file)
        with np.load(file, allow_pickle=False) as arrays:
            largest = Largest(arrays["largest"], int(arrays["tokens"]))
        if width not in (None, len(largest.values)):
            raise ValueError(f"it has {len(largest.values)} latents, and the autoencoder beside it has {width}")
        return largest
    except (*ARCHIVE_ERRORS, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged: {error}. Delete it; `python -m experiments.evaluate` records it again"
        ) from None
