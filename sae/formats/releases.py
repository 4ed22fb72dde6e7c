"""`sae.releases`: lists the autoencoders of a folder or of a repository of the hub, with sites, widths and L0s.

For a folder it reads the headers of files; for a repository the names of its folders, or the record of a release, which
is the one file that is fetched.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae import showing
from sae.autoencoder import Info
from sae.discovery import import_all
from sae.evaluation.counting import Sites
from sae.files import local_path
from sae.formats import configs, gemma_scope_paths, hub
from sae.formats.files import main_files, outline
from sae.formats.format import formats
from sae.formats.l0 import claimed_l0, l0_of_folder
from sae.formats.widths import width_of_folder

RECORD = "release.json"  # of a release that `sae.release` has made: of which sites its autoencoders are


@dataclasses.dataclass(frozen=True)
class Published:
    """One autoencoder of a folder or a repository. `sae.releases` returns them.

    Attributes:
        path: the path of its folder, for `sae.load(where, path)`; "" for the root.
        format: the format's name in the registry.
        site: the input site; None where it is unknown.
        site_out: the output site.
        width: Z, the number of latents; in a repository by the name of its folder ("16k" is 16,384).
        l0: the L0 that was measured, by the folder's name or the record of a release; else the claim or target of its
            file.
        problem: the reason why its file cannot be read; None where it can, or was not read.

    Example:
        >>> sae.save(autoencoder, "saes/layer_1")
        >>> published = sae.releases("saes")[0]
        >>> published.path, published.site, published.width
        ('layer_1', 'layer_1/resid_post', 64)
    """

    path: str
    format: str
    site: str | Sites | None = None
    site_out: str | Sites | None = None
    width: int | None = None
    l0: float | None = None
    problem: str | None = None

    def __repr__(self) -> str:
        parts = [self.format]
        if self.site is not None:
            # pyrefly: ignore[bad-argument-type]  not None here
            out = "" if self.site == self.site_out else f" to {showing.joined(self.site_out)}"
            parts.append(f"{showing.joined(self.site)}{out}")
        if self.width is not None:
            parts.append(showing.count(self.width, "latent"))
        if self.l0 is not None:
            parts.append(f"L0 {self.l0:g}")
        if self.problem is not None:
            parts.append(self.problem)
        return f"Published({self.path or '.'}: {', '.join(parts)})"


def releases(where: str | Path, revision: str | None = None) -> tuple[Published, ...]:
    """Lists the autoencoders of a folder, or of a repository of the hub.

    Args:
        where: a folder, or `owner/name`; a local folder of that name goes first.
        revision: a branch, a tag or a commit of a repository.

    Returns:
        The autoencoders in the order of their paths, in which numbers have the order of their values. One with a
        damaged file is listed with its problem.

    Raises:
        ValueError: for a folder that does not exist; `sae.formats.hub.HubError` as `sae.load` does.

    Example:
        >>> sae.save(autoencoder, "saes/layer_1")
        >>> sae.releases("saes")
        (Published(layer_1: gemma_scope, layer_1/resid_post, 64 latents, L0 ...),)
        >>> published = sae.releases("google/gemma-scope-2b-pt-res")  # doctest: +SKIP
    """
    here = local_path(where)
    if isinstance(where, str) and hub.is_id(where) and not here.exists():
        files = hub.listing(where, revision)
        records = _records(where, revision) if RECORD in files else {}
        listed = [_named(where, file, records) for file in files if _format(file) is not None]
    elif not here.is_dir():
        raise ValueError(f"{where} is no folder, and no repository of the hub")
    else:
        folders = {file.parent for main in main_files() for file in here.rglob(main)}
        hidden = lambda folder: any(part.startswith(".") for part in folder.relative_to(here).parts)  # noqa: E731
        folders = {folder for folder in folders if not hidden(folder)}  # of a release that is being written
        records = _in_record(configs.read(here / RECORD))
        listed = [_outlined(here, folder, records) for folder in folders]
    return tuple(sorted(listed, key=lambda one: [_number(part) for part in re.split(r"(\d+)", one.path)]))


def _number(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)


def _format(file: str) -> str | None:
    """Returns the names of the formats with this main file, joined by "or"; None for no format."""
    import_all(__package__)
    name = file.rpartition("/")[2]
    return " or ".join(title for title, format in formats.items() if format.main == name) or None


def _outlined(root: Path, folder: Path, records: Mapping[str, Any]) -> Published:
    """Returns the autoencoder of a folder, by its headers; the L0 is that in the record of a release, if any."""
    path = "" if folder == root else folder.relative_to(root).as_posix()
    names = [title for title, format in formats.items() if format().of_folder(folder) is not None]
    try:
        one = outline(folder)
    except ValueError as error:
        return Published(path, "+".join(names), problem=str(error))
    wrong = {name: array.dtype for name, array in one.arrays().items() if array.dtype != np.float32}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        return Published(path, "+".join(names), problem=f"{name} must be float32, got {dtype}")
    site, site_out = (None, None) if one.info is None else (one.info.site, one.info.site_out)
    recorded = _recorded(path, records.get(path))
    measured = l0_of_folder(path) if recorded is None else recorded.l0
    l0 = claimed_l0(one) if measured is None else measured  # a run's record has the target
    return Published(path, names[0], site, site_out, one.width, l0)


def _records(repository: str, revision: str | None) -> dict[str, Any]:
    """Returns the descriptions of autoencoders, by path, in the record of a release of this library."""
    return _in_record(configs.read(hub.fetch_file(repository, RECORD, revision)))


def _in_record(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the descriptions of autoencoders, by path, of a record; none where the record is missing."""
    autoencoders = (facts or {}).get("autoencoders")
    return autoencoders if isinstance(autoencoders, dict) else {}


def _recorded(folder: str, about: Any) -> Published | None:
    """Returns the autoencoder that a record describes; None for a missing description, or one of another form."""
    if not isinstance(about, dict):
        return None
    into, out = (tuple(site) if isinstance(site, list) else site for site in (about.get("site"), about.get("site_out")))
    texts = [
        about.get("format"),
        *(one for site in (into, out) for one in (site if isinstance(site, tuple) else [site])),
    ]
    width, l0 = about.get("width"), about.get("l0")
    l0 = about.get("l0_target") if l0 is None else l0
    numbers = type(width) is int and (l0 is None or type(l0) in (int, float))
    if not numbers or not all(isinstance(text, str) for text in texts):
        return None
    return Published(folder, about["format"], into, out, width, l0)


def _named(repository: str, file: str, records: Mapping[str, Any]) -> Published:
    """Returns the autoencoder that the record of a release describes, or else the names of repository and folder."""
    folder = file.rpartition("/")[0]
    if (recorded := _recorded(folder, records.get(folder))) is not None:
        return recorded
    info: Info | None = gemma_scope_paths.info_of(Path("/", repository.rpartition("/")[2], folder))
    return Published(
        folder,
        _format(file) or "",
        None if info is None else info.site,
        None if info is None else info.site_out,
        width_of_folder(folder),
        l0_of_folder(folder),
    )
