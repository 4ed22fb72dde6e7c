"""Measures autoencoders on held-out text.

python -m experiments.evaluate --saes_dir=runs/saes
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import gemma
import sae
from experiments import common
from experiments.train import SAES_DIR
from sae.store.manifest import replace_file
from sae.text import Sequences


def identity(folder: Path, sequences: Sequences) -> str:
    """What a result on an autoencoder depends on: its parameters and the text."""
    return hashlib.sha256((folder / "params.npz").read_bytes()).hexdigest()[:16] + sequences.fingerprint()[:16]


def evaluate(model: gemma.Model, folder: Path, sequences: Sequences) -> sae.Metrics:
    """The metrics of the autoencoder in a folder, from its `metrics.json` where that is of the same text."""
    file, key = folder / "metrics.json", identity(folder, sequences)
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["identity"] == key:
            return sae.Metrics(**known["metrics"])
    metrics = sae.evaluate(sae.load(folder), model, sequences.tokens, progress=common.PROGRESS)
    replace_file(file, json.dumps({"identity": key, "metrics": dataclasses.asdict(metrics)}, indent=2) + "\n")
    return metrics


def target(folder: Path) -> str:
    """What an autoencoder aimed at, from its folder's name."""
    return folder.name.rsplit("_", 1)[-1] if folder.name.startswith("target_l0_") else "–"


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
    print(table([(folder, evaluate(model, folder, held_out)) for folder in folders]))


if __name__ == "__main__":
    common.run(main)
