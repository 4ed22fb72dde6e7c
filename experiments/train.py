"""Trains autoencoders from a store, one for each site and target L0, all in one pass over it.

    python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --l0_targets=10,20,40
    python -m experiments.train --store_dir=runs/store --saes_dir=runs/saes --autoencoder=topk --l0_targets=10,20,40

Flags name the kinds of a run's parts, and set their fields, with the part's name before them or without:
`--sparsity=quadratic,frequency`, `--optimizer.beta2=0.99`, `--beta2=0.99` (`--helpfull` lists them all). Several sites,
targets, widths, learning rates and seeds make a run for each combination. `--plan_only` says what the runs would take,
with `--topology=v5e:16x16` on TPUs that this machine lacks (which takes libtpu: pip install 'jax[tpu]'). It needs no
store:

    python -m experiments.train --plan_only --model=gemma2-2b --train_sites=layer_12/resid_post --width=131072
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

import gemma
import sae
from gemma.model import param_shapes
from sae import topologies
from sae.files import check_folder, free_bytes, local_path
from sae.sites import dim, token_site
from sae.store import places
from sae.store.source import Source

from . import autoencoders, common, harvest, helping, numbers, part_flags, run_words, running
from .harvest import STORE_DIR

RECIPES = {"short_run": sae.short_run, "gemma_scope": sae.gemma_scope, "gemma_scope_2": sae.gemma_scope_2}

SAES_DIR = flags.DEFINE_string("saes_dir", "runs/saes", "Folder for the autoencoders.")
CHECKPOINT_DIR = flags.DEFINE_string("checkpoint_dir", "runs/checkpoints", "Folder for the run's checkpoints.")
TRAIN_SITES = flags.DEFINE_list("train_sites", None, "Sites to train on. Default: all of the store.")
CROSSCODER = flags.DEFINE_bool("crosscoder", False, "One crosscoder over all sites, in place of a run for each.")
RECIPE = flags.DEFINE_enum("recipe", "short_run", list(RECIPES), "short_run for minutes to hours, the others for days.")
WIDTH = flags.DEFINE_list("width", None, "Latents. Default: 8 times the activation's width.")
L0_TARGETS = flags.DEFINE_list(
    "l0_targets",
    None,
    "Active latents per token to aim at, or to keep. Default: 10,20,40; none for the recipe gemma_scope.",
)
COEFFICIENTS = flags.DEFINE_list("coefficients", None, "Instead of targets: fixed lambdas of the sparsity term.")
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
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace autoencoders of other runs.")
TENSORBOARD_DIR = flags.DEFINE_string("tensorboard_dir", None, "Folder for event files. Default: under --saes_dir.")
WANDB_PROJECT = flags.DEFINE_string("wandb_project", None, "Report to this project of Weights & Biases as well.")
# Fields that are in the names of folders anyway, or make no other autoencoder.
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
    """A run of each recipe, as the launch makes it by default."""
    return {name: _example(name, {} if name == "gemma_scope" else {"l0_target": 20.0}) for name in RECIPES}


def _example(recipe: str, fields: Mapping[str, Any]) -> sae.Run:
    return RECIPES[recipe]("layer_0/resid_post", 2**18, 1200, **fields)


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, lists that are no numbers, or flags without effect."""
    running.refuse(common.OF_TEXTS, "training reads rows, and its store says of which text they are")
    if not PLAN_ONLY.value or flags.FLAGS["store_dir"].present:
        running.refuse(common.OF_MODELS, "training reads rows, and its store says of which model they are")
    check_runs()


