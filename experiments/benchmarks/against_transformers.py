"""The speed of the forward pass and of decoding beside Hugging Face's transformers, in float32, on this machine.

    make test-peers   # once, for the environment of torch and transformers
    python -m experiments.benchmarks.against_transformers

Two processes, this one and transformers', take turns, so that each has all cores to itself. The report has the
median over the rounds of the ratio within a round, with the least and the greatest. In the same rounds both measure
the matrix product (a large square one) and the reading of memory (a sum of 1 GiB); the better of the two is the peak.
"""

import functools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import gemma
from experiments import common, running
from sae.capturing import activations_at

PEER = flags.DEFINE_string("peer", ".venv-peers/bin/python", "The Python that has torch and transformers.")
LAYER = flags.DEFINE_integer("layer", 9, "The forward pass goes as far as this layer's resid_post.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch", 8, "Sequences of the forward pass.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 512, "Tokens of each.", lower_bound=2)
PROMPT = flags.DEFINE_integer("prompt_tokens", 16, "Tokens before those that are decoded.", lower_bound=1)
NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens to decode.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds, after one to warm up.", lower_bound=1)
SQUARE = 3072
READ = 2**28  # numbers of four bytes

Jobs = dict[str, Callable[[], jax.Array]]


class Peer:
    """transformers in a process of its own, which runs the jobs that it is told."""

    def __init__(self, python: str, model: gemma.Model, folder: Path, job: dict[str, np.ndarray]):
        gemma.save(model, folder / "model", "huggingface")
        # pyrefly: ignore[bad-argument-type]  the keys say which is which
        np.savez(folder / "job.npz", **job)
        worker = Path(__file__).with_name("transformers_worker.py")
        command = [python, str(worker), str(folder / "model"), str(folder / "job.npz")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
        )
        self.about = self._answer()

    def seconds(self, job: str) -> float:
        """Returns the seconds of one run of a job."""
        # pyrefly: ignore[missing-attribute]  not None here
        self._process.stdin.write(job + "\n")
        # pyrefly: ignore[missing-attribute]  not None here
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        # pyrefly: ignore[missing-attribute]  not None here
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        # pyrefly: ignore[missing-attribute]  not None here
        line = self._process.stdout.readline()
        if not line:
            # pyrefly: ignore[missing-attribute]  not None here
            raise ValueError(f"transformers' process ended: {self._process.stderr.read()[-2000:]}")
        return json.loads(line)


def our_jobs(model: gemma.Model, job: dict[str, np.ndarray]) -> Jobs:
    """Returns the jobs of `transformers_worker.py`, as users of this package run them."""
    site = f"layer_{int(job['layers']) - 1}/resid_post"
    tokens, prompts = jnp.asarray(job["tokens"]), job["prompt"].tolist()
    square = jax.random.normal(jax.random.key(0), (int(job["size"]),) * 2)
    big = jnp.ones(READ)
    matmul, read = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    generate = functools.partial(gemma.generate, model, prompts, max_new_tokens=int(job["new"]), stop_tokens=())
    return {
        "forward": lambda: activations_at(model, tokens, (site,))[site],
        # pyrefly: ignore[missing-attribute]  without `stream` it is a Generation
        "decode": lambda: generate().tokens,
        "matmul": lambda: matmul(square, square),
        "read": lambda: read(big),
    }


def products(config: gemma.Config, layers: int, batch: int, length: int) -> dict[str, float]:
    """Returns the floating-point operations of the products with parameters, and of attention, where a query meets
    the keys up to itself."""
    c = config
    parameters = c.d_model * (c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads) + 3 * c.d_ff)
    pairs = sum(
        sum(min(t + 1, c.window) if kind == "local" else t + 1 for t in range(length))
        for kind in c.layer_kinds[:layers]
    )
    return {
        "with parameters": 2.0 * layers * batch * length * parameters,
        "of attention": 4.0 * batch * pairs * c.num_heads * c.head_dim,
    }


