r"""What evaluating an autoencoder costs beside the forward passes that it makes, in time and memory.

    python -m experiments.benchmarks.evaluation_cost --model=gemma3-270m --eval_sequences=16

No evaluation can do without these passes: one from the text to the site, and three from the site to the logits
(clean, with zero, with the reconstruction), made by the model's own `apply` with the residual stream put in at the
site's layer, under `jit`, without a loss. Their batches have as many sequences as are fastest here, since the logits
of many take memory. The sides take turns, and the first of a round is last in the next. Wall-clock time is what a user
waits; CPU time is of all threads, and steadier where the machine has other work.

Memory is the largest resident memory (VmHWM, reset before) of the first evaluation, compilation included: above the
memory of the process with the model loaded, and above the parameters alone.
"""

import functools
import gc
import itertools
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import gemma
import sae
from experiments import common, running
from mishax_lite.compiling import jit_forward
from sae.capturing import activations_at
from sae.evaluation.counting import sites_to_capture
from sae.sites import dim, token_site

SITE = flags.DEFINE_string("cost_site", "layer_9/resid_post", "Where the autoencoder is spliced in.")
WIDTH = flags.DEFINE_integer("cost_width", 4096, "Latents of the autoencoder.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("cost_rounds", 5, "How often each side is run, after once to compile.", lower_bound=1)
# What --help lists.
flags.adopt_module_key_flags(common)

PASSES = 3  # from the site on: clean, with zero, with the reconstruction
PASS_BATCHES = (2, 8)  # sequences, of which the fastest number is taken
LIMIT, LIMIT_GIB = 1.3, 1.5
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


def drawn(model: gemma.Model, site: str, width: int, seed: int) -> sae.JumpReLU:
    """Returns an autoencoder of random weights: what it computes changes no time."""
    A = dim(token_site(model, site))
    W = jax.random.normal(jax.random.key(seed), (A, width)) / np.sqrt(A)
    info = sae.Info(model.name, site, site)
    return sae.JumpReLU(W, jnp.zeros(width), W.T, jnp.zeros(A), jnp.full(width, 10.0), info=info)


@jit_forward
def logits_with(model: gemma.Model, tokens: jax.Array, values: dict[str, jax.Array]) -> jax.Array:
    """Returns the logits [B, T, V] with values [B, T, A] in the place of whole activations."""
    put = lambda new: lambda value, _: new.reshape(value.shape)  # noqa: E731
    return model.lean.apply(tokens, edits={site: put(new) for site, new in values.items()})


def passes(model: gemma.Model, tokens: np.ndarray, site: str, batch: int) -> None:
    """Makes one forward pass to a site over tokens [S, T], and `PASSES` from there to the logits."""
    names = (*model.resumption((site,)), site)
    for start in range(0, len(tokens), batch):
        part = jnp.asarray(tokens[start : start + batch])
        captured = activations_at(model, part, sites_to_capture(model, site, site, sae.Counted(())))
        values = {name: captured[name] for name in names}
        for _ in range(PASSES):
            logits_with(model, part, values).block_until_ready()


def timed(do: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds of a call by each clock."""
    before = {name: clock() for name, clock in CLOCKS.items()}
    do()
    return {name: clock() - before[name] for name, clock in CLOCKS.items()}


def resident(field: str) -> int:
    """Returns bytes of resident memory: VmRSS, now; VmHWM, the most since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    # pyrefly: ignore[unsupported-operation]  not None here
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) << 10


def forget_peak() -> None:
    """Begins to measure the largest resident memory anew (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def fastest_batch(model: gemma.Model, tokens: np.ndarray, site: str) -> int:
    """Returns the number of sequences with which the passes take the least time."""
    seconds = {}
    for batch in (size for size in PASS_BATCHES if len(tokens) % size == 0):
        passes(model, tokens[:batch], site, batch)  # compiles
        seconds[batch] = timed(lambda batch=batch: passes(model, tokens, site, batch))["wall"]
    print("the passes by sequences of a batch: " + ", ".join(f"{b}: {s:.1f} s" for b, s in seconds.items()))
    return min(seconds, key=lambda size: seconds[size])


def aim(value: float, limit: float) -> str:
    return f"{'met' if value <= limit else 'MISSED'}: at most {limit}"


def main():
    model = gemma.load(common.MODEL.value)
    tokens = common.texts(model)[1].tokens
    autoencoder = drawn(model, SITE.value, WIDTH.value, common.SEED.value)
    evaluate = functools.partial(sae.evaluate, autoencoder, model, tokens)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    print(
        f"{model.name}, {SITE.value}, {WIDTH.value} latents; {len(tokens)} sequences of {tokens.shape[1]} = "
        f"{tokens.size:,} tokens; {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    )
    gc.collect()
    before = resident("VmRSS")
    forget_peak()
    first = timed(evaluate)
    peak = resident("VmHWM")
    print(f"the first evaluation, compiling: {first['wall']:.1f} s, {first['CPU']:.1f} s of CPU time")
    for name, start in (("the model loaded", before), ("the parameters", parameters)):
        above = (peak - start) / 2**30
        print(f"memory above {name} ({start / 2**30:.2f} GiB): {above:.2f} GiB   {aim(above, LIMIT_GIB)}")
    sides = {"evaluate": evaluate}
    sides["passes"] = functools.partial(passes, model, tokens, SITE.value, fastest_batch(model, tokens, SITE.value))
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in common.progress(range(ROUNDS.value), total=ROUNDS.value, desc="rounds"):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(timed(sides[name]))
    for clock, (name, runs) in itertools.product(CLOCKS, seconds.items()):
        print(f"{name:9} {clock:5} {statistics.median(run[clock] for run in runs):7.2f} s")
    for clock in CLOCKS:
        pairs = zip(seconds["evaluate"], seconds["passes"], strict=True)
        ratios = [ours[clock] / theirs[clock] for ours, theirs in pairs]
        middle = statistics.median(ratios)
        spread = f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"evaluate / passes, {clock}: {spread}   {aim(middle, LIMIT)}")


if __name__ == "__main__":
    running.run(main)