def check_runs() -> None:
    """As `check_flags`, of the flags that describe runs."""
    given = part_flags.given()
    fields = {part_flags.field_of(name): value for name, value in given.items()}
    fixed = numbers.different("coefficients", COEFFICIENTS.value)
    target, targets = part_flags.values_of("l0_target")
    rate, rates = part_flags.values_of("learning_rate")
    if fixed and targets is not None:
        raise ValueError(f"--coefficients and --{target} exclude each other: fixed lambdas, or L0s to aim at")
    if fixed and "coefficient" in fields:
        raise ValueError("--coefficient is for runs with --l0_targets; --coefficients has the lambdas of the others")
    aimed = [kind for kind in part_flags.kinds_given().get("sparsity", []) if kind.aim]
    if fixed and (fields.get("penalty") == "quadratic" or aimed):
        penalty = "penalty=quadratic" if fields.get("penalty") else f"sparsity={','.join(given['sparsity'])}"
        raise ValueError(f"--coefficients are of the linear penalty: --{penalty} goes with --l0_targets")
    if fixed and fields.get("controller"):
        raise ValueError("--coefficients are fixed lambdas, which --controller would move: it goes with --l0_targets")
    if "penalty" in given and "sparsity" in given:
        raise ValueError("--penalty and --sparsity both say what makes latents sparse: give one of them")
    if targets is not None and (aim := part_flags.aim_given()):
        raise ValueError(f"--{aim} and --{target} both say how many latents a token has: give one of them")
    if fields.get("skip") and "site_out" not in fields:
        raise ValueError("--skip is for transcoders: it goes with --site_out")
    if CROSSCODER.value and "site_out" in fields:
        raise ValueError("--crosscoder gives what it takes: it does not go with --site_out")
    if TOPOLOGY.value and not PLAN_ONLY.value:
        raise ValueError("--topology is for --plan_only: this machine does not have its devices to train on")
    if DISTRIBUTED.value and PLAN_ONLY.value:
        raise ValueError("--plan_only is of one process: leave --distributed out")
    if TRAIN_SITES.value and len(set(TRAIN_SITES.value)) < len(TRAIN_SITES.value):
        raise ValueError(f"--train_sites takes different sites, got {','.join(TRAIN_SITES.value)!r}")
    aim = _aims()[0]  # which may be too large for the width of an example
    aim |= {"l0_target": 1.0} if aim.get("l0_target") else {}
    numbers.different(rate, rates)
    numbers.different_whole("width", WIDTH.value)
    numbers.different_whole("train_seeds", TRAIN_SEEDS.value, least=0)
    first = {name: value for name, value in aim.items() if name != "coefficient"}
    example = _example(RECIPE.value, first | {name: given[name] for name in ("penalty",) if name in given})
    lists = {"coefficients": "coefficient"} if fixed else {}
    if aim.get("l0_target"):
        lists[target] = target if "." in target else "l0_target"
    part_flags.check(example, lists | ({rate: rate} if rates else {}))


def _aims() -> list[dict]:
    """What the runs of a site aim at, as what recipes take."""
    if COEFFICIENTS.value:
        none = {} if "sparsity" in part_flags.given() else {"l0_target": None}
        return [{"coefficient": number} | none for number in numbers.different("coefficients", COEFFICIENTS.value)]
    name, targets = part_flags.values_of("l0_target")
    if targets is None:
        if RECIPE.value == "gemma_scope" or not part_flags.wants_target():
            return [{}]
        targets = ["10", "20", "40"]
    return [{"l0_target": number} for number in numbers.different(name, targets)]


def configs(widths: Mapping[str, int]) -> list[sae.Run]:
    """The runs that the flags describe, for sites and the widths of their activations."""
    out = FIELDS["site_out"].value
    sites = TRAIN_SITES.value or [site for site in widths if site != out]
    for site in [*sites, *([out] if out else [])]:
        if site not in widths:
            raise ValueError(f"{site!r} is not among the sites harvested: {', '.join(widths)}")
    seeds = numbers.different_whole("train_seeds", TRAIN_SEEDS.value, least=0) or [common.SEED.value]
    rates = numbers.different(*part_flags.values_of("learning_rate"))
    changes = part_flags.given()
    if not sites:
        raise ValueError(f"no site to train on: {out} is what comes out, and the store has no other")
    if CROSSCODER.value and len(sites) < 2:
        raise ValueError(f"--crosscoder takes two sites at least, got {','.join(sites)!r}")
    return [
        RECIPES[RECIPE.value](
            site,
            width or 8 * widths[site[0] if isinstance(site, tuple) else site],
            STEPS.value,
            data_seed=common.SEED.value,
            # pyrefly: ignore[bad-argument-type]  the keys say which is which
            **{"seed": seed} | aim | changes | ({} if rate is None else {"learning_rate": rate}),
        )
        for site in ([tuple(sites)] if CROSSCODER.value else sites)
        for width, aim, rate, seed in itertools.product(
            numbers.different_whole("width", WIDTH.value) or [None], _aims(), rates or [None], seeds
        )
    ]


