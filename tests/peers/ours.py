"""Our half of `make test-peers-transformers`: saves models as Hugging Face's, and reads one that transformers saved.

    python -m tests.peers.ours write FOLDER
    .venv-peers/bin/python tests/peers/theirs.py FOLDER
    python -m tests.peers.ours read FOLDER

The halves run in environments of their own, since transformers needs torch, and meet in the folder.
"""

import sys
from pathlib import Path

import numpy as np

import gemma
from tests.gemma import golden

TOLERANCE = 1e-4


def write(folder: Path) -> None:
    """A Gemma 2 and a Gemma 3, and the first in shards; each with logits of tokens well beyond its window."""
    for name, source, shard_bytes in (
        ("gemma2", golden.GEMMA_2, 10**9),
        ("gemma2-shards", golden.GEMMA_2, 10**5),
        ("gemma3", golden.GEMMA_3, 10**9),
    ):
        model = gemma.load(source)
        gemma.save(model, folder / name, "huggingface", shard_bytes=shard_bytes)
        tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 40))
        np.savez(folder / name / "expected.npz", tokens=tokens, logits=model.apply(tokens))


def read(folder: Path) -> None:
    """The text model of a Gemma 3 that sees images, as transformers saved it, and fine-tunes as PEFT saved them.

    Raises:
      ValueError: if logits are not transformers'.
    """
    adapters = sorted(path.parent for path in (folder / "fine-tunes").glob("*/adapter_config.json"))
    if len(adapters) < 12:
        raise ValueError(f"{folder / 'fine-tunes'} has {len(adapters)} adapters, expected 12: run theirs.py first")
    for source in (folder / "images", *adapters):
        model = gemma.load(source)
        with np.load(source / "expected.npz") as expected:
            off = np.abs(np.asarray(model.apply(expected["tokens"])) - expected["logits"]).max()
        print(f"{source.name}: we load what transformers saved, logits within {off:.1e}")
        if not off < TOLERANCE:
            raise ValueError(f"{source.name}: our logits differ from transformers' by {off}, more than {TOLERANCE}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
