"""What capturing every site costs, beside copies of the model that were written by hand to return the same values.

python -m experiments.benchmarks.capture_cost

`capture(model.apply, ["*"])` and the two copies of `hand_written.py` (one keeps Flax, one does without) are traced,
lowered, compiled and run in one process, by turns, with JAX's caches cleared before each build. The report has the
median over the rounds of the ratio within a round, with the least and the greatest. Wall-clock time is what a user
waits; the CPU time of the process (all of its threads) is steadier where the machine has other work. The optimised
HLO settles the question of run time better than any clock: it is the same but for names and metadata, or not.
"""

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import gemma
import mishax_lite
from experiments import common, running
from experiments.benchmarks import hand_written
from gemma.model import param_shapes

BATCH = flags.DEFINE_integer("batch", 2, "Sequences of a forward pass. Default: 2.", lower_bound=1)
ROUNDS = flags.DEFINE_integer(
    "rounds", 25, "How often each program is built, after one round to warm up. Default: 25.", lower_bound=1
)
RUNS = flags.DEFINE_integer("runs", 100, "How often each program is run, after one. Default: 100.", lower_bound=1)

CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}
# By step, the greatest ratio of capture's time to a copy's that meets the aim.
LIMITS = {"tracing": 2.5, "lower + compile": 1.05, "running": 1.05}

Returned = tuple[jax.Array, dict[str, jax.Array]]
Seconds = dict[str, dict[str, float]]  # by step and clock


def captured(model: gemma.Model, tokens: jax.Array) -> Returned:
    """Returns the logits and every site, by capture."""
    return mishax_lite.capture(model.apply, ["*"])(tokens)


def flax_copy(model: gemma.Model, tokens: jax.Array) -> Returned:
    """Returns the same by the copy that keeps Flax, in full float32 as `Model.apply` does."""
    with jax.default_matmul_precision("highest"):
        return hand_written.flax_forward(model.config, model.params, tokens)


def plain_copy(model: gemma.Model, tokens: jax.Array) -> Returned:
    """Returns the same by the copy without Flax, in full float32 as `Model.apply` does."""
    with jax.default_matmul_precision("highest"):
        return hand_written.forward(model.config, model.params, tokens)


CAPTURE, COPIES = "capture", {"Flax copy": flax_copy, "plain copy": plain_copy}
PROGRAMS = {CAPTURE: captured, **COPIES}


def load_or_draw(name: str) -> gemma.Model:
    """Returns the model in float32; where a preset's folder is missing, a model of its shape with random parameters."""
    try:
        return gemma.load(name)
    except ValueError:
        if Path(name).exists():
            raise
        config = gemma.config(name)
    leaves, tree = jax.tree.flatten(param_shapes(config))
    keys = jax.random.split(jax.random.key(common.SEED.value), len(leaves))
    drawn = [0.02 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return gemma.Model(jax.tree.unflatten(tree, drawn), config)


def check_equal(model: gemma.Model, tokens: jax.Array) -> int:
    """Returns the number of sites, once all programs return the same logits and the same value at each, bit for bit.

    Raises:
      ValueError: for programs that differ. It names the sites that only one has, or whose values differ.
    """
    names = gemma.sites.names(model.config)
    returned = {name: jax.device_get(jax.jit(program)(model, tokens)) for name, program in PROGRAMS.items()}
    logits, sites = returned[CAPTURE]
    for name, (other_logits, other) in returned.items():
        if set(other) != set(names):
            raise ValueError(f"{name}: got other sites than gemma.sites.names: {sorted(set(other) ^ set(names))}")
        differing = [site for site in names if not _identical(sites[site], other[site])]
        if differing or not _identical(logits, other_logits):
            raise ValueError(f"{name}: got other values than capture at {', '.join(differing) or 'the output'}")
    return len(names)


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


def nameless(hlo: str) -> str:
    """Returns HLO text with names numbered by first use, without metadata and the tables of source lines."""
    lines = hlo.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(("%", "ENTRY")))
    text = re.sub(r", metadata=\{[^}]*\}", "", "\n".join(lines[start:]))
    numbers: dict[str, str] = {}
    # A name has a % before it; a parameter in the head of a computation has a colon after it.
    return re.sub(
        r"%([\w.-]+)|\b([\w.-]+)(?=: )",
        lambda match: numbers.setdefault(match[1] or match[2], f"%{len(numbers)}"),
        text,
    )


