"""Trains autoencoders from a store, one for each site and target L0, all on the same batches.

    python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --l0_targets=10,20,40
    python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --autoencoder=topk --l0_targets=10,20,40

Flags name the kinds of a run's parts, and set their fields, with the part's name before them or without:
`--sparsity=quadratic,frequency`, `--optimizer.beta2=0.99`, `--beta2=0.99` (`--helpfull` lists them all). Several sites,
targets, widths, learning rates and seeds make a run for each combination. `--estimate_only` says what the runs would
take, with `--topology=v5e:16x16` on TPUs that this machine lacks (which needs libtpu: pip install 'jax[tpu]'). It needs
no store:

    python -m experiments.train --estimate_only --model=gemma2-2b --train_sites=layer_12/resid_post --width=131072
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

import gemma
import sae
from gemma.model import param_shapes
from sae import showing, topologies
from sae.files import check_folder, free_bytes, local_path
from sae.sites import dim, token_site
from sae.store import places
from sae.store.source import Source
from sae.trainer import complaints, telling

from . import autoencoders, common, harvest, helping, numbers, part_flags, run_words, running
from .harvest import STORE_DIR

RECIPES = {"short_run": sae.short_run, "gemma_scope": sae.gemma_scope, "gemma_scope_2": sae.gemma_scope_2}

SAES_DIR = flags.DEFINE_string("saes_dir", "runs/saes", "Folder for the autoencoders.")
CHECKPOINT_DIR = flags.DEFINE_string("checkpoint_dir", "runs/checkpoints", "Folder for the run's checkpoints.")
TRAIN_SITES = flags.DEFINE_list("train_sites", None, "Sites to train on. Default: all of the store.")
CROSSCODER = flags.DEFINE_bool("crosscoder", False, "One crosscoder over all sites, in place of a run for each.")
RECIPE = flags.DEFINE_enum("recipe", "short_run", list(RECIPES), "short_run for minutes to hours, the others for days.")
WIDTH = flags.DEFINE_list("width", None, "Latents. Default: 8 times the dim of the activation.")
L0_TARGETS = flags.DEFINE_list(
    "l0_targets",
    None,
    "Active latents per token to aim at, or to keep. Default: 10,20,40; none for the recipe gemma_scope.",
)
COEFFICIENTS = flags.DEFINE_list("coefficients", None, "Fixed lambdas of the sparsity term, in place of targets.")
LEARNING_RATE = flags.DEFINE_list("learning_rate", None, "Adam's. Default: the recipe's.")
TRAIN_SEEDS = flags.DEFINE_list("train_seeds", None, "Seeds of initial weights. Default: --seed.")
STEPS = flags.DEFINE_integer("steps", 450, "Optimizer steps.", lower_bound=1)
SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps between checkpoints.", lower_bound=1)
LATENT_DEVICES = flags.DEFINE_integer("latent_devices", 1, "Devices that share the latents.", lower_bound=1)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This process is one of several, as on a pod's hosts: jax.distributed.initialize() finds the others.",
)
ESTIMATE_ONLY = flags.DEFINE_bool("estimate_only", False, "Say what the runs would take, and stop.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs for --estimate_only, which may be missing, such as v5e:16x16.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace autoencoders of other runs.")
TENSORBOARD_DIR = flags.DEFINE_string("tensorboard_dir", None, "Folder for event files. Default: under --saes_dir.")
WANDB_PROJECT = flags.DEFINE_string("wandb_project", None, "Report to this project of Weights & Biases as well.")
# Fields that stand in the names of folders anyway, or that make no other autoencoder.
_UNNAMED = ("site_out", "skip", "batch_size", "precision", "l0_target")
FIELDS = part_flags.FIELDS
for name in part_flags.define():
    flags.declare_key_flag(name)
running.define_late("recipe", part_flags.define)
helping.seldom(
    "save_every", "tensorboard_dir", "wandb_project", "topology", "distributed", "crosscoder", "latent_devices"
)
helping.section("recipe", lambda: run_words.described(_examples()), part_flags.covered)
REFUSED = common.OF_TEXTS
# What --help lists.
flags.adopt_module_key_flags(common)
flags.declare_key_flag("store_dir")


def _examples() -> dict[str, sae.Run]:
    """Returns a run of each recipe, as the launch makes it by default."""
    return {name: _example(name, {} if name == "gemma_scope" else {"l0_target": 20.0}) for name in RECIPES}


def _example(recipe: str, fields: Mapping[str, Any]) -> sae.Run:
    return RECIPES[recipe]("layer_0/resid_post", 2**18, 1200, **fields)


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, lists that are no numbers, or flags without effect."""
    running.refuse(common.OF_TEXTS, "training reads rows, and its store says which text they are from")
    if not ESTIMATE_ONLY.value or flags.FLAGS["store_dir"].present:
        running.refuse(common.OF_MODELS, "training reads rows, and its store says which model they are from")
    check_runs()