def measure(jobs: Jobs, peer: Peer, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Returns for each job the seconds of every round: ours, and transformers'."""
    times = {name: ([], []) for name in jobs}
    for round_ in common.progress(range(rounds + 1), total=rounds + 1, desc="rounds"):
        for name, run in jobs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            ours = time.perf_counter() - began
            theirs = peer.seconds(name)
            if round_:
                times[name][0].append(ours)
                times[name][1].append(theirs)
    return times


def agree(jobs: Jobs, about: dict) -> None:
    """Raises ValueError where the two compute different values."""
    norms = np.linalg.norm(np.asarray(jobs["forward"]()), axis=-1)
    off = np.abs(norms / np.asarray(about["results"]["forward"]) - 1).max()
    if off > 1e-3:
        raise ValueError(f"the residual streams' norms differ by {off:.1e} relative: the two do not do the same work")
    if np.asarray(jobs["decode"]()).tolist() != about["results"]["decode"]:
        raise ValueError("the two decode different tokens")


def report(config: gemma.Config, seconds_of: dict, about: dict) -> str:
    """Returns the measurements as text."""
    best = {name: min(map(statistics.median, times)) for name, times in seconds_of.items()}
    peak, bandwidth = 2.0 * SQUARE**3 / best["matmul"], 4.0 * READ / best["read"]
    lines = [
        f"{config.name}, float32; jax {jax.__version__}, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items()),
        f"peak measured: {peak / 1e9:.0f} GFLOP/s in a matrix product, {bandwidth / 1e9:.1f} GB/s read",
    ]
    for name in ("forward", "decode", "matmul", "read"):
        ours, theirs = seconds_of[name]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"{name:8} ours {statistics.median(ours):7.3f} s, transformers {statistics.median(theirs):7.3f} s, "
            f"speed {statistics.median(ratios):.2f} times theirs ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    work = products(config, LAYER.value + 1, BATCH.value, TOKENS.value)
    seconds, total = statistics.median(seconds_of["forward"][0]), sum(work.values())
    lines.append(
        f"forward: {BATCH.value * TOKENS.value / seconds:,.0f} tokens/s; its matrix products "
        f"({', '.join(f'{v / 1e9:.0f} GFLOP {k}' for k, v in work.items())}) at {total / seconds / peak:.0%} of peak"
    )
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(gemma.model.param_shapes(config)))
    step = statistics.median(seconds_of["decode"][0]) / NEW.value
    lines.append(
        f"decode: {1 / step:.1f} tokens/s; {size / 1e9:.2f} GB of parameters a token, at {size / step / bandwidth:.0%} "
        "of the measured bandwidth"
    )
    return "\n".join(lines)


def main():
    model = gemma.load(common.MODEL.value)
    rng = np.random.default_rng(common.SEED.value)
    draw = lambda *shape: rng.integers(1000, 200_000, shape)  # noqa: E731
    job = {
        "tokens": np.concatenate([np.full((BATCH.value, 1), 2), draw(BATCH.value, TOKENS.value - 1)], axis=1),
        "prompt": np.concatenate([np.full((1, 1), 2), draw(1, PROMPT.value - 1)], axis=1),
        "layers": np.int64(LAYER.value + 1),
        "new": np.int64(NEW.value),
        "size": np.int64(SQUARE),
    }
    with tempfile.TemporaryDirectory() as folder:
        # pyrefly: ignore[bad-argument-type]  numbers of numpy are arrays to the peer
        peer = Peer(PEER.value, model, Path(folder), job)
        # pyrefly: ignore[bad-argument-type]  numbers of numpy are arrays to the peer
        jobs = our_jobs(model, job)
        agree(jobs, peer.about)
        times = measure(jobs, peer, ROUNDS.value)
        peer.close()
    print(report(model.config, times, peer.about))


if __name__ == "__main__":
    flags.FLAGS.set_default("model", "gemma3-270m")
    running.run(main)
