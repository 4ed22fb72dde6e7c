"""Our half of `make test-peers-dictionary-learning`: reads what dictionary_learning trained and saved. Nothing is
written: its files are pickles.

.venv-peers-dictionary-learning/bin/python tests/peers/dictionary_learning_theirs.py FOLDER
python -m tests.peers.dictionary_learning_ours read FOLDER
"""

import sys
from pathlib import Path

from tests.peers import ours_files

TRAINED = ("standard", "standard-april", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "p-anneal")


def write(folder: Path) -> None:
    """Makes the folder alone."""
    (folder / "ours").mkdir(parents=True)


def read(folder: Path) -> None:
    """What dictionary_learning trained for a few steps and saved itself."""
    ours_files.read(folder, TRAINED)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