def check_runs() -> None:
    """Raises ValueError as `check_flags` does, for the flags that describe runs alone."""
    values = part_flags.flag_values()
    fields = {part_flags.field_of(name): value for name, value in values.items()}
    fixed = numbers.different("coefficients", COEFFICIENTS.value)
    target, targets = part_flags.values_of("l0_target")
    rate, rates = part_flags.values_of("learning_rate")
    if fixed and targets is not None:
        raise ValueError(f"--coefficients and --{target} exclude each other: fixed lambdas, or L0s to aim at")
    if fixed and "coefficient" in fields:
        raise ValueError("--coefficient is for runs with --l0_targets; --coefficients has the lambdas of other runs")
    aimed = [kind for kind in part_flags.named_kinds().get("sparsity", []) if kind.aim]
    if fixed and (fields.get("penalty") == "quadratic" or aimed):
        penalty = "penalty=quadratic" if fields.get("penalty") else f"sparsity={','.join(values['sparsity'])}"
        raise ValueError(f"--coefficients are for the linear penalty: --{penalty} goes with --l0_targets")
    if fixed and fields.get("controller"):
        raise ValueError("--coefficients are fixed lambdas, which --controller would move: it goes with --l0_targets")
    if "penalty" in values and "sparsity" in values:
        raise ValueError("--penalty and --sparsity both say what makes latents sparse: give one of them")
    if targets is not None and (aim := part_flags.aim_flag()):
        raise ValueError(f"--{aim} and --{target} both say how many latents a token has: give one of them")
    if fields.get("skip") and "site_out" not in fields:
        raise ValueError("--skip is for transcoders: it goes with --site_out")
    if CROSSCODER.value and "site_out" in fields:
        raise ValueError("--crosscoder reconstructs what it reads: it does not go with --site_out")
    if TOPOLOGY.value and not ESTIMATE_ONLY.value:
        raise ValueError("--topology is for --estimate_only: this machine does not have its devices to train on")
    if DISTRIBUTED.value and ESTIMATE_ONLY.value:
        raise ValueError("--estimate_only is for one process: leave --distributed out")
    if TRAIN_SITES.value and len(set(TRAIN_SITES.value)) < len(TRAIN_SITES.value):
        raise ValueError(f"--train_sites takes different sites, got {','.join(TRAIN_SITES.value)!r}")
    aim = _aims()[0]  # may be too large for the width of the example
    aim |= {"l0_target": 1.0} if aim.get("l0_target") else {}
    numbers.different(rate, rates)
    check_targets(numbers.different_whole("width", WIDTH.value))
    numbers.different_whole("train_seeds", TRAIN_SEEDS.value, least=0)
    first = {name: value for name, value in aim.items() if name != "coefficient"}
    example = _example(RECIPE.value, first | {name: values[name] for name in ("penalty",) if name in values})
    lists = {"coefficients": "coefficient"} if fixed else {}
    if aim.get("l0_target"):
        lists[target] = target if "." in target else "l0_target"
    part_flags.check(example, lists | ({rate: rate} if rates else {}))


