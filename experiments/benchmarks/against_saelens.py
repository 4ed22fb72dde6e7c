r"""Our trainer beside SAELens 6's, JumpReLU and BatchTopK: the same rows, tokens, width and batch size.

    python -m experiments.harvest --model=gemma3-270m --sites=layer_9/resid_post --max_sequences=3200 --sink_factor=4 \
        --store_dir=runs/real/store
    python -m experiments.benchmarks.against_saelens --model=gemma3-270m --store_dir=runs/real/store \
        --out_dir=runs/real --saelens_python=ENVIRONMENT/bin/python

SAELens needs an environment of its own (`pip install torch==2.13.0 sae-lens==6.54.12`); `saelens_worker.py` says how it
is set up there. The folder holds results of one width, length and store: name another folder for others. Each side has
the learning rate of --rates with the least delta loss at a target L0 of 40; the other targets follow with it, and a
second seed at two of them. `sae.evaluate` measures all, on held-out text without BOS and sinks. Existing results are
kept: the launch goes on where it was stopped.
"""

import dataclasses
import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from matplotlib.ticker import LogLocator, ScalarFormatter

import gemma
import sae
from experiments import common, running
from experiments.harvest import STORE_DIR
from experiments.scope import OUT_DIR
from sae.evaluation.fidelity import Baseline, baseline
from sae.records import Record

WORKER = Path(__file__).parent / "saelens_worker.py"
SIDES = ("ours", "batchtopk", "jumprelu")
CHOSEN, SECOND_SEED = 40.0, (40.0, 80.0)
AIM = -6  # how far below the target SAELens's quadratic loss must aim for its JumpReLU to end at the target
BEYOND = 1.1  # how far beyond a side's points its line is drawn on

PYTHON = flags.DEFINE_string("saelens_python", None, "The interpreter of the environment with SAELens.")
TARGETS = flags.DEFINE_list("targets", ["20", "40", "80", "160"], "Target L0s; 40 among them.")
RATES = flags.DEFINE_list("rates", ["1e-3", "3e-3", "3e-4"], "Learning rates to choose from.")
COMPARED = flags.DEFINE_multi_enum("sides", SIDES, SIDES, "Which sides to train, or read, and report.")
WIDTH = flags.DEFINE_integer("compared_width", 4096, "Latents.", lower_bound=1)
STEPS = flags.DEFINE_integer("compared_steps", 1200, "Steps.", lower_bound=1)
BATCH = flags.DEFINE_integer("compared_batch", 512, "Tokens of a step.", lower_bound=1)
# What --help lists.
flags.adopt_module_key_flags(common)


@dataclasses.dataclass(frozen=True)
class Job:
    """An autoencoder to train."""

    side: str
    target: float
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.side}_l0_{self.target:g}_lr_{self.rate:g}_seed_{self.seed}"


def rows_file(store: sae.ActivationStore, out: Path) -> Path:
    """Returns the rows of the store's one site as a .npy file, which SAELens's side reads."""
    file = out / "rows.npy"
    if not file.exists():
        (site,) = store.sites
        parts = [store.rows_between(site, index, 0, rows) for index, rows in store.segments]
        np.save(out / "rows.new.npy", np.random.default_rng(0).permutation(np.concatenate(parts)))
        (out / "rows.new.npy").rename(file)
    return file


def train_ours(jobs: list[Job], store: sae.ActivationStore, out: Path) -> None:
    """Trains the missing autoencoders, all on the same batches."""
    missing = [job for job in jobs if not (out / job.name / "params.npz").exists()]
    if not missing:
        return
    (site,) = store.sites
    configs = [
        sae.short_run(
            *(site, WIDTH.value, STEPS.value),
            **{"batch_size": BATCH.value, "l0_target": job.target, "learning_rate": job.rate, "seed": job.seed},
        )
        for job in missing
    ]
    autoencoders, history = sae.train(configs, store, progress=common.progress)
    for number, (job, autoencoder) in enumerate(zip(missing, autoencoders, strict=True)):
        sae.save(autoencoder, out / job.name)
        mine = [record for record in history if record["run"] == number]
        (out / job.name / "history.json").write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def train_theirs(jobs: list[Job], store: sae.ActivationStore, out: Path) -> None:
    """Trains the missing autoencoders, each in a process."""
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    for job in common.progress(jobs, total=len(jobs), desc="SAELens"):
        if (out / job.name / "result.json").exists():
            continue
        if PYTHON.value is None:
            raise ValueError(f"{out / job.name} is missing: --saelens_python names an interpreter with SAELens")
        arguments = {
            **{"rows": str(rows_file(store, out)), "out": str(out / job.name), "architecture": job.side},
            **{"width": WIDTH.value, "steps": STEPS.value, "batch_size": BATCH.value, "threads": os.cpu_count()},
            **{"learning_rate": job.rate, "seed": job.seed},
            "l0": round(job.target + AIM if job.side == "jumprelu" else job.target),
        }
        process = subprocess.run(
            [PYTHON.value, str(WORKER), json.dumps(arguments)],
            **{"env": os.environ | quiet, "capture_output": True, "text": True},
        )
        if process.returncode:
            raise ValueError(f"SAELens's side failed in {job.name}: {process.stderr.strip().splitlines()[-1]}")


