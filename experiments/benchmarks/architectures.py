r"""Every architecture at the same L0, on the same rows: L0, FVU and delta loss beside JumpReLU's.

    python -m experiments.benchmarks.architectures --out_dir=runs/architectures/gemma2-tiny --sites=layer_3/resid_post \
        --max_sequences=2000
    python -m experiments.benchmarks.architectures --out_dir=runs/architectures/gemma3-270m --sites=layer_9/resid_post \
        --model=gemma3-270m --max_sequences=700 --sink_factor=4 --eval_sequences=16 --latents=2048

All runs are the recipe `sae.short_run` with another architecture, sparsity term or objective in it, so that learning
rates, warm-ups, decay, the start and the order of the rows are the same; its learning rate was chosen for JumpReLU.
Architectures with a penalty have a controller that moves lambda until the L0 is the target, and keep the recipe's pull
on dead latents; architectures that keep k latents have AuxK in its place.

The launch goes on where it was stopped: autoencoders in the folder are not trained again. It writes the table to
`architectures.md` there, and the metrics to `architectures.json`, or where `--results` says.
"""

import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

import sae
from experiments import autoencoders, common, harvest, running
from experiments.scope import OUT_DIR
from sae.architectures import BatchTopK, Gated, ReLU, TopK
from sae.evaluation import kept
from sae.files import replace_file
from sae.objectives import Matryoshka
from sae.sparsity import ControlledL1, ControlledTanh


def tanh(run: sae.Run, dim: int) -> sae.Run:
    """Returns a run with the tanh penalty, the recipe's thresholds and first lambda, and Anthropic's scale."""
    # pyrefly: ignore[missing-attribute]  every term here has one
    first = run.sparsity[0].coefficient
    # pyrefly: ignore[bad-argument-type]  not None here
    term = ControlledTanh(first, l0_target=run.l0_target, scale=4 * math.sqrt(dim))
    return penalised(run, run.autoencoder, term)


def penalised(run: sae.Run, architecture: Any, term: Any) -> sae.Run:
    """Returns a run with another architecture and another penalty; dead latents are pulled back as before."""
    return dataclasses.replace(run, autoencoder=architecture, sparsity=(term, *run.sparsity[1:]))


def keeping(run: sae.Run, architecture: Any, **parts: Any) -> sae.Run:
    """Returns a run with an architecture that keeps k latents, without a penalty; AuxK revives dead latents."""
    return dataclasses.replace(run, autoencoder=architecture, sparsity=(), **parts)


# Each takes JumpReLU's run, and the length of an activation.
ARCHITECTURES: Mapping[str, Callable[[sae.Run, int], sae.Run]] = {
    "jumprelu": lambda run, dim: run,
    "tanh": tanh,
    # pyrefly: ignore[bad-argument-type]  not None here
    "topk": lambda run, dim: keeping(run, TopK(k=round(run.l0_target))),
    # pyrefly: ignore[bad-argument-type]  not None here
    "batchtopk": lambda run, dim: keeping(run, BatchTopK(k=run.l0_target)),
    # pyrefly: ignore[bad-argument-type]  not None here
    "matryoshka": lambda run, dim: keeping(run, BatchTopK(k=run.l0_target), objective=Matryoshka()),
    # pyrefly: ignore[bad-argument-type]  not None here
    "gated": lambda run, dim: penalised(run, Gated(), ControlledL1(l0_target=run.l0_target)),
    # pyrefly: ignore[bad-argument-type]  not None here
    "relu": lambda run, dim: penalised(run, ReLU(), ControlledL1(l0_target=run.l0_target)),
}
TITLES = {
    "jumprelu": "JumpReLU",
    "tanh": "JumpReLU, tanh penalty",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka BatchTopK",
    "gated": "gated, L1",
    "relu": "ReLU, L1",
}