def mesh() -> jax.sharding.Mesh:
    """Over this machine's devices, or those of a topology."""
    devices = topologies.chips(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    return topologies.mesh(devices, LATENT_DEVICES.value, "latent", TOPOLOGY.value or "this machine")


def folders_of(runs: list[sae.Run], saes_dir: Path, source: Source | None = None) -> list[Path]:
    """Where the autoencoders of the runs go. The names have what tells the runs apart, and the fields that flags set.

    Raises:
      ValueError: where the autoencoder of another run is, unless --overwrite says that it may be replaced.
    """
    values = {name for run in runs for name in run.fields()}
    aims = {part.aim for run in runs for _, part in run.parts()}
    named = [name if name in values else part_flags.field_of(name) for name in part_flags.given()]
    named = ["sparsity" if name == "penalty" else name for name in named if name not in (*_UNNAMED, *aims)]
    named += ["learning_rate"] if part_flags.values_of("learning_rate")[1] else []
    named += ["seed"] if any(run.seed for run in runs) else []
    suffix = "" if RECIPE.value == RECIPE.default else f"_recipe_{RECIPE.value}"
    folders = autoencoders.folders_of(saes_dir, runs, named, suffix)
    if not OVERWRITE.value:
        autoencoders.check_free(folders, runs, source)
    return folders


def train(runs: list[sae.Run], store: sae.ActivationStore, saes_dir: Path, checkpoint_dir: Path) -> list[Path]:
    """Trains and saves; goes on from a checkpoint, and a run that has finished only reads it. Returns the folders.

    `history.json` in each has the course of the run, `tensorboard/` beside them the same for TensorBoard.

    Raises:
      ValueError: before anything is trained, where another run's checkpoint or autoencoders are, for a folder that
        cannot be written, and for what `sae.train` refuses.
      OSError: before anything is trained, for a disk without room for the autoencoders; and when saving them fails all
        the same, with how to go on.
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
    """Raises ValueError for a --dtype that is not the one of the store's activations."""
    dtype = store.manifest.activation_dtype
    if common.DTYPE.value not in (None, dtype):
        raise ValueError(
            f"{store.name} has activations of a model in {dtype}, and --dtype={common.DTYPE.value} asks for others: "
            "leave it out, or harvest them into another folder"
        )


def main():
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    common.keep_compiled_programs()
    if PLAN_ONLY.value:
        plan_only()
        return
    store = sae.ActivationStore.open(STORE_DIR.value)
    check_dtype(store)
    runs = configs({site: store.width(site) for site in store.sites})
    print(run_words.about(RECIPE.value, runs[0]))
    for folder in train(runs, store, local_path(SAES_DIR.value), local_path(CHECKPOINT_DIR.value)):
        print(folder)


def plan_only() -> None:
    """Prints what the runs would take: on the rows of a store, or, where there is none, at sites of the model."""
    place, given = places.place(STORE_DIR.value), flags.FLAGS["store_dir"].present
    if given or (not flags.FLAGS["model"].present and place.read("manifest.json") is not None):
        source = sae.ActivationStore.open(place)
        widths, what = {site: source.width(site) for site in source.sites}, source.name
    else:
        config = gemma.config(common.MODEL.value)
        model = gemma.Model(param_shapes(config), config)  # its shapes alone
        sites = [*(TRAIN_SITES.value or harvest.sites(model)), *filter(None, [FIELDS["site_out"].value])]
        source = widths = {site: dim(token_site(model, site)) for site in sites}
        what = model.name
    runs = configs(widths)
    estimate = sae.estimate(runs, source, mesh())
    counted = "1 autoencoder" if len(runs) == 1 else f"{len(runs)} autoencoders"
    print(f"{counted} at {', '.join(dict.fromkeys('+'.join(run.sites) for run in runs))} of {what}\n{estimate}")
    estimate.check()


if __name__ == "__main__":
    running.run(main, check_flags)
