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
from sae.evaluation.fidelity import Baseline, baseline
from sae.store.manifest import replace_file
from sae.text import Sequences


def identity(folder: Path, sequences: Sequences) -> str:
    """What a result on an autoencoder depends on: its parameters and the text."""
    return hashlib.sha256((folder / "params.npz").read_bytes()).hexdigest()[:16] + sequences.fingerprint()[:16]


def evaluate(model: gemma.Model, folders: list[Path], sequences: Sequences) -> list[sae.Metrics]:
    """The metrics of the autoencoders in some folders, from their `metrics.json` where that is of the same text."""
    baselines: dict[str, Baseline] = {}
    found = []
    for folder in folders:
        file, key = folder / "metrics.json", identity(folder, sequences)
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known.get("identity") != key:
            autoencoder = sae.load(folder)
            if autoencoder.info is None:
                raise ValueError(f"{folder} has no info.json, so its site is unknown")
            site = autoencoder.info.site
            if site not in baselines:
                baselines[site] = baseline(model, sequences.tokens, site, progress=common.PROGRESS)
            metrics = sae.evaluate(
                autoencoder, model, sequences.tokens, known=baselines[site], progress=common.PROGRESS
            )
            known = {"identity": key, "metrics": dataclasses.asdict(metrics)}
            replace_file(file, json.dumps(known, indent=2) + "\n")
        found.append(sae.Metrics(**known["metrics"]))
    return found


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
    print(table(list(zip(folders, evaluate(model, folders, held_out), strict=True))))


if __name__ == "__main__":
    common.run(main)
