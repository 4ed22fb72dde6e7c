"""Trains JumpReLU autoencoders from a store, one for each site and target L0, all in one pass over it.

    python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --l0_targets=10,20,40

The fields of `sae.TrainConfig` have flags of their names; several sites, targets, widths, learning rates and seeds make
a run for each combination. `--plan_only` says what the runs would take, with `--topology=v5e:16x16` on TPUs that are
not there.
"""

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import jax
from absl import flags

import sae
from experiments import common, topologies
from experiments.harvest import STORE_DIR
from sae.files import replace_file

RECIPES = {"short_run": sae.short_run, "gemma_scope": sae.gemma_scope, "gemma_scope_2": sae.gemma_scope_2}

SAES_DIR = flags.DEFINE_string("saes_dir", "runs/saes", "Folder for the autoencoders.")
CHECKPOINT_DIR = flags.DEFINE_string("checkpoint_dir", "runs/checkpoints", "Folder for the run's checkpoints.")
TRAIN_SITES = flags.DEFINE_list("train_sites", None, "Sites to train on. Default: all of the store.")
CROSSCODER = flags.DEFINE_bool("crosscoder", False, "One crosscoder over all sites, in place of a run for each.")
RECIPE = flags.DEFINE_enum("recipe", "short_run", list(RECIPES), "short_run for minutes to hours, the others for days.")
WIDTH = flags.DEFINE_list("width", None, "Latents. Default: 8 times the activation's width.")
L0_TARGETS = flags.DEFINE_list(
    "l0_targets", None, "Active latents per token to aim at. Default: 10,20,40; none for the recipe gemma_scope."
)
COEFFICIENTS = flags.DEFINE_list("coefficients", None, "Instead of targets: fixed lambdas of the linear penalty.")
LEARNING_RATE = flags.DEFINE_list("learning_rate", None, "Adam's. Default: the recipe's.")
TRAIN_SEEDS = flags.DEFINE_list("train_seeds", None, "Seeds of initial weights. Default: --seed.")
STEPS = flags.DEFINE_integer("steps", 450, "Optimizer steps.", lower_bound=1)
SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps between checkpoints.", lower_bound=1)
LATENT_DEVICES = flags.DEFINE_integer("latent_devices", 1, "Devices that share the latents.", lower_bound=1)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes, as on a pod's hosts: jax.distributed.initialize() finds the others.",
)
PLAN_ONLY = flags.DEFINE_bool("plan_only", False, "Say what the runs would take, and stop.")
TOPOLOGY = flags.DEFINE_string("topology", None, "For --plan_only: TPUs that need not be there, such as v5e:16x16.")
TENSORBOARD_DIR = flags.DEFINE_string("tensorboard_dir", None, "Folder for event files. Default: under --saes_dir.")
WANDB_PROJECT = flags.DEFINE_string("wandb_project", None, "Report to this project of Weights & Biases as well.")
# Those that are set above, or by what is trained on.
_ELSEWHERE = ("site", "width", "steps", "l0_target", "learning_rate", "seed", "data_seed")


def _define(field: dataclasses.Field) -> flags.FlagHolder:
    """A flag for a field of `TrainConfig`, without a value unless the user gives one."""
    text = f"TrainConfig's field, see `sae/recipes.py`. Default: the recipe's (Gemma Scope: {field.default!r})."
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    for kind, define in ((bool, flags.DEFINE_bool), (int, flags.DEFINE_integer), (float, flags.DEFINE_float)):
        if kind in kinds:
            return define(field.name, None, text)
    return (flags.DEFINE_string if str in kinds else flags.DEFINE_list)(field.name, None, text)


FIELDS = {f.name: _define(f) for f in dataclasses.fields(sae.TrainConfig) if f.name not in _ELSEWHERE}
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("store_dir")


def configs(widths: Mapping[str, int]) -> list[sae.TrainConfig]:
    """The runs that the flags describe, for sites and the widths of their activations."""
    out = FIELDS["site_out"].value
    sites = TRAIN_SITES.value or [site for site in widths if site != out]
    for site in [*sites, *([out] if out else [])]:
        if site not in widths:
            raise ValueError(f"{site!r} is not among the sites harvested: {', '.join(widths)}")
    if COEFFICIENTS.value:
        aims = [{"coefficient": number, "l0_target": None} for number in _numbers("coefficients", COEFFICIENTS.value)]
    elif L0_TARGETS.value is None and RECIPE.value == "gemma_scope":
        aims = [{}]
    else:
        targets = ["10", "20", "40"] if L0_TARGETS.value is None else L0_TARGETS.value
        aims = [{"l0_target": number} for number in _numbers("l0_targets", targets)]
    seeds = _whole_numbers("train_seeds", TRAIN_SEEDS.value, least=0) or [common.SEED.value]
    rates = _numbers("learning_rate", LEARNING_RATE.value)
    changes = {name: flag.value for name, flag in FIELDS.items() if flag.value is not None}
    if "matryoshka" in changes:  # --matryoshka= for none
        changes["matryoshka"] = tuple(_numbers("matryoshka", changes["matryoshka"] or None))
    if COEFFICIENTS.value and "coefficient" in changes:
        raise ValueError("--coefficient is for runs with --l0_targets; --coefficients has the lambdas of the others")
    if not sites or len(set(sites)) < len(sites):
        raise ValueError(f"--train_sites takes different sites, got {','.join(sites) or 'none'!r}")
    if CROSSCODER.value and len(sites) < 2:
        raise ValueError(f"--crosscoder takes two sites at least, got {','.join(sites)!r}")
    return [
        RECIPES[RECIPE.value](
            site,
            width or 8 * widths[site[0] if isinstance(site, tuple) else site],
            STEPS.value,
            data_seed=common.SEED.value,
            **{"seed": seed} | aim | changes | ({} if rate is None else {"learning_rate": rate}),
        )
        for site in ([tuple(sites)] if CROSSCODER.value else sites)
        for width, aim, rate, seed in itertools.product(
            _whole_numbers("width", WIDTH.value) or [None], aims, rates or [None], seeds
        )
    ]


