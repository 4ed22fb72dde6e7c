"""`sae.release`: a folder of autoencoders becomes the folder tree of Gemma Scope 1 or 2, with a card and checksums.

The whole release is written beside the old one, checked by loading it, and put in the place of the old one in one step.
A release that would be the same stays untouched.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from sae import folders, showing
from sae.evaluation import kept
from sae.files import check_folder, free_bytes, local_path, read_json, replace_file
from sae.formats import hub
from sae.formats.files import load, save
from sae.progress import Progress, chosen
from sae.released import Released
from sae.releasing import card, checksums, contents, layouts, manifest, saelens_entry
from sae.releasing.card import Licences
from sae.releasing.layouts import Placed

_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Release:
    """A folder that is ready to be published.

    Attributes:
        folder: the folder.
        paths: the paths of its autoencoders, for `sae.load(folder, path)`.
        changed: whether the folder was written; False where it held the same release already.
        missing: the licences, metrics and records that the card calls missing, a line each.

    Example:
        >>> sae.save(autoencoder, "runs/chosen/mine")
        >>> sae.release("runs/chosen", "runs/release").missing[0]
        'the licence of the autoencoders is not given'
    """

    folder: Path
    paths: tuple[str, ...]
    changed: bool
    missing: tuple[str, ...]

    def __repr__(self) -> str:
        words = "written" if self.changed else "unchanged"
        count = showing.count(len(self.paths), "autoencoder")
        return f"Release({self.folder}: {count}, {words}, {showing.count(len(self.missing), 'fact')} missing)"


def release(
    source: str | Path,
    folder: str | Path,
    *,
    layout: str = "gemma_scope",
    format: str | None = None,
    only: Sequence[str] = (),
    repository: str | None = None,
    licences: Licences = Licences(),  # noqa: B008, it is frozen
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Release:
    """Makes a release: autoencoders in the folders of Gemma Scope 1 or 2, a model card and checksums.

    Beside the autoencoders it has `README.md` (the model card, with a table of all metrics), `tradeoff.png`,
    `pretrained_saes.yaml` (an entry for SAELens), `release.json` and `SHA256SUMS`. The card says which
    facts are missing. Made again of the same autoencoders, a release stays untouched. A process that is killed leaves
    the old release or the new one (`sae.folders.swap` says where that takes a second call).

    Args:
        source: the folder of the autoencoders, such as `runs/scope/saes`. Metrics are those that `sae.evaluation.kept`
            or `python -m experiments.evaluate` has kept beside them.
        folder: where the release goes; outside of `source`. It may hold a release that this one continues.
        layout: "gemma_scope" has a repository for each kind of site, and so takes autoencoders of one kind;
            "gemma_scope_2" has a folder for each.
        format: the format of the files, such as "saelens" or "mishax_lite"; by default the layout's own, which holds
            JumpReLU autoencoders.
        only: patterns of paths below `source`; by default all autoencoders are taken.
        repository: `owner/name` on the hub, which the card and the entry for SAELens name. `push` needs it.
        licences: the licences of the autoencoders, the model and the text.
        overwrite: whether a release of another model, layout or repository, or one that has autoencoders that the new
            one lacks, or whose card was edited, may be replaced.
        progress: a bar over the autoencoders.

    Returns:
        The release.

    Raises:
        ValueError: before anything is written, for autoencoders of different models, or that the layout or the format
            cannot hold, whose model or site can be no path, for a folder that holds something else, and for a release
            that was edited or that this one does not continue.
        OSError: for a disk without room; the old release is kept.

    Example:
        >>> sae.save(autoencoder, "runs/chosen/mine")
        >>> released = sae.release("runs/chosen", "runs/release", licences=sae.Licences("apache-2.0"))
        >>> sae.load("runs/release", released.paths[0]).info == autoencoder.info
        True
    """
    source, folder = local_path(source), local_path(folder).resolve()
    _check_places(source, folder)
    if not isinstance(licences, Licences):
        raise ValueError(f"licences are sae.Licences('apache-2.0', ...), got {licences!r:.60}")
    if repository is not None and not hub.is_id(repository):
        raise ValueError(f"got the repository {repository!r}: a repository of the hub is named owner/name")
    placed = layouts.place(contents.read(source, only), layout, format)
    facts = manifest.of(placed, layout, repository)
    before = manifest.of_folder(folder)
    if before is not None and not overwrite:
        manifest.check_continues(before, facts, folder)
        _check_not_edited(folder)
    check_folder(folder.parent, "a release")
    _check_room(placed, folder)
    with folders.beside(folder) as new:
        for one in chosen(progress)(placed, total=len(placed), desc="autoencoders"):
            _write(one, new / one.path)
        _write_about(placed, layout, repository, licences, new)
        replace_file(new / manifest.NAME, manifest.text(facts))
        sums = checksums.write(new)
        old = folder / checksums.NAME
        same = old.exists() and checksums.read(old) == sums and checksums.problem(folder, sums) is None
        if not same:
            folders.swap(new, folder)
    paths = tuple(one.path for one in placed)
    return Release(folder, paths, not same, tuple(card.missing(placed, licences)))


def _check_places(source: Path, folder: Path) -> None:
    origin = source.resolve()
    if origin == folder or origin in folder.parents or folder in origin.parents:
        raise ValueError(
            f"a release goes to a folder of its own, neither inside of its autoencoders' nor around it: {folder} and "
            f"{source} are not apart"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"a release cannot go to {folder}, which is no folder: name another one")


def _check_not_edited(folder: Path) -> None:
    """Raises ValueError for a release whose texts somebody has edited since: a new one would lose that."""
    sums = checksums.read(folder / checksums.NAME)
    texts = [name for name in (card.NAME, saelens_entry.NAME) if name in sums and (folder / name).exists()]
    if edited := [name for name in texts if checksums.digest(folder / name) != sums[name]]:
        raise ValueError(
            f"{' and '.join(edited)} in {folder} changed since the release, and a new release would lose that. Keep a "
            "copy, and give overwrite=True (--overwrite)"
        )


def _check_room(placed: Sequence[Placed], folder: Path) -> None:
    """Raises OSError for a disk that has no room for the whole release beside the old one."""
    arrays = [array for one in placed for array in jax.tree.leaves(one.entry.outline)]
    needed = sum(4 * math.prod(array.shape) for array in arrays)
    if needed > (free := free_bytes(folder)):
        raise OSError(
            f"the disk is full: the release takes {showing.size(needed)} at {folder}, beside what is there until it is "
            f"whole, and {showing.size(free)} are free. Free some, or release fewer"
        )


def _write(one: Placed, folder: Path) -> None:
    """Writes one autoencoder, and checks that loading gives back the same one."""
    autoencoder = load(one.entry.source)
    save(autoencoder, folder, one.format)
    if one.entry.measured is not None:
        record = (one.entry.source / kept.METRICS).read_text(encoding="utf-8")
        replace_file(folder / kept.METRICS, record)
    if one.format.startswith("gemma_scope_2"):
        _add_l0(one, folder / _CONFIG)
    if what := _difference(autoencoder, load(folder)):
        raise ValueError(
            f"{one.entry.name}: its {what} would not come back from the format {one.format} as it is. Name another "
            "format, such as mishax_lite. Nothing was released"
        )


def _add_l0(one: Placed, file: Path) -> None:
    """Adds to a config the L0 that Gemma Scope 2's configs have, as far as it is on record."""
    entry = one.entry
    l0 = entry.aim
    if l0 is None and entry.measured is not None:
        l0 = entry.measured.metrics.l0
    if l0 is not None:
        config = read_json(file) | {"l0": int(l0) if float(l0).is_integer() else l0}
        replace_file(file, json.dumps(config, indent=2) + "\n")


def _difference(one: Released, other: Released) -> str | None:
    """Returns the name of a part in which two autoencoders differ, to the bit; None where they are equal."""
    if type(one) is not type(other):
        return "form"
    arrays, others = one.arrays(), other.arrays()
    if arrays.keys() != others.keys():
        return "arrays"
    for name, array in arrays.items():
        if np.asarray(array, np.float32).tobytes() != np.asarray(others[name]).tobytes():
            return name
    facts = (*one.numbers, "info", "largest")
    return next((name for name in facts if getattr(one, name) != getattr(other, name)), None)


def _write_about(
    placed: Sequence[Placed], layout: str, repository: str | None, licences: Licences, folder: Path
) -> None:
    """Writes the card, the picture and the entry for SAELens."""
    if metrics := card.metrics_of(placed):
        from sae.explorer import tradeoff  # it alone needs matplotlib

        model = placed[0].entry.info.model
        tradeoff.draw(metrics, folder / card.PICTURE, f"Autoencoders of {model}")
    if (entry := saelens_entry.entry(placed, repository)) is not None:
        replace_file(folder / saelens_entry.NAME, entry)
    replace_file(folder / card.NAME, card.text(placed, layout, repository, licences))
