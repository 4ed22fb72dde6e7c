"""Our half of `make test-peers-circuit-tracer`: saves sets of transcoders and cross-layer transcoders, and reads what
circuit-tracer saved.

python -m tests.peers.circuit_tracer_ours write FOLDER
.venv-peers-circuit-tracer/bin/python tests/peers/circuit_tracer_theirs.py FOLDER
python -m tests.peers.circuit_tracer_ours read FOLDER
"""

import sys
from pathlib import Path

import sae
from tests.peers import ours_files
from tests.peers.ours_files import TRANSCODER, random

L = 3
SITES = tuple(tuple(f"layer_{i}/{kind}" for i in range(L)) for kind in ("resid_mid", "mlp_out"))


def write(folder: Path) -> None:
    """Sets of a transcoder for each layer, with a skip and without, and a cross-layer transcoder; then those of Gemma
    Scope's formats that circuit-tracer reads."""
    sets = {
        "set": random(sae.TranscoderSet, SITES, 0),
        "set-skip": random(sae.TranscoderSet, SITES, 1, "W_skip"),
    }
    ours_files.write(sets, folder, "circuit_tracer_set")
    ours_files.write({"clt": random(sae.CrossLayerTranscoder, SITES, 2)}, folder, "circuit_tracer")
    one = {"gemma-scope": random(sae.JumpReLU, TRANSCODER, 3)}
    ours_files.write(one, folder, "gemma_scope")
    ones = {
        "gemma-scope-2": random(sae.JumpReLU, TRANSCODER, 4),
        "gemma-scope-2-skip": random(sae.JumpReLU, TRANSCODER, 5, "W_skip"),
    }
    ours_files.write(ones, folder, "gemma_scope_2")
    layers = {"gemma-scope-2-clt": random(sae.CrossLayerTranscoder, SITES, 6)}
    ours_files.write(layers, folder, "gemma_scope_2_layers")


def read(folder: Path) -> None:
    """Cross-layer transcoders as circuit-tracer saves them, and sets that it has loaded."""
    ours_files.read(folder, ("clt-jumprelu", "clt-relu"))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