TRAINED = flags.DEFINE_multi_enum("architectures", list(ARCHITECTURES), list(ARCHITECTURES), "Which to compare.")
TARGETS = flags.DEFINE_list("targets", ["20", "40"], "L0s to compare at.")
LATENTS = flags.DEFINE_integer("latents", None, "Latents. Default: 8 times the dim of the activation.", lower_bound=1)
STEPS = flags.DEFINE_integer("compared_steps", 450, "Steps.", lower_bound=1)
BATCH = flags.DEFINE_integer("compared_batch", 1024, "Tokens of a step.", lower_bound=1)
EVALUATED = flags.DEFINE_bool("evaluated", True, "Measure the autoencoders and write the table, once they are trained.")
RESULTS = flags.DEFINE_string("results", None, "File for the metrics. Default: architectures.json in --out_dir.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)


def runs_of(names: list[str], base: sae.Run, targets: list[float], dim: int) -> dict[str, list[sae.Run]]:
    """Returns the runs of each architecture, one for each L0.

    Args:
      names: of architectures.
      base: JumpReLU's run, with any target.
      targets: the L0s.
      dim: length of an activation at the run's site.
    """
    aims = [base.replace(l0_target=target) for target in targets]
    return {name: [ARCHITECTURES[name](run, dim) for run in aims] for name in names}


def folder_of(out: Path, name: str, run: sae.Run) -> Path:
    """Returns where the autoencoder of a run goes."""
    return out / "saes" / f"{name}_l0_{run.l0_target:g}_seed_{run.seed}"


def train(
    runs: Mapping[str, list[sae.Run]],
    store: sae.ActivationStore,
    out: Path,
    mesh: jax.sharding.Mesh | None = None,
) -> list[Path]:
    """Trains the architectures that are missing, and goes on from checkpoints. Runs of one share their batches.

    Args:
      runs: of each architecture.
      store: with the rows.
      out: the folder of the benchmark.
      mesh: as for `sae.train`.

    Returns:
      The folders of all, in the order of the runs.
    """
    folders = {name: [folder_of(out, name, run) for run in several] for name, several in runs.items()}
    for name, several in runs.items():
        autoencoders.check_free(folders[name], several, store)
    for name, several in runs.items():
        if all((folder / "info.json").exists() for folder in folders[name]):
            continue
        print(f"{TITLES[name]} …", flush=True)
        trained, history = sae.train(
            several, store, mesh, checkpoint_dir=out / "checkpoints" / name, progress=common.progress
        )
        autoencoders.save(trained, folders[name], history)
    return [folder for several in folders.values() for folder in several]


def commit() -> str:
    """Returns the commit of the checkout, with a + where files differ from it; empty outside of a checkout."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    if head.returncode:
        return ""
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here)
    return head.stdout.strip() + ("+" if changed.returncode else "")


def result_of(
    runs: Mapping[str, list[sae.Run]], metrics: list[sae.Metrics], store: sae.ActivationStore, began_at: str
) -> dict[str, Any]:
    """Returns all that the table shows, as JSON values: what the runs have in common, and the metrics of each.

    Args:
      runs: of each architecture.
      metrics: in the order of the runs.
      store: with the rows.
      began_at: the commit at the start.
    """
    flat = [(name, run) for name, several in runs.items() for run in several]
    first, one = flat[0][1], metrics[0]
    return {
        "model": store.manifest.model,
        "site": one.site,
        "rows": store.rows,
        "width": first.width,
        "steps": first.steps,
        "batch_size": first.batch_size,
        "seed": first.seed,
        "held_out_tokens": one.tokens,
        "held_out_documents": one.documents,
        "loss": one.loss,
        "commit": began_at,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__}",
        "autoencoders": [
            {"architecture": name, "l0_target": run.l0_target, **of.to_dict()}
            for (name, run), of in zip(flat, metrics, strict=True)
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns the metrics as Markdown, under a line with what the runs have in common.

    Args:
      result: as `result_of` returns it.
    """
    measured = f"{result['held_out_tokens']:,} tokens of {result['held_out_documents']:,} held-out documents"
    lines = [
        f"{result['model']}, `{result['site']}`: {result['rows']:,} rows, width {result['width']:,}, "
        f"{result['steps']:,} steps of {result['batch_size']:,} tokens, seed {result['seed']}; measured on {measured}, "
        f"whose loss is {result['loss']:.3f} nats ({result['date']}, {result['machine']}, commit {result['commit']}).",
        "",
        "| architecture | L0 asked for | L0 | FVU | delta loss, nats | loss recovered | dead |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["autoencoders"]:
        lines.append(
            f"| {TITLES[row['architecture']]} | {row['l0_target']:g} | {row['l0']:.1f} | {row['fvu']:.4f} | "
            f"{row['delta_loss']:.3f} | {row['loss_recovered']:.4f} | {row['dead']:,} |"
        )
    return "\n".join(lines)


def main():
    out, began_at = Path(OUT_DIR.value), commit()
    model = common.load_model()
    text, held_out = common.texts(model, folder=out / "text")
    (site,) = harvest.sites(model)
    store = harvest.harvest(model, text, out / "store")
    print(harvest.describe(store))
    dim = store.width(site)
    targets = [float(target) for target in TARGETS.value]
    base = sae.short_run(
        *(site, LATENTS.value or 8 * dim, STEPS.value),
        **{"batch_size": BATCH.value, "l0_target": targets[0], "seed": common.SEED.value},
    )
    runs = runs_of(list(dict.fromkeys(TRAINED.value)), base, targets, dim)
    folders = train(runs, store, out)
    if not EVALUATED.value:
        return
    metrics = kept.evaluate_folders(folders, model, held_out, progress=common.progress, say=print)
    result = result_of(runs, metrics, store, began_at)
    replace_file(Path(RESULTS.value or out / "architectures.json"), json.dumps(result, indent=1) + "\n")
    replace_file(out / "architectures.md", table(result) + "\n")
    print("\n" + table(result))


if __name__ == "__main__":
    running.run(main)