def programs_like_capture(model: gemma.Model, tokens: jax.Array) -> dict[str, bool]:
    """Returns for each copy whether its optimised HLO is that of capture, but for names and metadata."""
    hlo = {name: jax.jit(f).lower(model, tokens).compile().as_text() for name, f in PROGRAMS.items()}
    # pyrefly: ignore[bad-argument-type]  not None here
    return {name: nameless(hlo[name]) == nameless(hlo[CAPTURE]) for name in COPIES}


def timed(do: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Returns what `do` returns, and the seconds that it took by each clock."""
    before = {name: clock() for name, clock in CLOCKS.items()}
    result = do()
    return result, {name: clock() - before[name] for name, clock in CLOCKS.items()}


def build(program: Callable, model: gemma.Model, tokens: jax.Array) -> Seconds:
    """Returns the seconds of each step from a function to an executable, with nothing cached."""
    jax.clear_caches()
    gc.collect()
    traced, tracing = timed(lambda: jax.jit(program).trace(model, tokens))
    lowered, lowering = timed(traced.lower)
    _, compilation = timed(lowered.compile)
    both = {clock: lowering[clock] + compilation[clock] for clock in CLOCKS}
    return {"tracing": tracing, "lowering": lowering, "compilation": compilation, "lower + compile": both}


def run(jitted: Callable, model: gemma.Model, tokens: jax.Array) -> Seconds:
    """Returns the seconds of one run of a compiled function."""
    return {"running": timed(lambda: jax.block_until_ready(jitted(model, tokens)))[1]}


def by_turns(measure: Callable[[Any], Seconds], programs: Mapping[str, Any], count: int) -> list[dict[str, Seconds]]:
    """Returns what `measure` does for each program, `count` times by turns; the first of a turn is last in the next."""
    rounds, order = [], list(programs)
    for _ in common.progress(range(count + 1), desc=measure.__name__):
        rounds.append({name: measure(programs[name]) for name in order})
        order = order[1:] + order[:1]
    return rounds[1:]  # the first warms up


def table(rounds: list[dict[str, Seconds]]) -> list[str]:
    """Returns for each step, clock and copy a line with the medians, the ratios and whether the aim is met."""
    lines = []
    for step in rounds[0][CAPTURE]:
        for copy in COPIES:
            for clock in CLOCKS:
                ours, theirs = ([r[name][step][clock] for r in rounds] for name in (CAPTURE, copy))
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                middle, limit = statistics.median(ratios), LIMITS.get(step)
                aim = "" if limit is None else f"   {'met' if middle <= limit else 'MISSED'}: at most {limit}"
                medians = f"{1e3 * statistics.median(ours):9.1f} {1e3 * statistics.median(theirs):9.1f}"
                spread = f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                lines.append(f"{step:16} {copy:11} {clock:5} {medians}   {spread}{aim}")
    return lines


def main():
    model = load_or_draw(common.MODEL.value)
    shape = (BATCH.value, common.LENGTH.value)
    tokens = jax.random.randint(jax.random.key(common.SEED.value), shape, 0, model.config.vocab_size, jnp.int32)
    device = jax.devices()[0]
    print(f"{model.config.name}, tokens {list(shape)}, {device.platform} ({device.device_kind}), JAX {jax.__version__}")
    print(f"values: {check_equal(model, tokens)} sites and the logits are the same, bit for bit")
    for copy, same in programs_like_capture(model, tokens).items():
        print(f"optimised HLO, names and metadata aside: {'equal to' if same else 'NOT equal to'} that of the {copy}")

    def building(program):
        return build(program, model, tokens)

    def running(program):
        return run(program, model, tokens)

    lines = table(by_turns(building, PROGRAMS, ROUNDS.value))
    lines += table(by_turns(running, {name: jax.jit(program) for name, program in PROGRAMS.items()}, RUNS.value))
    print(f"\n{'step':16} {'against':11} {'clock':5} {'capture':>9} {'copy':>9}   ratio (least to greatest)")
    print("\n".join(lines))
    print(f"milliseconds; medians of {ROUNDS.value} builds and {RUNS.value} runs of each, by turns")


if __name__ == "__main__":
    running.run(main)
