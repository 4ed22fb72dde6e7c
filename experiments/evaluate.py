"""Measures autoencoders on held-out text.

    python -m experiments.evaluate --saes_dir=runs/saes

Model, text, length and the rule of which tokens count are those of training, as far as the autoencoders record them.
--held_out=FILE measures on another text.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import sae
from sae import showing
from sae.evaluation import kept, tables
from sae.explorer.pages import About
from sae.files import local_path
from sae.formats.files import outline
from sae.language_model import titled
from sae.text import Sequences

from . import autoencoders, common, recorded, running
from .train import SAES_DIR

REFUSED = ("max_sequences",)
RECORDED = recorded.FLAGS  # flags whose defaults are what the autoencoders record
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("saes_dir")
flags.declare_key_flag("site")


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or have no effect."""
    running.refuse(REFUSED, "nothing is harvested; --eval_sequences is for the held-out text")
    common.check_texts()


def evaluate(model: sae.LanguageModel, folders: Sequence[Path], sequences: Sequences) -> list[sae.Metrics]:
    """Returns the metrics of the autoencoders in some folders (`sae.evaluation.kept`), also of those at `--site`."""
    return kept.evaluate_folders(
        folders,
        model,
        sequences,
        load=functools.partial(autoencoders.load, model=model),
        outline=functools.partial(autoencoders.outline, model=model),
        progress=common.progress,
        say=lambda line: print(line, file=sys.stderr),
    )


def target(folder: Path) -> str:
    """Returns the L0 that the autoencoder in a folder aimed at, from its record or else from the folder's name."""
    return kept.target(outline(folder).info, folder.name)


def table(rows: list[tuple[Path, sae.Metrics]]) -> str:
    """Returns the metrics as text, a line for each autoencoder."""
    return tables.table([m for _, m in rows], [target(folder) for folder, _ in rows])


def heading(model: sae.LanguageModel, metrics: list[sae.Metrics], about: About) -> str:
    """Returns in a line the tokens that the metrics are over."""
    tokens = showing.count(metrics[0].tokens, "token")
    return f"{titled(model)}, on {tokens} of {about.text}; left out: {about.omissions}"


def main():
    common.keep_compiled_programs()
    folders = common.autoencoder_folders(local_path(SAES_DIR.value))
    at_hand = recorded.settle(folders)
    model = common.load_model(map(common.activation_dtype, folders))
    recorded.check(folders, model)
    held_out = common.held_out_text(model, at_hand)
    metrics = evaluate(model, folders, held_out)
    print(heading(model, metrics, recorded.about(folders, model, held_out, at_hand)))
    print(table(list(zip(folders, metrics, strict=True))))


if __name__ == "__main__":
    running.run(main, check_flags)