def _aims() -> list[dict]:
    """Returns what the runs of a site aim at, as the arguments of recipes."""
    if COEFFICIENTS.value:
        none = {} if "sparsity" in part_flags.flag_values() else {"l0_target": None}
        return [{"coefficient": number} | none for number in numbers.different("coefficients", COEFFICIENTS.value)]
    name, targets = part_flags.values_of("l0_target")
    if targets is None:
        if RECIPE.value == "gemma_scope" or not part_flags.wants_target():
            return [{}]
        targets = ["10", "20", "40"]
    return [{"l0_target": number} for number in numbers.different(name, targets)]


def check_targets(widths: Iterable[int]) -> None:
    """Raises ValueError, in the words of flags, for an L0 to aim at that is more than an autoencoder's latents.

    Args:
      widths: the numbers of latents of the runs.
    """
    flag, targets = part_flags.values_of("l0_target")[0], [aim["l0_target"] for aim in _aims() if aim.get("l0_target")]
    if aim := part_flags.aim_flag():
        flag, targets = aim, [part_flags.flag_values()[aim]]
    width, target = min(widths, default=math.inf), max(targets, default=0)
    if target > width:
        raise ValueError(
            f"--{flag}={target:g} is more than the {width} latents of an autoencoder: lower it, or raise --width"
        )


def configs(dims: Mapping[str, int]) -> list[sae.Run]:
    """Returns the runs that the flags describe.

    Args:
      dims: {site: dim of its activations}, of the sites that were harvested.

    Raises:
      ValueError: for sites that were not harvested, and values that a run refuses.
    """
    out = FIELDS["site_out"].value
    sites = TRAIN_SITES.value or [site for site in dims if site != out]
    for site in [*sites, *([out] if out else [])]:
        if site not in dims:
            raise ValueError(f"{site!r} is not among the sites harvested: {', '.join(dims)}")
    seeds = numbers.different_whole("train_seeds", TRAIN_SEEDS.value, least=0) or [common.SEED.value]
    rates = numbers.different(*part_flags.values_of("learning_rate"))
    changes = part_flags.flag_values()
    if not sites:
        raise ValueError(f"no site is left to train on: {out} is --site_out, and the store has no other")
    if CROSSCODER.value and len(sites) < 2:
        raise ValueError(f"--crosscoder takes two sites at least, got {','.join(sites)!r}")
    inputs = [tuple(sites)] if CROSSCODER.value else sites
    widths = {site: _widths(dims[site[0] if isinstance(site, tuple) else site]) for site in inputs}
    check_targets(width for several in widths.values() for width in several)
    return [
        RECIPES[RECIPE.value](
            site,
            width,
            STEPS.value,
            data_seed=common.SEED.value,
            # pyrefly: ignore[bad-argument-type]  the keys say which is which
            **{"seed": seed} | aim | changes | ({} if rate is None else {"learning_rate": rate}),
        )
        for site in inputs
        for width, aim, rate, seed in itertools.product(widths[site], _aims(), rates or [None], seeds)
    ]


def _widths(length: int) -> list[int]:
    """Returns the numbers of latents that the flags ask for, at a site whose activations have this length."""
    return numbers.different_whole("width", WIDTH.value) or [8 * length]


