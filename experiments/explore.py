"""Builds the feature pages of autoencoders: static files, to be opened in a browser.

python -m experiments.explore --saes_dir=runs/saes --pages_dir=runs/pages
"""

from pathlib import Path

from absl import flags

import gemma
import sae
from experiments import common
from experiments.evaluate import evaluate, identity, subject, target
from experiments.train import SAES_DIR
from sae.evaluation.latents import latent_statistics, top_tokens, writes_to_residual
from sae.explorer import pages, tradeoff
from sae.files import replace_file
from sae.text import Sequences

PAGES_DIR = flags.DEFINE_string("pages_dir", "runs/pages", "Folder for the pages.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("saes_dir")


def explore(model: gemma.Model, saes_dir: Path, folders: list[Path], held_out: Sequences, pages_dir: Path) -> Path:
    """Writes the pages of the autoencoders in `folders`, those that are there already excepted. Returns the first."""
    rows, found, of = [], evaluate(model, folders, held_out), subject(model, held_out)
    for folder, metrics in zip(folders, found, strict=True):
        # An autoencoder that is the folder itself gets a folder of its own, since the first page is in this one.
        place = folder.relative_to(saes_dir) if folder != saes_dir else Path(folder.resolve().name)
        _latents(
            model, folder, metrics.site, held_out, identity(folder, of), pages_dir / place, "../" * len(place.parts)
        )
        rows.append({
            "href": f"{place.as_posix()}/index.html",
            "site": metrics.site,
            "width": metrics.width,
            "target": target(folder),
            "metrics": metrics,
        })  # fmt: skip
    pages_dir.mkdir(parents=True, exist_ok=True)
    tradeoff.draw(found, pages_dir / "tradeoff.png", f"JumpReLU autoencoders on {model.config.name}")
    return pages.write_index(pages_dir, model.config.name, rows, found[0].tokens)


def _latents(model: gemma.Model, folder: Path, site: str, held_out: Sequences, key: str, out: Path, root: str) -> None:
    done = out / "identity.txt"
    if done.exists() and done.read_text(encoding="utf-8") == key:
        return
    # Pages of an earlier text or autoencoder must not be taken for these.
    done.unlink(missing_ok=True)
    for old in out.glob("*.html"):
        old.unlink()
    autoencoder = sae.load(folder)
    site_in = autoencoder.info.site
    statistics = latent_statistics(autoencoder, model, held_out.tokens, site_in, progress=common.progress)
    effects = top_tokens(autoencoder, model, site) if writes_to_residual(site) else None
    name = f"{site}, {autoencoder.width} latents, target L0 {target(folder)}"
    pages.write_latents(
        out, root, name, autoencoder, statistics, effects, held_out, model.tokenizer, progress=common.progress
    )
    replace_file(done, key)


def main():
    model = gemma.load(common.MODEL.value)
    _, held_out = common.texts(model)
    saes_dir = Path(SAES_DIR.value)
    folders = common.autoencoder_folders(saes_dir)
    print(f"open {explore(model, saes_dir, folders, held_out, Path(PAGES_DIR.value))}")


if __name__ == "__main__":
    common.run(main)
