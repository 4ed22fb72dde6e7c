"""`sae.save` and `sae.load`."""

from pathlib import Path

from sae import showing
from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.files import current, local_path
from sae.formats import params_npz

_FILES = {"gemma_scope": params_npz.GEMMA_SCOPE, "mishax_lite": params_npz.OWN}


_NAMED = 3  # of the autoencoders below a folder that is none


def save(autoencoder: JumpReLU | Crosscoder, path: str | Path, format: str | None = None) -> None:
    """Writes an autoencoder to a folder, in the place of what another `save` wrote there.

    What `load` would refuse is refused before anything is written, and a crash leaves the old autoencoder whole or the
    new one, each with its own `info`.

    Args:
      autoencoder: on raw activations, as `sae.train` returns it.
      path: the folder.
      format: "gemma_scope" (`params.npz`), or "mishax_lite" (`autoencoder.npz`, which also holds an affine skip, or a
        crosscoder). By default Gemma Scope's, where that can hold it.

    Raises:
      ValueError: for an unknown format, an autoencoder that the format cannot hold, and what nothing could load: values
        that are not finite, negative thresholds, stacked autoencoders.
      OSError: when it cannot be written; what was there before is kept.
    """
    if not isinstance(autoencoder, JumpReLU | Crosscoder):
        hint = "of several, each goes into a folder of its own"
        if hasattr(autoencoder, "autoencoders"):
            hint = "result.autoencoders has those of a training, and each goes into a folder of its own"
        raise ValueError(
            f"sae.save takes one autoencoder, a JumpReLU or a Crosscoder, got {showing.kind(autoencoder)}: {hint}"
        )
    if format is None:
        format = "gemma_scope" if params_npz.fits_gemma_scope(autoencoder) else "mishax_lite"
    if format not in _FILES:
        raise ValueError(f"unknown format {format!r}: there is {', '.join(_FILES)}")
    params_npz.save(autoencoder, local_path(path), _FILES[format])


def load(path: str | Path) -> JumpReLU | Crosscoder:
    """Reads what `save` wrote, or a `params.npz` of Gemma Scope's own, of which the path says model and site;
    `info` is None where nothing is known. `~` is the user's home.

    Raises:
      ValueError: when there is no autoencoder at the path, or a damaged one (a negative threshold, say).
    """
    return params_npz.load(_file(local_path(path)))


def outline(path: str | Path) -> JumpReLU | Crosscoder:
    """Reads an autoencoder's `info` and shapes, and none of its arrays, in whose places are `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: as `load` does.
    """
    return params_npz.outline(_file(local_path(path)))


def _file(path: Path) -> Path:
    if path.suffix == ".npz" and not path.is_dir():
        return path  # the reader says what is wrong with it
    if not path.exists():
        raise ValueError(f"no autoencoder at {path}: there is no such folder")
    if not path.is_dir():
        return path
    for name in _FILES.values():
        if _present(path, name):
            return path / name
    names = " or ".join(_FILES.values())
    below = sorted({file.parent for name in _FILES.values() for file in path.rglob(name)})
    hint = ""
    if below:
        more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        hint = f"; below it are {', '.join(map(str, below[:_NAMED]))}{more}: name one of them"
    raise ValueError(f"no autoencoder at {path}: the folder has no {names}{hint}")


def _present(folder: Path, name: str) -> bool:
    file = current(folder, name)
    return file is not None and file.exists()
