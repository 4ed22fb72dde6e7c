"""Metrics of autoencoders in folders, kept beside them: what was measured on the same text is read, not computed.

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
COUNTING = 3  # changes where the same record comes to mean other tokens; results of before are computed again
# Of a folder, the autoencoder in it; or its outline, whose arrays are shapes.
Load = Callable[[Path], Released]


def subject(model: LanguageModel, sequences: Sequences) -> str:
    """Returns what every result depends on: the model's parameters and config, its activations' dtype, the text.

    Args:
        model: with its parameters, which are hashed.
        sequences: the text.
    """
    dtype = "" if model.dtype == np.float32 else str(model.dtype)
    return model.fingerprint[:16] + dtype + sequences.fingerprint()[:16]


def identity(folder: Path, of: str, outline: Load = files.outline) -> str:
    """Returns what a result on the autoencoder in a folder depends on.

    Args:
        folder: its files are hashed.
        of: the `subject`.
        outline: the autoencoder without its arrays, for its site: where no file says it, the path does, or the caller.
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
    """Measures the autoencoders in some folders, or reads their `metrics.json` where that is of the same text.

    Those at one site are measured in one pass over the text. The largest activation of each latent is recorded beside
    an autoencoder that has no such record, or that does not say its site, since the record there may be of another one.

    Args:
        folders: each with an autoencoder.
        model: with its tokenizer.
        sequences: the text.
        load: reads an autoencoder, where its folder does not say all of it.
        outline: the same without its arrays.
        progress: as for `sae.evaluate`.
        say: told where metrics could not be kept.

    Returns:
        The metrics in the order of the folders; they have `largest` where they were computed now.

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
    metrics: dict[Path, Any] = {folder: _known(folder, keys[folder]) for folder in folders}
    for group in _groups([folder for folder in folders if metrics[folder] is None], model, load):
        measured = fidelity.evaluate(list(group.values()), model, sequences, progress=progress)
        for (folder, autoencoder), one in zip(group.items(), measured, strict=True):
            metrics[folder] = one
            record = {"identity": keys[folder], "dtype": str(model.dtype), "metrics": one.to_dict()}
            try:
                if autoencoder.largest is None or files.outline(folder).info is None:
                    largest.write(one.largest, folder)
                replace_file(folder / METRICS, json.dumps(record, indent=2) + "\n")
            except OSError as error:  # the figures are there all the same, for this call
                not_kept = f"figures are not kept for the next launch: {folder}: {error.strerror or error}"
    if not_kept:
        say(not_kept)
    return [metrics[folder] for folder in folders]


def check_folders(folders: Sequence[Path], model: LanguageModel, outline: Load = files.outline) -> None:
    """Raises ValueError, naming the folder and both sides, for an autoencoder that does not belong to a model."""
    for folder in folders:
        autoencoder = outline(folder)
        try:
            check_fits(autoencoder, model)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


def target(info: Info | None, name: str) -> str:
    """Returns the L0 that an autoencoder aimed at, in words.

    Args:
        info: its record says it.
        name: of its folder, which says it where there is no record (`target_l0_20`).

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


def _known(folder: Path, key: str) -> Metrics | None:
    """The metrics in a folder for this identity; what cannot be read is as good as missing, and so are metrics beside
    which the largest activations have been recorded nowhere."""
    if not (folder / largest.NAME).exists():
        return None
    try:
        record = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Metrics(**record["metrics"]) if record["identity"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _groups(folders: Sequence[Path], model: LanguageModel, load: Load) -> Iterator[dict[Path, Released]]:
    """Autoencoders that are measured together: neighbours at one site, with one rule for what counts, as far as they
    have room in memory beside each other."""
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
