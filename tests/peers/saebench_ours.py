"""Our half of `make test-peers-saebench`: saves autoencoders, and computes some of SAEBench's metrics again.

    python -m tests.peers.saebench_ours write FOLDER
    .venv-peers-saebench/bin/python tests/peers/saebench_theirs.py FOLDER
    python -m tests.peers.saebench_ours read FOLDER

SAEBench takes SAELens's objects, and warns of decoders whose rows are not of norm 1.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import sae
from sae.released import Released
from tests.peers import comparing, ours_files
from tests.peers.ours_files import AUTOENCODER, random


def with_unit_rows(autoencoder: Released) -> Released:
    """Returns an autoencoder with the rows of its decoder scaled to norm 1."""
    W_dec = np.asarray(autoencoder.W_dec)
    return dataclasses.replace(autoencoder, W_dec=W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True))


def write(folder: Path) -> None:
    """An autoencoder of each form that SAELens trains."""
    examples = {
        "relu": random(sae.ReLU, AUTOENCODER, 0),
        "topk": random(sae.TopK, AUTOENCODER, 1, k=5),
        "jumprelu": random(sae.JumpReLU, AUTOENCODER, 2),
        "gated": random(sae.Gated, AUTOENCODER, 3),
    }
    unit = {name: with_unit_rows(autoencoder) for name, autoencoder in examples.items()}
    ours_files.write(unit, folder, "saelens")


def metrics(autoencoder: Released, x: np.ndarray) -> dict[str, float]:
    """Some of SAEBench's core metrics for activations x [B, A], by its names."""
    f, out = np.asarray(autoencoder.encode(x), np.float64), np.asarray(autoencoder(x), np.float64)
    norms_in, norms_out = np.linalg.norm(x, axis=1), np.linalg.norm(out, axis=1)
    variances = ((x - x.mean(axis=0)) ** 2).sum(axis=1)
    return {
        "l0": (f != 0).sum(axis=1).mean(),
        "l1": f.sum(axis=1).mean(),
        "cossim": ((x * out).sum(axis=1) / norms_in / norms_out).mean(),
        "l2_ratio": (norms_out / norms_in).mean(),
        "explained_variance_legacy": (1 - ((x - out) ** 2).sum(axis=1) / variances).mean(),
    }


def read(folder: Path) -> None:
    """Compares SAEBench's metrics with those computed here, on the activations that it measured them on.

    Raises:
      ValueError: for a metric that differs by more than a hundred thousandth of its size.
    """
    for place in sorted((folder / "ours").iterdir()):
        theirs = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        with np.load(place / "activations.npz") as arrays:
            ours = metrics(sae.load(place), arrays["x"])
        off = {name: abs(theirs[name] - value) / max(1, abs(value)) for name, value in ours.items()}
        print(f"{place.name}: SAEBench's {', '.join(off)} are ours, within {max(off.values()):.1e}")
        if not max(off.values()) <= comparing.TOLERANCE:
            raise ValueError(f"{place}: SAEBench's metrics are {theirs}, ours {ours}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
