"""`sae.save` and `sae.load`."""

from pathlib import Path

from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.formats import params_npz

_FILES = {"gemma_scope": params_npz.GEMMA_SCOPE, "mishax_lite": params_npz.OWN}


def save(autoencoder: JumpReLU | Crosscoder, path: str | Path, format: str | None = None) -> None:
    """Writes an autoencoder to a folder.

    Args:
      autoencoder: on raw activations, as `sae.train` returns it.
      path: the folder.
      format: "gemma_scope" (`params.npz`), or "mishax_lite" (`autoencoder.npz`, which also holds an affine skip, or a
        crosscoder). By default Gemma Scope's, where that can hold it.

    Raises:
      ValueError: for an unknown format, or an autoencoder that the format cannot hold.
    """
    if format is None:
        format = "gemma_scope" if params_npz.fits_gemma_scope(autoencoder) else "mishax_lite"
    if format not in _FILES:
        raise ValueError(f"unknown format {format!r}: there is {', '.join(_FILES)}")
    params_npz.save(autoencoder, Path(path), _FILES[format])


def load(path: str | Path) -> JumpReLU | Crosscoder:
    """Reads what `save` wrote, or a `params.npz` of Gemma Scope's own; `info` is None where nothing is known.

    Raises:
      ValueError: when there is no autoencoder at the path, or a damaged one.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FILES.values() if (path / name).exists()]
        path = found[0] if found else path / params_npz.GEMMA_SCOPE
    return params_npz.load(path)
