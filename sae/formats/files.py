"""`sae.save` and `sae.load`: which format it is, by the files, and that format's reader and writer."""

import warnings
from pathlib import Path

import numpy as np

from sae import progress, showing
from sae.checking import CheckWarning
from sae.checking import check as measure
from sae.discovery import import_all
from sae.files import local_path
from sae.formats import hub
from sae.formats.format import Format, formats
from sae.language_model import LanguageModel
from sae.released import Released
from sae.text import Sequences

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
        # pyrefly: ignore[no-matching-overload]  not None among these
        defaults = sorted((f for f in formats.values() if f.default is not None), key=lambda f: f.default)
        chosen = next((f for f in defaults if f().lacks(autoencoder) is None), defaults[-1])
    else:
        chosen = formats[format]
    chosen().save(autoencoder, local_path(path))


def load(
    where: str | Path,
    path: str | None = None,
    revision: str | None = None,
    *,
    check: LanguageModel | tuple[LanguageModel, Sequences | np.ndarray] | None = None,
) -> Released:
    """Reads an autoencoder of any registered format, which is recognised from the names of the files.

    Of Gemma Scope's own `params.npz`, the path says model and site; `info` is None where nothing is known.

    Args:
      where: a folder, or the file in it (`~` is the user's home); or a repository of the Hugging Face hub,
        `owner/name`, of which this autoencoder's files alone are fetched to the hub's cache (extra `hub`). A folder
        here of that name goes first.
      path: of a folder or a file within a repository, or within a copy of one.
      revision: of a repository: a branch, a tag or a commit; by default its main branch.
      check: a model, or a model and a text. `sae.check` then measures whether the autoencoder fits what its file
        claims; without a text, on the one that comes with this package.

    Raises:
      ValueError: when there is no autoencoder at the path, several of different formats, or a damaged one (a negative
        threshold, say). `sae.formats.hub.HubError`, which is one, when the hub cannot be reached, or does not have or
        give what was asked for.

    Warns:
      CheckWarning: where the check finds that the autoencoder does not fit, with what fits.

    Example:
      >>> autoencoder = sae.load("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
      >>> autoencoder = sae.load("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", check=model)
    """
    place = _place(where, path, revision)
    format, file = find(place)
    autoencoder = format.load(file)
    if check is None:
        return autoencoder
    model, sequences = check if isinstance(check, tuple) else (check, None)
    result = measure(autoencoder, model, sequences)
    if result.fits:
        progress.say(progress.chosen(None), str(result))
    else:
        warnings.warn(str(result), CheckWarning, stacklevel=2)
    return autoencoder


def _place(where: str | Path, path: str | None, revision: str | None) -> Path:
    """Where an autoencoder lies on this machine, fetched from the hub where it is of a repository there."""
    here = local_path(where)
    # A name in a folder that is here is a typing error, unless what only the hub has is asked for.
    meant = path is not None or revision is not None or not here.parent.is_dir()
    if isinstance(where, str) and hub.is_id(where) and not here.exists() and meant:
        return hub.fetch(where, path, revision, main_files())
    if revision is not None:
        raise ValueError(f"a revision is of a repository of the hub, and {where} is here: leave it out")
    if path is None:
        return here
    if not here.is_dir():
        raise ValueError(f"{where} is no folder, so {path!r} cannot be in it")
    inside = Path(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{path!r} is no path within {where}: give one like layer_20/width_16k/average_l0_71")
    return here / inside


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
        others = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        hint = f"; below it are {', '.join(map(str, below[:_NAMED]))}{others}: name one of them"
    raise ValueError(f"no autoencoder at {path}: the folder has no {names}{hint}")
