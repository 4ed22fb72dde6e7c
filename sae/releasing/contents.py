"""What a release is made of: the autoencoders below a folder, with what is on record of each.

Nothing is guessed here. What is not on record is None, and of metrics the reason is kept.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae import showing
from sae.autoencoder import Info
from sae.evaluation import kept
from sae.evaluation.fidelity import Metrics
from sae.formats.files import outline
from sae.formats.l0 import claimed_l0
from sae.formats.releases import releases
from sae.released import Released

_DIGITS = 16  # of a fingerprint, in the identity of metrics


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics that are kept beside an autoencoder.

    Attributes:
        metrics: of the fidelity suite.
        model: how the fingerprint of the model begins that they were measured in.
        text: how the fingerprint of the text begins that they were measured on.
    """

    metrics: Metrics
    model: str
    text: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One autoencoder that is to be released.

    Attributes:
        source: its folder.
        name: the path of its folder below the folder that all are in, for messages.
        outline: the autoencoder with shapes in the places of its arrays.
        info: what is on record of it.
        training: how it was trained, the object in `info.training`.
        aim: the L0 that it aimed at, or that its file claims; None where nothing is on record.
        measured: its metrics; None where there are none of the files as they are.
        unmeasured: why there are none, in words.
    """

    source: Path
    name: str
    outline: Released
    info: Info
    training: dict[str, Any]
    aim: float | None
    measured: Measured | None
    unmeasured: str

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the model that it was trained on; None where it is not on record."""
        record = self.info.record
        return None if record is None else record.model_fingerprint


def read(source: Path, only: Sequence[str] = ()) -> list[Entry]:
    """Reads the records of the autoencoders below a folder.

    Args:
        source: the folder.
        only: patterns of paths below it, as `fnmatch` has them; all autoencoders without.

    Returns:
        An entry for each, by path.

    Raises:
        ValueError: for a folder without autoencoders, a pattern that matches none, an autoencoder that cannot be read
            or does not say its model and site, and autoencoders of different models.
    """
    only = (only,) if isinstance(only, str) else only
    published = releases(source)
    if not published:
        raise ValueError(f"no autoencoder under {source}: train some first, or name another folder")
    for pattern in only:
        if not any(fnmatch.fnmatchcase(one.path, pattern) for one in published):
            listed = showing.some(one.path for one in published)
            raise ValueError(f"no autoencoder under {source} matches {pattern!r}: it has {listed}")
    chosen = [one for one in published if not only or any(fnmatch.fnmatchcase(one.path, pattern) for pattern in only)]
    if damaged := [one for one in chosen if one.problem is not None]:
        raise ValueError(f"{source / damaged[0].path} cannot be released: {damaged[0].problem}")
    entries = [_entry(source / one.path, one.path or source.resolve().name) for one in chosen]
    _check_one(entries, "models", lambda entry: entry.info.model)
    _check_one(entries, "models of one name, by their fingerprints", lambda entry: entry.fingerprint)
    _check_one(entries, "models of one name, by their parameters", _parameters)
    _check_one(entries, "units", lambda entry: entry.info.units)
    return entries


def _entry(folder: Path, name: str) -> Entry:
    autoencoder = outline(folder)
    if (info := autoencoder.info) is None:
        raise ValueError(
            f"{folder} says neither its model nor its site, and a release has to: load it, give it an `info` "
            "(dataclasses.replace(autoencoder, info=sae.Info(...))), and save it again"
        )
    _check_names(folder, info)
    measured, reason = _measured(folder, info)
    training = json.loads(info.training)
    return Entry(folder, name, autoencoder, info, training, _aim(autoencoder, folder), measured, reason)


def _check_names(folder: Path, info: Info) -> None:
    """Raises ValueError for a model or a site that a path or a table cannot have: files come from anybody."""
    sites = [site for both in (info.site, info.site_out) for site in ((both,) if isinstance(both, str) else both)]
    for what, name in [("model", info.model), *(("site", site) for site in sites)]:
        parts = name.split("/")
        if not name.isprintable() or set(name) & set("\\|`<>") or {"", ".", ".."} & set(parts):
            raise ValueError(
                f"{folder} cannot be released: its {what} is {name!r}, and a name has printable letters, no `\\|<>`, "
                "and no part that is empty, . or .. between slashes. Give it another `info`, and save it again"
            )


def _aim(autoencoder: Released, folder: Path) -> float | None:
    """The L0 that its file claims, or that its run aimed at; earlier versions have it in the folder's name alone."""
    if (claimed := claimed_l0(autoencoder)) is not None:
        return claimed
    target = kept.target(autoencoder.info, folder.name)
    try:
        return float(target)
    except ValueError:  # a dash: none is on record
        return None


def _measured(folder: Path, info: Info) -> tuple[Measured | None, str]:
    """The metrics beside an autoencoder, and why there are none of its files as they are."""
    try:
        record = json.loads((folder / kept.METRICS).read_text(encoding="utf-8"))
        identity, metrics = str(record["identity"]), Metrics(**record["metrics"])
    except FileNotFoundError:
        return None, "not measured"
    except (ValueError, KeyError, TypeError):
        return None, f"{kept.METRICS} is damaged, or of another version"
    # The identity is that of model and text, and then that of the autoencoder's files.
    start, files = kept.identity(folder, "").split(":")
    if not identity.startswith(f"{start}:") or not identity.endswith(files):
        return None, f"{kept.METRICS} is of other files than are here now"
    subject = identity.removeprefix(f"{start}:").removesuffix(files)
    model, text = subject[:_DIGITS], subject[-_DIGITS:]
    trained = None if info.record is None else info.record.model_fingerprint
    if trained is not None and not trained.startswith(model):
        return None, f"{kept.METRICS} is of another model than it was trained on"
    return Measured(metrics, model, text), ""


def _parameters(entry: Entry) -> str | None:
    """The sha256 of the model's parameters, which is on record in place of a fingerprint in earlier versions."""
    return None if entry.info.record is None else entry.info.record.model_sha256


def _check_one(entries: Sequence[Entry], what: str, of: Callable[[Entry], str | None]) -> None:
    """Raises ValueError, naming two autoencoders, unless all that have a value have the same."""
    first: dict[str, Entry] = {}
    for entry in entries:
        if (value := of(entry)) is not None:
            first.setdefault(value, entry)
    if len(first) > 1:
        (one, a), (other, b), *_ = first.items()
        raise ValueError(
            f"these autoencoders are of different {what}: {a.name} is of {one[:_DIGITS]}, {b.name} of "
            f"{other[:_DIGITS]}. Release those of one by themselves: name their folder, or choose them with `only` "
            "(--only)"
        )
