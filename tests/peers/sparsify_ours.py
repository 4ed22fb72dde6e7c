"""Our half of `make test-peers-sparsify`: saves TopK as EleutherAI's sparsify does, and reads what sparsify saved.

python -m tests.peers.sparsify_ours write FOLDER
.venv-peers-sparsify/bin/python tests/peers/sparsify_theirs.py FOLDER
python -m tests.peers.sparsify_ours read FOLDER
"""

import sys
from pathlib import Path

import sae
from tests.peers import ours_files
from tests.peers.ours_files import AUTOENCODER, TRANSCODER, random


def write(folder: Path) -> None:
    """TopK, as an autoencoder and as a transcoder with a skip and without."""
    examples = {
        "topk": random(sae.TopK, AUTOENCODER, 0, k=5),
        "topk-transcoder": random(sae.TopK, TRANSCODER, 1, k=5),
        "topk-transcoder-skip": random(sae.TopK, TRANSCODER, 2, "W_skip", k=5),
    }
    ours_files.write(examples, folder, "sparsify")


def read(folder: Path) -> None:
    """What sparsify trained for a few steps, and what is not read here."""
    ours_files.read(folder, ("layers.1", "multi", "transcoder", "transcoder-skip", "autoencoder-skip", "groupmax"))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
