"""`sae.save` and `sae.load`: they choose a format, by the names of files, and call its reader or writer."""

import warnings
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

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

_NAMED = 3  # the most autoencoders that an error names


def save(autoencoder: Released, path: str | Path, format: str | None = None) -> None:
    """Writes an autoencoder to a folder, in the place of an old one.

    An autoencoder that `load` would refuse is refused before anything is written. A crash leaves the old autoencoder or
    the new one whole, each with its own `info`.

    Args:
        autoencoder: on raw activations, as `sae.train` returns it.
        path: the folder.
        format: "gemma_scope" (`params.npz`), "mishax_lite" (`autoencoder.npz`, which also holds an affine skip, a
            crosscoder and every other form), or another registered format. By default Gemma Scope's where that can hold
            the autoencoder, else "mishax_lite".

    Raises:
        ValueError: for an unknown format, an autoencoder that the format cannot hold (it names formats that can), and
            values that are not finite, negative thresholds and stacked autoencoders.
        OSError: where the folder cannot be written; the old autoencoder is kept.

    Example:
        >>> sae.save(autoencoder, "runs/layer_1")
        >>> sae.save(autoencoder, "runs/for_saelens", format="saelens")
    """
    if not isinstance(autoencoder, Released):
        hint = "save each of several in a folder of its own"
        if hasattr(autoencoder, "autoencoders"):
            hint = "save each of result.autoencoders in a folder of its own"
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
    mesh: Mesh | None = None,
    check: LanguageModel | tuple[LanguageModel, Sequences | np.ndarray] | None = None,
) -> Released:
    """Reads an autoencoder of any registered format, which is recognised by the names of the files.

    For Gemma Scope's own `params.npz`, the path names the model and the site. `info` is None where they are unknown.

    Args:
        where: a folder, or the file in it (`~` is the user's home); or a repository of the Hugging Face hub,
            `owner/name`, from which this autoencoder's files alone are fetched to the hub's cache (extra `hub`). A
            local folder of that name goes first.
        path: the path of a folder or a file within a repository, or within a copy of one.
        revision: a branch, a tag or a commit of a repository; by default its main branch.
        mesh: devices over which the latents are spread, over all axes but `data`, where these divide the width. Each
            device's part is read by itself, so an autoencoder may be wider than the memory of this process.
        check: a model, or a pair of a model and a text. `sae.check` then measures whether the autoencoder fits its
            file's claims; without a text, on the text that comes with this package.

    Returns:
        The autoencoder, on raw activations.

    Raises:
        ValueError: for a path without an autoencoder, with several of different formats, or with a damaged one (a
            negative threshold, say). Its subclass `sae.formats.hub.HubError`: where the hub cannot be reached, or lacks
            or refuses the files.

    Warns:
        CheckWarning: where the check finds that the autoencoder does not fit its file's claims; it says what fits.

    Example:
        >>> sae.save(autoencoder, "layer_1")
        >>> sae.load("layer_1")
        JumpReLU(layer_1/resid_post of gemma2-tiny: 192 -> 64 latents, float32)
        >>> sae.load("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")  # doctest: +SKIP
        JumpReLU(layer_20/resid_post of gemma2-2b: 2,304 -> 16,384 latents, float32)
    """
    place = _place(where, path, revision)
    format, file = find(place)
    autoencoder = format.load(file, mesh)
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
    """Returns the path of an autoencoder on this machine; one in a repository is fetched from the hub first."""
    here = local_path(where)
    # `owner/name` below a local folder is a typing error, unless a path or a revision says that the hub is meant.
    of_hub = path is not None or revision is not None or not here.parent.is_dir()
    if isinstance(where, str) and hub.is_id(where) and not here.exists() and of_hub:
        return hub.fetch(where, path, revision, main_files())
    if revision is not None:
        raise ValueError(f"a revision is of a repository of the hub, and {where} is a local path: leave it out")
    if path is None:
        return here
    if not here.is_dir():
        raise ValueError(f"{where} is no folder, so {path!r} cannot be in it")
    inside = Path(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{path!r} is no path within {where}: give one like layer_20/width_16k/average_l0_71")
    return here / inside


def outline(path: str | Path) -> Released:
    """Reads an autoencoder's `info` and shapes, with `jax.ShapeDtypeStruct`s in the places of its arrays.

    Raises:
        ValueError: as `load` does.
    """
    format, file = find(local_path(path))
    return format.outline(file)


def main_files() -> tuple[str, ...]:
    """Returns the names of files by which a folder is an autoencoder's, those of the default formats first."""
    import_all(__package__)
    ordered = sorted(formats.values(), key=lambda format: (format.default is None, format.default))
    return tuple(dict.fromkeys(format.main for format in ordered if format.main is not None))


def find(path: Path) -> tuple[Format, Path]:
    """Returns the format of a folder or a file, and its main file.

    Raises:
        ValueError: for a path that does not exist, no known format, or several formats.
    """
    import_all(__package__)
    every = [format() for format in formats.values()]
    if not path.is_dir() and (taking := [format for format in every if format.takes(path)]):
        return taking[0], path  # the reader names any problem
    if not path.exists():
        raise ValueError(f"no autoencoder at {path}: there is no such folder")
    names = " or ".join(main_files())
    if not path.is_dir():
        raise ValueError(f"no autoencoder at {path}: a file of a known format is called {names}")
    candidates = [(format, file) for format in every if (file := format.of_folder(path)) is not None]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(sorted(file.name for _, file in candidates))
        raise ValueError(f"{path} has autoencoders of several formats, {listed}: name the file")
    if parts := [(format, file) for format in every for file in format.parts(path)]:
        if len(parts) == 1:
            return parts[0]
        listed = ", ".join(file.name for _, file in parts[:_NAMED])
        raise ValueError(f"{path} has {len(parts)} autoencoders, {listed}{', ...' * (len(parts) > _NAMED)}: name one")
    below = sorted({file.parent for name in main_files() for file in path.rglob(name)})
    hint = ""
    if below:
        hint = f"; below it are {showing.some(below, _NAMED)}: name one of them"
    raise ValueError(f"no autoencoder at {path}: the folder has no {names}{hint}")