def mesh() -> jax.sharding.Mesh:
    """Over the devices there are, or those of a topology."""
    if TOPOLOGY.value and not PLAN_ONLY.value:
        raise ValueError("--topology is for --plan_only: its devices are not there to train on")
    devices = topologies.chips(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    return topologies.mesh(devices, LATENT_DEVICES.value, "latent", TOPOLOGY.value or "this machine")


def train(runs: list[sae.TrainConfig], store: sae.ActivationStore, saes_dir: Path, checkpoint_dir: Path) -> list[Path]:
    """Trains and saves; goes on from a checkpoint, and a run that has finished only reads it. Returns the folders.

    `history.json` beside them has the course of each run, `tensorboard/` the same for TensorBoard.
    """
    reports = [sae.TensorBoard(TENSORBOARD_DIR.value or saes_dir / "tensorboard")]
    if WANDB_PROJECT.value:
        reports.append(sae.WeightsAndBiases(project=WANDB_PROJECT.value))
    autoencoders, history = sae.train(
        runs,
        store,
        mesh(),
        checkpoint_dir=checkpoint_dir,
        save_every=SAVE_EVERY.value,
        reports=reports,
        progress=common.progress,
    )
    folders = common.autoencoder_folders_of(saes_dir, runs)
    for autoencoder, folder in zip(autoencoders, folders, strict=True):
        sae.save(autoencoder, folder)
    if jax.process_index() == 0:
        replace_file(saes_dir / "history.json", json.dumps(history, indent=1) + "\n")
    return folders


def describe(config: sae.TrainConfig) -> str:
    """One line on how a recipe for short runs departs from the paper's constants; empty for the others."""
    if RECIPE.value != "short_run":
        return ""
    theta = "log(theta)" if config.log_threshold else "theta itself"
    return (
        f"recipe short_run: the paper's loss, gradients, constraint and folding; but {theta} is trained with a "
        f"learning rate of its own, {config.threshold_learning_rate:g}, and bandwidth {config.bandwidth:g}; inputs are "
        f"{'' if config.centre else 'not '}centred; Adam's betas are {config.beta1:g} and {config.beta2:g}; "
        f"the decoder learns at {config.decoder_rate_factor:g} times the encoder's rate; and the "
        f"warm-ups are scaled to {config.steps} steps (learning rate {config.learning_rate_warmup}, lambda "
        f"{config.coefficient_warmup}; the paper: 1,000 and 10,000)"
    )


def _numbers(flag: str, words: list[str] | None, least: float | None = None) -> list[float]:
    """Different numbers above 0, or from `least` on; none where the flag has no value."""
    if words is None:
        return []
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"--{flag} takes numbers with commas between them, got {','.join(words)!r}") from None
    low = any(not number > 0 if least is None else number < least for number in numbers)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"--{flag} takes finite numbers, got {','.join(words)!r}")
    # As they stand in the names of folders (`common.autoencoder_folders_of`); whole numbers stand there in full.
    different = {f"{number:g}" if least is None else number for number in numbers}
    if not numbers or low or len(different) < len(numbers):
        bound = "above 0" if least is None else f"from {least} on"
        raise ValueError(f"--{flag} takes different numbers {bound}, got {','.join(words)!r}")
    return numbers


def _whole_numbers(flag: str, words: list[str] | None, least: int = 1) -> list[int]:
    numbers = _numbers(flag, words, least)
    if any(number != int(number) for number in numbers):
        raise ValueError(f"--{flag} takes whole numbers, got {','.join(words)!r}")
    return [int(number) for number in numbers]


def main():
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    store = sae.ActivationStore.open(STORE_DIR.value)
    widths = {site: store.width(site) for site in store.sites}
    runs = configs(widths)
    if PLAN_ONLY.value:
        plan = sae.plan(runs, widths, mesh(), rows=store.rows)
        print(plan)
        plan.check()
        return
    print(describe(runs[0]))
    for folder in train(runs, store, Path(SAES_DIR.value), Path(CHECKPOINT_DIR.value)):
        print(folder)


if __name__ == "__main__":
    common.run(main)
