"""Measures on a GPU what this package promises for GPUs.

    JAX_PLATFORMS=cuda python -m experiments.benchmarks.gpu_checks

- Compiling `gemma2-tiny` with one site captured: 2 s at most, with the options of `mishax_lite/compiling.py` (beside
  them XLA's own defaults, with --defaults, which take 20 s).
- Fused attention beside plain, on 13 layers of random weights, bfloat16, 8 sequences of 1,024 tokens: of Gemma 2 2B at
  most 1.1 times the time and less memory, of Gemma 3 4B no more time. The two take turns; the report has the median of
  the ratios, with the least and the greatest.

It runs on any platform, but its numbers mean something on a GPU alone. --layers, --batch and --tokens make it small.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import gemma
import mishax_lite
from experiments import running
from gemma.model import param_shapes
from mishax_lite.compiling import compiler_options

MODELS = flags.DEFINE_list("gpu_models", "gemma2-2b,gemma3-4b", "Presets whose shapes are measured.")
LAYERS = flags.DEFINE_integer("layers", 13, "Their first layers.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 8, "Sequences.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 1024, "Tokens of a sequence.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds in which plain and fused take turns.", lower_bound=1)
DEFAULTS = flags.DEFINE_bool("defaults", False, "Compile gemma2-tiny with XLA's defaults too.")


def capturing(site: str, attention: str) -> Callable:
    """Returns a function of (model, tokens) to the activations at a site, which runs no deeper than the site."""
    # pyrefly: ignore[bad-argument-type]  not None here
    capture = mishax_lite.capture(functools.partial(gemma.Model.apply, attention=attention), [site])
    return lambda model, tokens: capture(model, tokens)[1]


def compiled(function: Callable, *args, options: dict) -> tuple[jax.stages.Compiled, float]:
    """Returns the compiled function and the seconds of compiling, without tracing."""
    lowered, start = jax.jit(function).lower(*args), time.perf_counter()
    return lowered.compile(compiler_options=options), time.perf_counter() - start


def random_model(name: str, layers: int) -> gemma.Model:
    """Returns the first layers of a preset with random bfloat16 weights and a small vocabulary."""
    config = dataclasses.replace(gemma.config(name), num_layers=layers, vocab_size=4096)
    leaves, tree = jax.tree.flatten(param_shapes(config, jnp.bfloat16))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1)
    params = [make(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return gemma.Model(jax.tree.unflatten(tree, params), config, dtype=jnp.dtype("bfloat16"))


def tiny() -> list[str]:
    """Returns lines on compiling the shipped model with one site captured."""
    model, tokens = gemma.load("gemma2-tiny"), jnp.zeros((8, 256), jnp.int32)
    cases = {"our options": compiler_options("forward")} | ({"XLA's defaults": {}} if DEFAULTS.value else {})
    lines = []
    for name, options in cases.items():
        _, seconds = compiled(capturing("layer_3/resid_post", "plain"), model, tokens, options=options)
        lines.append(f"| gemma2-tiny, one site, {name} | {seconds:.1f} | | | |")
    return lines


def attention(name: str) -> list[str]:
    """Returns lines on plain and fused attention in a model of a preset's shape."""
    model = random_model(name, LAYERS.value)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 4096, (BATCH.value, TOKENS.value)), jnp.int32)
    site, times = f"layer_{LAYERS.value - 1}/resid_post", {"plain": [], "fused": []}
    programs = {
        mode: compiled(capturing(site, mode), model, tokens, options=compiler_options("forward")) for mode in times
    }
    for round_ in range(ROUNDS.value + 1):
        for mode, (program, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(model, tokens))
            if round_:  # the first of each warms up
                times[mode].append(time.perf_counter() - start)
    ratios = [fused / plain for plain, fused in zip(times["plain"], times["fused"], strict=True)]
    compared = {"plain": "", "fused": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"}
    return [
        f"| {name}, {LAYERS.value} layers, {mode} | {seconds:.1f} | {1e3 * statistics.median(times[mode]):.1f} | "
        # pyrefly: ignore[missing-attribute]  not None here
        f"{program.memory_analysis().temp_size_in_bytes / 2**20:,.0f} | {compared[mode]} |"
        for mode, (program, seconds) in programs.items()
    ]


def main():
    # It measures compiling, and not reading what an earlier run has compiled.
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {BATCH.value} x {TOKENS.value} tokens\n")
    print(
        "| program | compiling, s | a pass, ms | temporaries, MiB | fused to plain |\n| --- | --- | --- | --- | --- |"
    )
    for line in tiny():
        print(line, flush=True)
    for name in MODELS.value:
        for line in attention(name):
            print(line, flush=True)


if __name__ == "__main__":
    running.run(main)
