"""Measures autoencoders on held-out text.

python -m experiments.evaluate --saes_dir=runs/saes
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from absl import flags

import gemma
import sae
from experiments import common
from experiments.common import AUTOENCODER_FILES
from experiments.train import SAES_DIR
from sae.evaluation.counting import sinks_of
from sae.evaluation.fidelity import Baseline, baseline
from sae.files import replace_file
from sae.harvesting import parameter_hash
from sae.text import Sequences

# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("saes_dir")


def subject(model: gemma.Model, sequences: Sequences) -> str:
    """What every result depends on: the model's parameters and the text."""
    return parameter_hash(model)[:16] + sequences.fingerprint()[:16]


def identity(folder: Path, of: str) -> str:
    """What a result on the autoencoder in a folder depends on, beside the subject: its parameters and its site."""
    files = [folder / name for name in (*AUTOENCODER_FILES, "info.json")]
    return of + "".join(hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files if f.exists())


def _known(file: Path, key: str) -> sae.Metrics | None:
    """The metrics that a file has for this identity; what cannot be read is as good as not there."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return sae.Metrics(**known["metrics"]) if known["identity"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def evaluate(model: gemma.Model, folders: list[Path], sequences: Sequences) -> list[sae.Metrics]:
    """The metrics of the autoencoders in some folders, from their `metrics.json` where that is of the same text."""
    baselines: dict[tuple, Baseline] = {}
    found, of = [], subject(model, sequences)
    for folder in folders:
        file, key = folder / "metrics.json", identity(folder, of)
        metrics = _known(file, key)
        if metrics is None:
            autoencoder = sae.load(folder)
            if autoencoder.info is None:
                raise ValueError(f"{folder} has no info.json, so its site is unknown")
            site, sinks = key_of = autoencoder.info.site_out, sinks_of(autoencoder.info)
            if key_of not in baselines:
                baselines[key_of] = baseline(model, sequences.tokens, site, sinks=sinks, progress=common.progress)
            metrics = sae.evaluate(
                autoencoder, model, sequences.tokens, known=baselines[key_of], progress=common.progress
            )
            record = {"identity": key, "metrics": dataclasses.asdict(metrics)}
            replace_file(file, json.dumps(record, indent=2) + "\n")
        found.append(metrics)
    return found


def target(folder: Path) -> str:
    """What an autoencoder aimed at, from its folder's name (`common.autoencoder_folders_of`)."""
    found = re.match(r"target_l0_([^_]+)", folder.name)
    return found[1] if found else "–"


def table(rows: list[tuple[Path, sae.Metrics]]) -> str:
    """The figures as text, a line for each autoencoder."""
    lines = ["site                   width  target     L0    FVU  loss recovered  dead latents"]
    for folder, m in rows:
        lines.append(
            f"{m.site:22} {m.width:5}  {target(folder):>6} {m.l0:6.1f}  {m.fvu:.3f}"
            f"  {m.loss_recovered:14.3f}  {m.dead:12}"
        )
    return "\n".join(lines)


def main():
    model = gemma.load(common.MODEL.value)
    _, held_out = common.texts(model)
    folders = common.autoencoder_folders(Path(SAES_DIR.value))
    print(table(list(zip(folders, evaluate(model, folders, held_out), strict=True))))


if __name__ == "__main__":
    common.run(main)