def mesh() -> jax.sharding.Mesh:
    """Returns a mesh of this machine's devices, or of a topology's."""
    devices = topologies.chips(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    return topologies.mesh(devices, LATENT_DEVICES.value, "latent", TOPOLOGY.value or "this machine")


def folders_of(runs: list[sae.Run], saes_dir: Path, source: Source | None = None) -> list[Path]:
    """Returns where the autoencoders of the runs go. The names have the fields in which runs differ, or that flags set.

    Raises:
      ValueError: for a folder with the autoencoder of another run, unless --overwrite allows to replace it.
    """
    values = {name for run in runs for name in run.fields()}
    aims = {part.aim for run in runs for _, part in run.parts()}
    named = [name if name in values else part_flags.field_of(name) for name in part_flags.flag_values()]
    named = ["sparsity" if name == "penalty" else name for name in named if name not in (*_UNNAMED, *aims)]
    named += ["learning_rate"] if part_flags.values_of("learning_rate")[1] else []
    named += ["seed"] if any(run.seed for run in runs) else []
    suffix = "" if RECIPE.value == RECIPE.default else f"_recipe_{RECIPE.value}"
    folders = autoencoders.folders_of(saes_dir, runs, named, suffix)
    if not OVERWRITE.value:
        autoencoders.check_free(folders, runs, source)
    return folders


def train(runs: list[sae.Run], store: sae.ActivationStore, saes_dir: Path, checkpoint_dir: Path) -> list[Path]:
    """Trains and saves autoencoders, and returns their folders. It goes on from a checkpoint where one exists.

    `history.json` in each folder has the records of the run; `tensorboard/` beside them has the same for TensorBoard.

    Raises:
      ValueError: before anything is trained, for folders with another run's checkpoint or autoencoders, a folder that
        cannot be written, and whatever `sae.train` refuses.
      OSError: before anything is trained, for a disk without room for the autoencoders; and, with how to go on, when
        saving them fails later.
    """
    folders = folders_of(runs, saes_dir, store)
    for folder in folders:
        check_folder(folder, "an autoencoder")
    needed = sum(4 * run.width * sum(map(store.width, run.sites + run.sites_out)) for run in runs)
    if needed > (free := free_bytes(saes_dir)):
        raise OSError(
            f"the disk is full: the autoencoders take {needed / 1e6:.0f} MB in {saes_dir}, where {free / 1e6:.0f} MB "
            "are free. Free some, or train fewer"
        )
    names = [folder.relative_to(saes_dir).as_posix() for folder in folders]
    reports: list[sae.Report] = [sae.TensorBoard(TENSORBOARD_DIR.value or saes_dir / "tensorboard", names)]
    if WANDB_PROJECT.value:
        reports.append(sae.WeightsAndBiases(project=WANDB_PROJECT.value))
    trained, history = sae.train(
        runs,
        store,
        mesh(),
        checkpoint_dir=checkpoint_dir,
        save_every=SAVE_EVERY.value,
        reports=reports,
        progress=common.progress,
    )
    try:
        autoencoders.save(trained, folders, history)
    except OSError as error:
        error.add_note(
            f"Every step is kept in {checkpoint_dir}: the same command saves the autoencoders without training again."
        )
        raise
    return folders


def check_dtype(store: sae.ActivationStore) -> None:
    """Raises ValueError for a --dtype that is not that of the store's activations."""
    dtype = store.manifest.activation_dtype
    if common.DTYPE.value not in (None, dtype):
        raise ValueError(
            f"{store.name} has activations of a model in {dtype}, got --dtype={common.DTYPE.value}: "
            "leave it out, or harvest them into another folder"
        )


def main():
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    common.keep_compiled_programs()
    if ESTIMATE_ONLY.value:
        estimate_only()
        return
    store = sae.ActivationStore.open(STORE_DIR.value)
    check_dtype(store)
    runs = configs({site: store.width(site) for site in store.sites})
    print(run_words.about(RECIPE.value, runs[0]))
    for folder in train(runs, store, local_path(SAES_DIR.value), local_path(CHECKPOINT_DIR.value)):
        print(folder)


def estimate_only() -> None:
    """Prints what the runs would take, and warns of what their parts alone say will go wrong.

    The runs are on the rows of a store or, where none exists, at sites of the model.
    """
    place, given = places.place(STORE_DIR.value), flags.FLAGS["store_dir"].present
    if given or (not flags.FLAGS["model"].present and place.read("manifest.json") is not None):
        source = sae.ActivationStore.open(place)
        dims, name = {site: source.width(site) for site in source.sites}, source.name
    else:
        config = gemma.config(common.MODEL.value)
        model = gemma.Model(param_shapes(config), config)  # shapes alone
        sites = [*(TRAIN_SITES.value or harvest.sites(model)), *filter(None, [FIELDS["site_out"].value])]
        source = dims = {site: dim(token_site(model, site)) for site in sites}
        name = model.name
    runs = configs(dims)
    estimate = sae.estimate(runs, source, mesh())
    counted = showing.count(len(runs), "autoencoder")
    print(f"{counted} at {', '.join(dict.fromkeys('+'.join(run.sites) for run in runs))} of {name}\n{estimate}")
    telling.warn(runs, [complaints.beforehand(run) for run in runs], set())
    estimate.check()


if __name__ == "__main__":
    running.run(main, check_flags)