def measurer(store: sae.ActivationStore, out: Path) -> Callable[[Job], sae.Metrics]:
    """Returns a function that evaluates a job's autoencoder, or reads its metrics."""
    model = gemma.load(common.MODEL.value)
    _, held_out = common.texts(model)
    (site,) = store.sites
    info = sae.Info(
        store.manifest.model, site, site, counted=store.counted, record=Record(store.manifest.model_fingerprint)
    )
    shared: list[Baseline] = []

    def measure(job: Job) -> sae.Metrics:
        file = out / job.name / "metrics.json"
        if not file.exists():
            autoencoder = dataclasses.replace(sae.load(out / job.name), info=info)
            if not shared:
                shared.append(baseline(model, held_out, site, counted=info.counted, progress=common.progress))
            metrics = sae.evaluate(autoencoder, model, held_out, baseline=shared[0], progress=common.progress)
            file.write_text(json.dumps(metrics.to_dict(), indent=1) + "\n", encoding="utf-8")
        return sae.Metrics(**json.loads(file.read_text(encoding="utf-8")))

    return measure


def compare(side: str, store: sae.ActivationStore, out: Path, measure: Callable) -> dict[Job, sae.Metrics]:
    """Returns the metrics of all jobs of a side, at the learning rate that did best."""
    train = train_ours if side == "ours" else train_theirs
    grid = [Job(side, CHOSEN, float(rate), 0) for rate in RATES.value]
    train(grid, store, out)
    best = min(grid, key=lambda job: measure(job).delta_loss)
    print(f"{side}: delta loss at {CHOSEN:g} " + ", ".join(f"{j.rate:g}: {measure(j).delta_loss:.3f}" for j in grid))
    jobs = [Job(side, float(target), best.rate, 0) for target in TARGETS.value]
    jobs += [Job(side, target, best.rate, 1) for target in SECOND_SEED if f"{target:g}" in TARGETS.value]
    train(jobs, store, out)
    return {job: measure(job) for job in jobs}


def at_equal_l0(jobs: dict[Job, sae.Metrics], l0: float, field: str) -> float:
    """Returns a metric at an L0 between a side's points, each the mean over its seeds: straight in the logarithms, and
    as far as BEYOND outside of them; NaN further away."""
    seeds = [[m for job, m in jobs.items() if job.target == target] for target in {job.target for job in jobs}]
    points = np.array(sorted([np.mean([m.l0 for m in s]), np.mean([getattr(m, field) for m in s])] for s in seeds))
    if not points[0, 0] / BEYOND <= l0 <= points[-1, 0] * BEYOND or len(points) < 2:
        return math.nan
    right = min(max(np.searchsorted(points[:, 0], l0), 1), len(points) - 1)
    (x0, y0), (x1, y1) = np.log(points[right - 1 : right + 1])
    return math.exp(y0 + (y1 - y0) * (math.log(l0) - x0) / (x1 - x0))


def report(results: dict[str, dict[Job, sae.Metrics]], out: Path) -> None:
    print("| | target L0 | rate | seed | L0 | FVU | delta loss | loss recovered | dead |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for side, jobs in results.items():
        for job, m in jobs.items():
            print(
                f"| {side} | {job.target:g} | {job.rate:g} | {job.seed} | {m.l0:.1f} | {m.fvu:.4f} | "
                f"{m.delta_loss:.3f} | {m.loss_recovered:.4f} | {m.dead} |"
            )
    print("\nOurs over theirs at equal L0:")
    for m in results.get("ours", {}).values():
        for side in [side for side in results if side != "ours"]:
            ratios = [getattr(m, field) / at_equal_l0(results[side], m.l0, field) for field in ("fvu", "delta_loss")]
            print(f"L0 {m.l0:.1f}, {side}: FVU {ratios[0]:.2f}, delta loss {ratios[1]:.2f}")
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, field, name in zip(axes, ("fvu", "delta_loss"), ("FVU", "delta loss, nats"), strict=True):
        for number, (side, jobs) in enumerate(results.items()):
            points = sorted((m.l0, getattr(m, field)) for job, m in jobs.items() if job.seed == 0)
            axis.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=side)
            again = [(m.l0, getattr(m, field)) for job, m in jobs.items() if job.seed]
            if again:
                axis.plot(*zip(*again, strict=True), "x", color=f"C{number}")
        axis.set(xscale="log", xlabel="L0 (crosses: another seed)", ylabel=name, ylim=(0, None))
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 4.0, 8.0)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    figure.savefig(out / "frontier.png", dpi=110)
    print(f"picture: {out / 'frontier.png'}")


def main():
    out = Path(OUT_DIR.value)
    out.mkdir(parents=True, exist_ok=True)
    store = sae.ActivationStore.open(STORE_DIR.value)
    measure = measurer(store, out)
    report({side: compare(side, store, out, measure) for side in COMPARED.value}, out)


if __name__ == "__main__":
    running.run(main)
