"""Builds the feature pages of autoencoders: static files for a browser.

    python -m experiments.explore --saes_dir=runs/saes --pages_dir=runs/pages

Model, text, length and the rule of which tokens count are those of training, as for `experiments.evaluate`.
"""

import functools
from pathlib import Path

from absl import flags

import sae
from sae.evaluation import kept
from sae.explainers import base as explainers
from sae.explorer import building
from sae.files import check_folder, local_path
from sae.text import Sequences

from . import autoencoders, common, recorded, running
from .evaluate import evaluate, target
from .train import SAES_DIR

PAGES_DIR = flags.DEFINE_string("pages_dir", "runs/pages", "Folder for the pages.")
EXPLAINER = flags.DEFINE_string(
    "explainer", None, f"What puts each latent into words: {', '.join(explainers.names())}. Default: nothing."
)
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
    explainers.explainer_of(EXPLAINER.value)


def explore(
    model: sae.LanguageModel,
    saes_dir: Path,
    folders: list[Path],
    held_out: Sequences,
    pages_dir: Path,
    at_hand: bool = True,
    explainer: str | None = None,
) -> Path:
    """Writes the pages of autoencoders, except pages that exist already, and returns the path of the first page.

    Args:
        model: the autoencoders' model.
        saes_dir: the folder of all autoencoders.
        folders: those whose pages are written.
        held_out: the text.
        pages_dir: where the pages go.
        at_hand: as for `recorded.about`.
        explainer: as for `sae.explore`.
    """
    outline = functools.partial(autoencoders.outline, model=model)
    of = kept.subject(model, held_out)
    entries = [
        building.Entry(
            # An autoencoder in `saes_dir` itself gets a folder below the pages', which has the first page.
            place=folder.relative_to(saes_dir) if folder != saes_dir else Path(folder.resolve().name),
            metrics=metrics,
            target=target(folder),
            about=recorded.about([folder], model, held_out, at_hand),
            key=kept.identity(folder, of, outline),
            load=functools.partial(autoencoders.load, folder, model),
        )
        for folder, metrics in zip(folders, evaluate(model, folders, held_out), strict=True)
    ]
    about = recorded.about(folders, model, held_out, at_hand)
    words = explainers.explainer_of(explainer)
    return building.build(entries, model, held_out, pages_dir, about, explainer=words, progress=common.progress)


def main():
    common.keep_compiled_programs()
    saes_dir = local_path(SAES_DIR.value)
    check_folder(local_path(PAGES_DIR.value), "pages")  # before anything is computed
    folders = common.autoencoder_folders(saes_dir)
    at_hand = recorded.settle(folders)
    model = common.load_model(map(common.activation_dtype, folders))
    recorded.check(folders, model)
    held_out = common.held_out_text(model, at_hand)
    first = explore(model, saes_dir, folders, held_out, local_path(PAGES_DIR.value), at_hand, EXPLAINER.value)
    print(f"open {first}")


if __name__ == "__main__":
    running.run(main, check_flags)
