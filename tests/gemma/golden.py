"""The reference models of tests/data/gemma{2,3}_golden: random, as Hugging Face transformers saved and computed them.

`expected.npz` holds tokens, logits, a greedy continuation and the value at eight sites of every layer, in float32.
"""

from pathlib import Path

import numpy as np

import gemma

DATA = Path(__file__).parents[1] / "data"
GEMMA_2 = DATA / "gemma2_golden"
GEMMA_3 = DATA / "gemma3_golden"


def load(folder: Path) -> tuple[gemma.Model, dict[str, np.ndarray]]:
    """The model, and everything in its expected.npz by name."""
    with np.load(folder / "expected.npz") as arrays:
        return gemma.load(folder), {name: arrays[name] for name in arrays.files}
