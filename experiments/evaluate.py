"""Measures autoencoders on held-out text.

    python -m experiments.evaluate --saes_dir=runs/saes

Model, text, length and which tokens count are those of the training, as far as the autoencoders record them;
--held_out=FILE measures on another text.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags

import sae
from sae import showing
from sae.evaluation import tables
from sae.evaluation.matching import counted_of
from sae.explorer.pages import About
from sae.families import recorded_fields
from sae.files import local_path, replace_file
from sae.formats import largest
from sae.formats.files import main_files, outline
from sae.text import Sequences

from . import autoencoders, common, recorded, running
from .train import SAES_DIR

METRICS = "metrics.json"
TOGETHER = 2**30  # bytes of autoencoders that are measured in one pass
COUNTING = 3  # changes where the same record comes to mean other tokens; results of before are computed again
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("saes_dir")
flags.declare_key_flag("site")


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or have no effect."""
    running.refuse(["max_sequences"], "nothing is harvested; --eval_sequences is for the held-out text")
    common.check_texts()


def subject(model: sae.LanguageModel, sequences: Sequences) -> str:
    """What every result depends on: the model's parameters and config, the dtype of its activations, and the text."""
    dtype = "" if model.dtype == np.float32 else str(model.dtype)
    return model.fingerprint[:16] + dtype + sequences.fingerprint()[:16]


def identity(folder: Path, of: str, model: sae.LanguageModel) -> str:
    """What a result on the autoencoder in a folder depends on, beside the subject: its parameters, its site, its record
    of which tokens count, and how this version reads that."""
    files = [folder / name for name in (*main_files(), "info.json")]
    # The site by name too: where no file says it, the path does, or --site.
    info = autoencoders.outline(folder, model).info
    parts = [json.dumps([info.site, info.site_out]).encode(), *(file.read_bytes() for file in files if file.exists())]
    return f"{COUNTING}:{of}" + "".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)


def _known(folder: Path, key: str) -> sae.Metrics | None:
    """The metrics in a folder for this identity; what cannot be read is as good as not there, and so are metrics beside
    which the largest activations have been recorded nowhere."""
    if not (folder / largest.NAME).exists():
        return None
    try:
        known = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return sae.Metrics(**known["metrics"]) if known["identity"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def evaluate(model: sae.LanguageModel, folders: list[Path], sequences: Sequences) -> list[sae.Metrics]:
    """The metrics of the autoencoders in some folders, from their `metrics.json` where that is of the same text. Those
    at one site are measured in one pass over the text.

    The largest activation of each latent is recorded beside an autoencoder that has no such record, or that does not
    say its site, since the record there may be of another one.

    Raises:
      ValueError: before any forward pass, for an autoencoder that does not belong to the model.
    """
    recorded.check(folders, model)
    of, not_kept = subject(model, sequences), ""
    keys = {folder: identity(folder, of, model) for folder in folders}
    metrics = {folder: _known(folder, keys[folder]) for folder in folders}
    for group in _groups([folder for folder in folders if metrics[folder] is None], model):
        measured = sae.evaluate(list(group.values()), model, sequences, progress=common.progress)
        for (folder, autoencoder), one in zip(group.items(), measured, strict=True):
            metrics[folder] = one
            record = {"identity": keys[folder], "dtype": str(model.dtype), "metrics": one.to_dict()}
            try:
                if autoencoder.largest is None or outline(folder).info is None:
                    largest.write(one.largest, folder)
                replace_file(folder / METRICS, json.dumps(record, indent=2) + "\n")
            except OSError as error:  # the figures are there all the same, for this launch
                not_kept = f"figures are not kept for the next launch: {folder}: {error.strerror or error}"
    if not_kept:
        print(not_kept, file=sys.stderr)
    return [metrics[folder] for folder in folders]


def _groups(folders: list[Path], model: sae.LanguageModel) -> Iterator[dict[Path, sae.JumpReLU | sae.Crosscoder]]:
    """Autoencoders that are measured together: neighbours at one site, with one rule for what counts, as far as they
    have room in memory beside each other."""
    group: dict[Path, sae.JumpReLU | sae.Crosscoder] = {}
    place, size = None, 0
    for folder in folders:
        autoencoder = autoencoders.load(folder, model)
        info = autoencoder.info
        own = sum(array.nbytes for array in jax.tree.leaves(autoencoder))
        here = (info.site, info.site_out, counted_of(info, model))
        if group and (place != here or size + own > TOGETHER):
            yield group
            group, size = {}, 0
        group[folder], place, size = autoencoder, here, size + own
    if group:
        yield group


def target(folder: Path) -> str:
    """The L0 that an autoencoder aimed at, from its record, or else its folder's name (`naming.run_names`)."""
    info = outline(folder).info
    config = {} if info is None else recorded_fields(json.loads(info.training))
    if config:
        return "–" if config.get("l0_target") is None else f"{config['l0_target']:g}"
    named = re.match(r"target_l0_([^_]+)", folder.name)
    return named[1] if named else "–"


def table(rows: list[tuple[Path, sae.Metrics]]) -> str:
    """The figures as text, a line for each autoencoder."""
    return tables.table([m for _, m in rows], [target(folder) for folder, _ in rows])


def heading(model: sae.LanguageModel, metrics: list[sae.Metrics], about: About) -> str:
    """Over which tokens the figures are."""
    tokens = showing.count(metrics[0].tokens, "token")
    return f"{common.model_name(model)}, on {tokens} of {about.text}; left out: {about.omissions}"


def main():
    common.keep_compiled_programs()
    folders = common.autoencoder_folders(local_path(SAES_DIR.value))
    at_hand = recorded.settle(folders)
    model = common.load_model(map(common.activation_dtype, folders))
    recorded.check(folders, model)
    held_out = common.held_out_text(model, at_hand)
    metrics = evaluate(model, folders, held_out)
    print(heading(model, metrics, recorded.about(folders, model, held_out, at_hand)))
    print(table(list(zip(folders, metrics, strict=True))))


if __name__ == "__main__":
    running.run(main, check_flags)
