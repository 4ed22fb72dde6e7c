"""Builds the feature pages of autoencoders: static files, to be opened in a browser.

    python -m experiments.explore --saes_dir=runs/saes --pages_dir=runs/pages

Model, text, length and which tokens count are those of the training, as for `experiments.evaluate`.
"""

import hashlib
from pathlib import Path

from absl import flags

import sae
from sae.evaluation.latents import latent_statistics, top_tokens
from sae.explorer import pages, tradeoff
from sae.files import check_folder, local_path, replace_file
from sae.text import Sequences

from . import autoencoders, common, recorded, running
from .evaluate import evaluate, identity, subject, target
from .train import SAES_DIR

VERSION = 2  # of what pages say; those of an earlier one are written again
PAGES_DIR = flags.DEFINE_string("pages_dir", "runs/pages", "Folder for the pages.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("saes_dir")
flags.declare_key_flag("site")


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or have no effect."""
    running.refuse(["max_sequences"], "nothing is harvested; --eval_sequences is for the held-out text")
    common.check_texts()


def explore(
    model: sae.LanguageModel,
    saes_dir: Path,
    folders: list[Path],
    held_out: Sequences,
    pages_dir: Path,
    at_hand: bool = True,
) -> Path:
    """Writes the pages of the autoencoders in `folders`, those that are there already excepted. Returns the first.

    `at_hand` is as for `recorded.about`.
    """
    rows, found, of = [], evaluate(model, folders, held_out), subject(model, held_out)
    for folder, metrics in zip(folders, found, strict=True):
        # An autoencoder that is the folder itself gets a folder of its own, since the first page is in this one.
        place = folder.relative_to(saes_dir) if folder != saes_dir else Path(folder.resolve().name)
        about = recorded.about([folder], model, held_out, at_hand)
        root = "../" * len(place.parts)
        _latents(model, folder, metrics.site, held_out, identity(folder, of, model), pages_dir / place, root, about)
        rows.append({
            "href": pages.link(place / "index.html"),
            "site": metrics.site,
            "width": metrics.width,
            "target": target(folder),
            "metrics": metrics,
        })  # fmt: skip
    pages_dir.mkdir(parents=True, exist_ok=True)
    name = common.model_name(model)
    tradeoff.draw(found, pages_dir / "tradeoff.png", f"JumpReLU autoencoders on {name}")
    return pages.write_index(pages_dir, name, rows, found[0].tokens, recorded.about(folders, model, held_out, at_hand))


def _latents(
    model: sae.LanguageModel,
    folder: Path,
    site: str,
    held_out: Sequences,
    key: str,
    out: Path,
    root: str,
    about: pages.About,
) -> None:
    key += hashlib.sha256(repr((VERSION, about)).encode()).hexdigest()[:16]
    done = out / "identity.txt"
    if done.exists() and done.read_text(encoding="utf-8") == key:
        return
    # Pages of an earlier text or autoencoder must not be taken for these.
    done.unlink(missing_ok=True)
    for old in out.glob("*.html"):
        old.unlink()
    autoencoder = autoencoders.load(folder, model)
    site_in = autoencoder.info.site
    statistics = latent_statistics(autoencoder, model, held_out, site_in, progress=common.progress)
    effects = top_tokens(autoencoder, model, site) if model.sites[site].writes_to_residual else None
    name = f"{site}, {autoencoder.width} latents, target L0 {target(folder)}"
    pages.write_latents(
        out,
        root,
        name,
        autoencoder,
        statistics,
        effects,
        held_out,
        model.tokenizer,
        about,
        progress=common.progress,
    )
    replace_file(done, key)


def main():
    common.keep_compiled_programs()
    saes_dir = local_path(SAES_DIR.value)
    check_folder(local_path(PAGES_DIR.value), "pages")  # before anything is computed
    folders = common.autoencoder_folders(saes_dir)
    at_hand = recorded.settle(folders)
    model = common.load_model(map(common.activation_dtype, folders))
    recorded.check(folders, model)
    held_out = common.held_out_text(model, at_hand)
    print(f"open {explore(model, saes_dir, folders, held_out, local_path(PAGES_DIR.value), at_hand)}")


if __name__ == "__main__":
    running.run(main, check_flags)
