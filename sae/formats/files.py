"""`sae.save` and `sae.load`."""

from pathlib import Path

from sae.autoencoder import JumpReLU
from sae.formats import params_npz

_SAVERS = {"gemma_scope": params_npz.save}


def save(autoencoder: JumpReLU, path: str | Path, format: str = "gemma_scope") -> None:
    """Writes an autoencoder to a folder.

    Args:
      autoencoder: on raw activations, as `sae.train` returns it.
      path: the folder.
      format: "gemma_scope" (`params.npz`).

    Raises:
      ValueError: for an unknown format, or an autoencoder that the format cannot hold.
    """
    if format not in _SAVERS:
        raise ValueError(f"unknown format {format!r}: there is {', '.join(_SAVERS)}")
    _SAVERS[format](autoencoder, Path(path))


def load(path: str | Path) -> JumpReLU:
    """Reads what `save` wrote, or a `params.npz` of Gemma Scope's own; `info` is None where nothing is known.

    Raises:
      ValueError: when there is no autoencoder at the path, or a damaged one.
    """
    return params_npz.load(Path(path))
