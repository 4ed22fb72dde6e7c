"""`release.json`: the model and the autoencoders of a release. It keeps releases apart.

A release that is made anew, here or in a repository of the hub, replaces the old one only where it continues it: the
same model, layout and repository, and every autoencoder of before at its place.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae import showing
from sae.formats import configs, releases
from sae.releasing import checksums
from sae.releasing.layouts import Placed

NAME = releases.RECORD
_VERSION = 1
_SAME = ("model", "model_fingerprint", "layout", "repository")


def of(placed: Sequence[Placed], layout: str, repository: str | None) -> dict[str, Any]:
    """Returns the contents of the file.

    Args:
        placed: the autoencoders.
        layout: the layout of the release.
        repository: `owner/name`; None where the user names none.
    """
    fingerprints = {one.entry.fingerprint for one in placed if one.entry.fingerprint is not None}
    return {
        "version": _VERSION,
        "model": placed[0].entry.info.model,
        "model_fingerprint": min(fingerprints, default=None),
        "layout": layout,
        "repository": repository,
        "autoencoders": {one.path: _about(one) for one in sorted(placed, key=lambda one: one.path)},
    }


def _about(one: Placed) -> dict[str, Any]:
    measured = one.entry.measured
    return {
        "site": one.entry.info.site,
        "site_out": one.entry.info.site_out,
        "width": one.entry.outline.width,
        "format": one.format,
        "l0": None if measured is None else measured.metrics.l0,
        "l0_target": one.entry.aim,
    }


def text(facts: Mapping[str, Any]) -> str:
    """Returns the file's text."""
    return json.dumps(facts, indent=1) + "\n"


def read(file: Path) -> dict[str, Any] | None:
    """Returns the contents of a `release.json`; None where the file is missing.

    Raises:
        ValueError: for a damaged file, or one of a later version.
    """
    if (facts := configs.read(file)) is None:
        return None
    if facts.get("version") != _VERSION or not isinstance(facts.get("autoencoders"), dict):
        raise ValueError(f"{file} is no record of a release of version {_VERSION}: it is damaged, or of a later one")
    return facts


def of_folder(folder: Path) -> dict[str, Any] | None:
    """Returns the record of the release in a folder; None where the folder is missing or empty.

    Raises:
        ValueError: for a folder that is no release, or has other files in it, which would be lost.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    facts = read(folder / NAME) if folder.is_dir() else None
    if facts is None or not (folder / checksums.NAME).exists():
        raise ValueError(f"{folder} is no release ({NAME} and {checksums.NAME} are missing): name another folder")
    listed = checksums.read(folder / checksums.NAME)
    if others := [name for name in checksums.files(folder) if name not in listed]:
        raise ValueError(
            f"{folder} has files that are not of the release in it: {showing.some(others)}. Move them away, as a new "
            "release replaces the whole folder"
        )
    return facts


def check_continues(before: Mapping[str, Any], after: Mapping[str, Any], where: str | Path) -> None:
    """Raises ValueError, naming the differences, for a release that does not continue the one before it.

    Args:
        before: the record of the release that would be replaced.
        after: the record of the new one.
        where: the folder or the repository, for the message.
    """
    problems = [
        f"{name} is {before.get(name)} there, {after.get(name)} here"
        for name in _SAME
        if before.get(name) != after.get(name) and None not in (before.get(name), after.get(name))
    ]
    old, new = before["autoencoders"], after["autoencoders"]
    if gone := [path for path in old if path not in new]:
        problems.append(f"{showing.some(gone)} would be gone")
    if moved := [path for path in old if path in new and _sites(old[path]) != _sites(new[path])]:
        problems.append(f"{showing.some(moved)} would be of another site")
    if problems:
        raise ValueError(
            f"{where} has another release: {'; '.join(problems)}. Name another place, or give overwrite=True "
            "(--overwrite) to replace it. Nothing was changed"
        )


def _sites(about: Mapping[str, Any]) -> list[Any]:
    return json.loads(json.dumps([about.get("site"), about.get("site_out")]))  # which makes lists of tuples
