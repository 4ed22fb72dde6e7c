"""`sae.releases`: which autoencoders lie in a folder or a repository of the hub, with sites, widths and L0s.

Of a folder, the headers of files tell; of a repository, the names of its folders alone: nothing is fetched.
"""

import dataclasses
import re
from pathlib import Path

from sae import showing
from sae.autoencoder import Info
from sae.discovery import import_all
from sae.evaluation.counting import Sites
from sae.files import local_path
from sae.formats import gemma_scope_paths, hub
from sae.formats.files import main_files, outline
from sae.formats.format import formats
from sae.formats.l0 import claimed_l0, l0_of_folder

_WIDTH = re.compile(r"width_(\d+)(k|m)?(?![a-z\d])", re.IGNORECASE)
_THOUSANDS = {None: 1, "k": 2**10, "m": 2**20}


@dataclasses.dataclass(frozen=True)
class Published:
    """One autoencoder of a folder or a repository.

    Attributes:
        path: of its folder in there, what `sae.load(where, path)` takes; "" for the root.
        format: by its name in the registry.
        site: what goes in; None where it is not known.
        site_out: what comes out.
        width: number of latents; of a repository, as its folder is called ("16k" is 16,384).
        l0: the L0 that it claims.
        problem: why its file cannot be read; None where it can, or where it was not looked at.
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
        where: a folder, or `owner/name`; a folder here of that name goes first.
        revision: of a repository.

    Returns:
        Them by path, numbers in the order of their values. One whose file is damaged is listed with its problem.

    Raises:
        ValueError: for a folder that does not exist; `sae.formats.hub.HubError` as `sae.load` raises it.

    Example:
        >>> sae.releases("runs/scope/saes")
        >>> sae.releases("google/gemma-scope-2b-pt-res")
    """
    here = local_path(where)
    if isinstance(where, str) and hub.is_id(where) and not here.exists():
        listed = [_named(where, file) for file in hub.listing(where, revision) if _format(file) is not None]
    elif not here.is_dir():
        raise ValueError(f"{where} is no folder, and no repository of the hub")
    else:
        folders = {file.parent for main in main_files() for file in here.rglob(main)}
        listed = [_outlined(here, folder) for folder in folders]
    return tuple(sorted(listed, key=lambda one: [_number(part) for part in re.split(r"(\d+)", one.path)]))


def _number(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)


def _format(file: str) -> str | None:
    """The name of the format whose main file this is, or of the several that call theirs so; None where none does."""
    import_all(__package__)
    name = file.rpartition("/")[2]
    return " or ".join(title for title, format in formats.items() if format.main == name) or None


def _outlined(root: Path, folder: Path) -> Published:
    path = "" if folder == root else folder.relative_to(root).as_posix()
    names = [title for title, format in formats.items() if format().of_folder(folder) is not None]
    try:
        one = outline(folder)
    except ValueError as error:
        return Published(path, "+".join(names), problem=str(error))
    site, site_out = (None, None) if one.info is None else (one.info.site, one.info.site_out)
    return Published(path, names[0], site, site_out, one.width, claimed_l0(one))


def _named(repository: str, file: str) -> Published:
    """What the names of a repository and of a folder in it say."""
    folder = file.rpartition("/")[0]
    info: Info | None = gemma_scope_paths.info_of(Path("/", repository.rpartition("/")[2], folder))
    width = _WIDTH.search(folder)
    return Published(
        folder,
        _format(file) or "",
        None if info is None else info.site,
        None if info is None else info.site_out,
        None if width is None else int(width[1]) * _THOUSANDS[width[2].lower() if width[2] else None],
        l0_of_folder(folder),
    )
