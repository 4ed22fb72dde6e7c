"""Our half of `make test-peers-saelens`: saves every form that SAELens has, and reads what SAELens trained and saved.

    python -m tests.peers.saelens_ours write FOLDER
    .venv-peers-saelens/bin/python tests/peers/saelens_theirs.py FOLDER
    python -m tests.peers.saelens_ours read FOLDER

The halves run in environments of their own, since SAELens needs torch, and meet in the folder.
"""

import dataclasses
import sys
from pathlib import Path

import sae
from tests.peers import ours_files
from tests.peers.ours_files import AUTOENCODER, TRANSCODER, A, random

HEADS = ("layer_1/attn_z",) * 2
TRAINED = ("standard", "gated", "topk", "topk-layer-norm", "jumprelu", "batchtopk", "matryoshka")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def write(folder: Path) -> None:
    """Every form that SAELens has an architecture for; transcoders also with an output of another length."""
    examples = {
        "relu": random(sae.ReLU, AUTOENCODER, 0),
        "topk": random(sae.TopK, AUTOENCODER, 1, k=5),
        "jumprelu": random(sae.JumpReLU, AUTOENCODER, 2),
        "topk-layer-norm": random(sae.NormedTopK, AUTOENCODER, 9, k=5),
        "gated": random(sae.Gated, AUTOENCODER, 3),
        "relu-transcoder": random(sae.ReLU, TRANSCODER, 4, out=A - 3),
        "relu-transcoder-skip": random(sae.ReLU, TRANSCODER, 5, "W_skip", out=A - 3),
        "jumprelu-transcoder": random(sae.JumpReLU, TRANSCODER, 6, out=A + 2),
        "jumprelu-transcoder-skip": random(sae.JumpReLU, TRANSCODER, 7, "W_skip"),
    }
    ours_files.write(examples, folder, "saelens")
    heads = random(sae.JumpReLU, HEADS, 8)
    heads = dataclasses.replace(heads, info=dataclasses.replace(heads.info, shape=(3, A // 3)))
    ours_files.write({"jumprelu-heads": heads}, folder, "saelens", 3, A // 3)


def read(folder: Path) -> None:
    """What SAELens trained for a few steps, transcoders of random weights, and what is not read here."""
    ours_files.read(folder, (*TRAINED, *TRANSCODERS))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
