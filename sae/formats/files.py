"""`sae.save` and `sae.load`: which format it is, by the files, and that format's reader and writer."""

from pathlib import Path

from sae import showing
from sae.discovery import import_all
from sae.files import local_path
from sae.formats.format import Format, formats
from sae.released import Released

_NAMED = 3  # of the autoencoders below a folder that is none


def save(autoencoder: Released, path: str | Path, format: str | None = None) -> None:
    """Writes an autoencoder to a folder, in the place of the one that was there.

    What `load` would refuse is refused before anything is written, and a crash leaves the old autoencoder whole or the
    new one, each with its own `info`.

    Args:
      autoencoder: on raw activations, as `sae.train` returns it.
      path: the folder.
      format: "gemma_scope" (`params.npz`), "mishax_lite" (`autoencoder.npz`, which also holds an affine skip, a
        crosscoder and every other form), or another registered format. By default Gemma Scope's, where that can hold
        it, else the house's own.

    Raises:
      ValueError: for an unknown format, an autoencoder that the format cannot hold (naming those that can), and what
        nothing could load: values that are not finite, negative thresholds, stacked autoencoders.
      OSError: when it cannot be written; what was there before is kept.

    Example:
      >>> sae.save(autoencoder, "runs/layer_3")
    """
    if not isinstance(autoencoder, Released):
        hint = "of several, each goes into a folder of its own"
        if hasattr(autoencoder, "autoencoders"):
            hint = "result.autoencoders has those of a training, and each goes into a folder of its own"
        raise ValueError(f"sae.save takes one autoencoder, got {showing.kind(autoencoder)}: {hint}")
    import_all(__package__)
    if format is None:
        defaults = sorted((f for f in formats.values() if f.default is not None), key=lambda f: f.default)
        chosen = next((f for f in defaults if f().lacks(autoencoder) is None), defaults[-1])
    else:
        chosen = formats[format]
    chosen().save(autoencoder, local_path(path))


def load(path: str | Path) -> Released:
    """Reads an autoencoder of any registered format, which is recognised from the names of the files.

    Of Gemma Scope's own `params.npz`, the path says model and site; `info` is None where nothing is known.

    Args:
      path: a folder, or the file in it. `~` is the user's home.

    Raises:
      ValueError: when there is no autoencoder at the path, several of different formats, or a damaged one (a negative
        threshold, say).

    Example:
      >>> autoencoder = sae.load("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    """
    format, file = find(local_path(path))
    return format.load(file)


def outline(path: str | Path) -> Released:
    """Reads an autoencoder's `info` and shapes; in the places of its arrays are `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: as `load` does.
    """
    format, file = find(local_path(path))
    return format.outline(file)


def main_files() -> tuple[str, ...]:
    """The names of files by which a folder is an autoencoder's, the default formats' first."""
    import_all(__package__)
    ordered = sorted(formats.values(), key=lambda format: (format.default is None, format.default))
    return tuple(dict.fromkeys(format.main for format in ordered if format.main is not None))


def find(path: Path) -> tuple[Format, Path]:
    """The format of a folder or a file, and its main file.

    Raises:
      ValueError: when nothing is there, nothing is recognised, or several formats are.
    """
    import_all(__package__)
    every = [format() for format in formats.values()]
    if not path.is_dir() and (taking := [format for format in every if format.takes(path)]):
        return taking[0], path  # the reader says what is wrong with it
    if not path.exists():
        raise ValueError(f"no autoencoder at {path}: there is no such folder")
    names = " or ".join(main_files())
    if not path.is_dir():
        raise ValueError(f"no autoencoder at {path}: a file of a known format is called {names}")
    candidates = [(format, file) for format in every if (file := format.of_folder(path)) is not None]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(file.name for _, file in candidates)
        raise ValueError(f"{path} has autoencoders of several formats, {listed}: name the file")
    if parts := [(format, file) for format in every for file in format.parts(path)]:
        if len(parts) == 1:
            return parts[0]
        listed = ", ".join(file.name for _, file in parts[:_NAMED])
        raise ValueError(f"{path} has {len(parts)} autoencoders, {listed}{', ...' * (len(parts) > _NAMED)}: name one")
    below = sorted({file.parent for name in main_files() for file in path.rglob(name)})
    hint = ""
    if below:
        more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        hint = f"; below it are {', '.join(map(str, below[:_NAMED]))}{more}: name one of them"
    raise ValueError(f"no autoencoder at {path}: the folder has no {names}{hint}")
