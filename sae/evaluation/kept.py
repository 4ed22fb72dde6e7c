"""Metrics of autoencoders in folders, kept beside them: metrics on the same text are read, not computed again.

`metrics.json` in an autoencoder's folder has the metrics and what they depend on: the model's parameters and config,
the dtype of its activations, the text, the autoencoder's files, its site and its record of which tokens count.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sae.autoencoder import Info
from sae.evaluation import fidelity
from sae.evaluation.fidelity import Metrics, check_fits
from sae.evaluation.matching import counted_of
from sae.families import recorded_aim, recorded_fields
from sae.files import replace_file
from sae.formats import files, largest
from sae.language_model import LanguageModel
from sae.progress import Progress
from sae.released import Released
from sae.text import Sequences

METRICS = "metrics.json"
TOGETHER = 2**30  # bytes of autoencoders that are measured in one pass
COUNTING = 3  # raised when the same record comes to mean other tokens: earlier results are computed again
# Loads the autoencoder of a folder, or its outline, whose arrays are shapes.
Load = Callable[[Path], Released]


def subject(model: LanguageModel, sequences: Sequences) -> str:
    """Returns the identity of what every result depends on: the model's parameters and config, its dtype, the text.

    Args:
        model: with its parameters, which are hashed.
        sequences: the text.
    """
    dtype = "" if model.dtype == np.float32 else str(model.dtype)
    return model.fingerprint[:16] + dtype + sequences.fingerprint()[:16]


def identity(folder: Path, of: str, outline: Load = files.outline) -> str:
    """Returns the identity of what a result on the autoencoder in a folder depends on.

    Args:
        folder: its files are hashed.
        of: what `subject` returned.
        outline: loads the autoencoder without its arrays, for its site, which a file, the path or the caller says.
    """
    paths = [folder / name for name in (*files.main_files(), "info.json")]
    info = outline(folder).info
    # pyrefly: ignore[missing-attribute]  not None here
    parts = [json.dumps([info.site, info.site_out]).encode(), *(path.read_bytes() for path in paths if path.exists())]
    return f"{COUNTING}:{of}" + "".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)


def evaluate_folders(
    folders: Sequence[Path],
    model: LanguageModel,
    sequences: Sequences,
    *,
    load: Load = files.load,
    outline: Load = files.outline,
    progress: Progress | bool | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[Metrics]:
    """Measures the autoencoders in some folders, or reads their `metrics.json`, where it is of the same text.

    Autoencoders at one site are measured in one pass over the text. The largest activation of each latent is recorded
    beside an autoencoder that has no such record, or that does not say its site, since that record may be of another.

    Args:
        folders: each with an autoencoder.
        model: with its tokenizer.
        sequences: the text.
        load: loads an autoencoder, where its folder does not say all of it.
        outline: the same without its arrays.
        progress: as for `sae.evaluate`.
        say: called with a line where metrics could not be kept.

    Returns:
        The metrics in the order of the folders; those that were computed in this call have `largest`.

    Raises:
        ValueError: before any forward pass, naming the folder, for an autoencoder that does not belong to the model.

    Example:
        >>> sae.save(autoencoder, folder)
        >>> (metrics,) = evaluate_folders([folder], model, sequences)
        >>> evaluate_folders([folder], model, sequences) == [metrics]  # read
        True
    """
    check_folders(folders, model, outline)
    of, not_kept = subject(model, sequences), ""
    keys = {folder: identity(folder, of, outline) for folder in folders}
    metrics: dict[Path, Any] = {folder: _read(folder, keys[folder]) for folder in folders}
    for group in _groups([folder for folder in folders if metrics[folder] is None], model, load):
        measured = fidelity.evaluate(list(group.values()), model, sequences, progress=progress)
        for (folder, autoencoder), one in zip(group.items(), measured, strict=True):
            metrics[folder] = one
            record = {"identity": keys[folder], "dtype": str(model.dtype), "metrics": one.to_dict()}
            try:
                if autoencoder.largest is None or files.outline(folder).info is None:
                    largest.write(one.largest, folder)
                replace_file(folder / METRICS, json.dumps(record, indent=2) + "\n")
            except OSError as error:  # this call has the metrics all the same
                not_kept = f"metrics are not kept for the next launch: {folder}: {error.strerror or error}"
    if not_kept:
        say(not_kept)
    return [metrics[folder] for folder in folders]


def check_folders(folders: Sequence[Path], model: LanguageModel, outline: Load = files.outline) -> None:
    """Raises ValueError, naming the folder and both sides, for an autoencoder that does not belong to a model.

    Args:
        folders: each with an autoencoder.
        model: with its tokenizer.
        outline: loads an autoencoder without its arrays.
    """
    for folder in folders:
        autoencoder = outline(folder)
        try:
            check_fits(autoencoder, model)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


def target(info: Info | None, name: str) -> str:
    """Returns the L0 that an autoencoder aimed at, in words.

    Args:
        info: of the autoencoder; its record says the target.
        name: of its folder (`target_l0_20`), which says the target where no record exists.

    Example:
        >>> target(None, "target_l0_20"), target(None, "mine")
        ('20', '–')
    """
    training = {} if info is None else json.loads(info.training)
    if recorded_fields(training):
        aim = recorded_aim(training)
        return "–" if aim is None else f"{aim:g}"
    named = re.match(r"target_l0_([^_]+)", name)
    return named[1] if named else "–"


def _read(folder: Path, key: str) -> Metrics | None:
    """Returns the metrics of this identity in a folder, or None. Metrics that cannot be read count as missing, as do
    metrics without a record of the largest activations."""
    if not (folder / largest.NAME).exists():
        return None
    try:
        record = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Metrics(**record["metrics"]) if record["identity"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _groups(folders: Sequence[Path], model: LanguageModel, load: Load) -> Iterator[dict[Path, Released]]:
    """Yields autoencoders that are measured together: neighbours at one site, with one rule of which tokens count, as
    many as have room in memory."""
    group: dict[Path, Released] = {}
    place, size = None, 0
    for folder in folders:
        autoencoder = load(folder)
        info = autoencoder.info
        nbytes = sum(array.nbytes for array in jax.tree.leaves(autoencoder))
        # pyrefly: ignore[missing-attribute]  not None here
        here = (info.site, info.site_out, counted_of(info, model))
        if group and (place != here or size + nbytes > TOGETHER):
            yield group
            group, size = {}, 0
        group[folder], place, size = autoencoder, here, size + nbytes
    if group:
        yield group
