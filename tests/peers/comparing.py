"""Compares what two programs compute from one file, for the same activations.

Both halves of a peer's test use it, so it imports numpy alone. The half that writes an autoencoder keeps beside it what
goes in and what it computes, in `expected.npz`; the half that reads the autoencoder compares.
"""

import json
from pathlib import Path

import numpy as np

TOLERANCE = 1e-5
OURS = "mishax_lite"
_EXPECTED, _REFUSED, _FIGURES, _PEER = "expected.npz", "refused.txt", "figures.jsonl", "peer.txt"


def keep(folder: Path, x: np.ndarray, latents: np.ndarray, out: np.ndarray) -> None:
    """Writes what an autoencoder computes beside its files.

    Args:
      folder: the autoencoder's.
      x: [B, A], what goes in; [B, L, A] of several layers.
      latents: [B, Z].
      out: [B, A'], what comes out.

    Raises:
      ValueError: for latents that are nearly all active or nearly all 0, where a wrong activation function would not
        show.
    """
    active = float((np.asarray(latents) != 0).mean())
    if not 0.02 < active < 0.98:
        raise ValueError(f"{folder}: {active:.0%} of the latents are active, which shows nothing: choose other sizes")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / _EXPECTED, x=x, latents=latents, out=out)


def keep_refused(folder: Path, word: str) -> None:
    """Writes beside an autoencoder that its reader has to refuse it, with an error that has a word in it."""
    (folder / _REFUSED).write_text(word, encoding="utf-8")


def refused(folder: Path) -> str | None:
    """Returns the word of the error with which the autoencoder of a folder has to be refused; None where it is to be
    read."""
    file = folder / _REFUSED
    return file.read_text(encoding="utf-8") if file.exists() else None


def inputs(folder: Path) -> np.ndarray:
    """Returns what goes into the autoencoder of a folder, as `keep` wrote it."""
    with np.load(folder / _EXPECTED) as arrays:
        return arrays["x"]


def compare(folder: Path, reader: str, latents: np.ndarray, out: np.ndarray) -> None:
    """Compares what a reader computes with what `keep` wrote, prints the largest differences, and adds them to the
    figures of the run.

    Args:
      folder: of one autoencoder, below the run's `ours` or `theirs`.
      reader: the program that read the folder.
      latents: [B, Z], as the reader computes them.
      out: [B, A'].

    Raises:
      ValueError: for other shapes, and for a difference above the tolerance.
    """
    off = {}
    with np.load(folder / _EXPECTED) as expected:
        for name, array in (("latents", latents), ("out", out)):
            want = expected[name]
            if np.shape(array) != want.shape:
                raise ValueError(f"{folder}: {reader} computes {name} of shape {np.shape(array)}, not {want.shape}")
            off[name] = float(np.abs(np.asarray(array, np.float64) - want).max())
    print(f"{folder.name}: {reader} reads it; latents within {off['latents']:.1e}, output within {off['out']:.1e}")
    if not max(off.values()) <= TOLERANCE:
        raise ValueError(f"{folder}: {reader} differs from what wrote it by {off}, more than {TOLERANCE}")
    note(folder, reader, **off)


def note(folder: Path, reader: str, **facts: float | str) -> None:
    """Adds what a reader made of an autoencoder to the figures of the run."""
    with (folder.parents[1] / _FIGURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file": folder.name, "reader": reader, **facts}) + "\n")


def peer(run: Path) -> str | None:
    """Returns the name and the version of a peer that reads nothing, as its half wrote them."""
    file = run / _PEER
    return file.read_text(encoding="utf-8") if file.exists() else None


def keep_peer(run: Path, name: str) -> None:
    """Writes what `peer` returns."""
    (run / _PEER).write_text(name, encoding="utf-8")


def figures(run: Path) -> list[dict]:
    """Returns what `note` wrote in a run, in order."""
    return [json.loads(line) for line in (run / _FIGURES).read_text(encoding="utf-8").splitlines()]
