"""Time and memory of a harvest against the number of tokens: 1, 4 and 16 times, each in its own process.

    python -m experiments.benchmarks.store_cost --plot=runs/store_cost.png

Memory is the largest resident memory above that of the process before the harvest (model loaded, one batch computed),
and is bounded by --shuffle_bytes, however large the store grows.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
from absl import flags

import gemma
import sae
from experiments import common, running
from sae.text import Sequences

SITES = ["layer_2/attn_z", "layer_2/mlp_out", "layer_2/resid_post"]
BASE = flags.DEFINE_integer("base_sequences", 2048, "Sequences of the smallest harvest.", lower_bound=16)
SHUFFLE_BYTES = flags.DEFINE_integer("shuffle_bytes", 512 << 20, "The bound, in bytes.", lower_bound=1)
PLOT = flags.DEFINE_string("plot", "runs/store_cost.png", "File for the picture.")
ONE = flags.DEFINE_integer("one", 0, "Harvest this many times the base, and say what it takes.", lower_bound=0)


def text(model: gemma.Model, count: int) -> Sequences:
    """Returns so many sequences of the shipped text, repeated."""
    whole, _ = common.texts(model)
    rows = [i % len(whole) for i in range(count)]
    # pyrefly: ignore[bad-argument-type]  a list serves as an array
    return whole.take(rows)


def one(times: int) -> dict:
    model = gemma.load(common.MODEL.value)
    sequences = text(model, times * BASE.value)
    with tempfile.TemporaryDirectory() as folder:
        sae.harvest(model, sequences.take(slice(0, 16)), SITES, Path(folder) / "warm")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        store = sae.harvest(model, sequences, SITES, Path(folder) / "store", shuffle_bytes=SHUFFLE_BYTES.value)
        seconds = time.perf_counter() - began
        above = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {"tokens": store.rows, "segments": len(store.segments), "seconds": seconds, "mib": above / 1024}


def main():
    if ONE.value:
        print(json.dumps(one(ONE.value)))
        return
    records = []
    for times in common.progress([1, 4, 16], total=3, desc="harvests"):
        command = [sys.executable, "-m", "experiments.benchmarks.store_cost", f"--one={times}"]
        command += [f"--base_sequences={BASE.value}", f"--shuffle_bytes={SHUFFLE_BYTES.value}"]
        command += [f"--model={common.MODEL.value}", f"--max_sequences={common.MAX_SEQUENCES.value}"]
        records.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"memory for shuffling bounded at {SHUFFLE_BYTES.value / 2**20:.0f} MiB")
    print(f"{'tokens':>12}{'segments':>10}{'seconds':>10}{'tokens/s':>12}{'MiB above':>12}")
    for row in records:
        rate = row["tokens"] / row["seconds"]
        print(f"{row['tokens']:12,}{row['segments']:10}{row['seconds']:10.1f}{rate:12,.0f}{row['mib']:12.1f}")
    plot(records, Path(PLOT.value))


def plot(records: list[dict], path: Path) -> None:
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    tokens = [row["tokens"] for row in records]
    left.loglog(tokens, [row["seconds"] for row in records], "o-", label="harvest")
    left.loglog(tokens, [records[0]["seconds"] * t / tokens[0] for t in tokens], ":", label="straight line")
    left.set(xlabel="tokens", ylabel="seconds", title="time")
    left.legend()
    right.semilogx(tokens, [row["mib"] for row in records], "o-", label="largest memory above the start")
    right.axhline(SHUFFLE_BYTES.value / 2**20, linestyle=":", label="--shuffle_bytes")
    right.set(xlabel="tokens", ylabel="MiB", title="memory", ylim=(0, None))
    right.legend()
    for axis in (left, right):
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    running.run(main)
