"""Trains JumpReLU autoencoders from a store, one for each site and target L0, all in one pass over it.

python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --l0_targets=10,20,40
"""

import json
from collections.abc import Mapping
from pathlib import Path

from absl import flags

import sae
from experiments import common
from experiments.harvest import STORE_DIR
from sae.files import replace_file

RECIPES = {"short_run": sae.short_run, "gemma_scope": sae.gemma_scope}

SAES_DIR = flags.DEFINE_string("saes_dir", "runs/saes", "Folder for the autoencoders.")
CHECKPOINT_DIR = flags.DEFINE_string("checkpoint_dir", "runs/checkpoints", "Folder for the run's checkpoints.")
TRAIN_SITES = flags.DEFINE_list("train_sites", None, "Sites to train on. Default: all of the store.")
RECIPE = flags.DEFINE_enum(
    "recipe", "short_run", list(RECIPES), "short_run for minutes to hours, gemma_scope for days."
)
WIDTH = flags.DEFINE_integer("width", None, "Latents. Default: 8 times the activation's width.", lower_bound=1)
L0_TARGETS = flags.DEFINE_list(
    "l0_targets", ["10", "20", "40"], "Active latents per token to aim at, one run for each."
)
COEFFICIENTS = flags.DEFINE_list(
    "coefficients", None, "Instead of targets: lambdas of the linear penalty, one run each."
)
STEPS = flags.DEFINE_integer("steps", 450, "Optimizer steps.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Tokens of a step. Default: the recipe's.", lower_bound=1)
SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps between checkpoints.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Adam's. Default: the recipe's.", lower_bound=0.0)
THRESHOLD_LEARNING_RATE = flags.DEFINE_float(
    "threshold_learning_rate", None, "Adam's for the threshold. Default: the recipe's.", lower_bound=0.0
)
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("store_dir")


def configs(widths: Mapping[str, int]) -> list[sae.TrainConfig]:
    """The runs that the flags describe, for sites and the widths of their activations."""
    sites = TRAIN_SITES.value or list(widths)
    for site in sites:
        if site not in widths:
            raise ValueError(f"--train_sites has {site!r}, which is not among the sites harvested: {', '.join(widths)}")
    if COEFFICIENTS.value:
        aims = [{"coefficient": number} for number in _numbers("coefficients", COEFFICIENTS.value)]
    else:
        aims = [{"l0_target": number} for number in _numbers("l0_targets", L0_TARGETS.value)]
    changes = {
        "batch_size": BATCH_SIZE.value,
        "learning_rate": LEARNING_RATE.value,
        "threshold_learning_rate": THRESHOLD_LEARNING_RATE.value,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    recipe = RECIPES[RECIPE.value]
    return [
        recipe(site, WIDTH.value or 8 * widths[site], STEPS.value, seed=common.SEED.value, **aim, **changes)
        for site in sites
        for aim in aims
    ]


def train(runs: list[sae.TrainConfig], store: sae.ActivationStore, saes_dir: Path, checkpoint_dir: Path) -> list[Path]:
    """Trains and saves; goes on from a checkpoint, and a run that has finished only reads it. Returns the folders.

    `history.json` beside them has the course of each run.
    """
    autoencoders, history = sae.train(
        runs, store, checkpoint_dir=checkpoint_dir, save_every=SAVE_EVERY.value, progress=common.progress
    )
    folders = [common.autoencoder_folder(saes_dir, config) for config in runs]
    for autoencoder, folder in zip(autoencoders, folders, strict=True):
        sae.save(autoencoder, folder)
    replace_file(saes_dir / "history.json", json.dumps(history, indent=1) + "\n")
    return folders


def describe(config: sae.TrainConfig) -> str:
    """One line on how a recipe for short runs departs from the paper's constants; empty for the paper's own."""
    if RECIPE.value != "short_run":
        return ""
    return (
        "recipe short_run: the paper's loss, gradients, constraint and folding; but theta is trained as it is, with "
        f"its own learning rate {config.threshold_learning_rate:g} and bandwidth {config.bandwidth:g}, and the "
        f"warm-ups are scaled to {config.steps} steps (learning rate {config.learning_rate_warmup}, lambda "
        f"{config.coefficient_warmup}; the paper: 1,000 and 10,000)"
    )


def _numbers(flag: str, words: list[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"--{flag} takes numbers with commas between them, got {','.join(words)!r}") from None
    # As they stand in the names of folders (`common.autoencoder_folder`).
    if not numbers or any(not number > 0 for number in numbers) or len({f"{n:g}" for n in numbers}) < len(numbers):
        raise ValueError(f"--{flag} takes different numbers above 0, got {','.join(words)!r}")
    return numbers


def main():
    store = sae.ActivationStore.open(STORE_DIR.value)
    runs = configs({site: store.width(site) for site in store.sites})
    print(describe(runs[0]))
    for folder in train(runs, store, Path(SAES_DIR.value), Path(CHECKPOINT_DIR.value)):
        print(folder)


if __name__ == "__main__":
    common.run(main)
