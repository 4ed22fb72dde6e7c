"""What `sae.patch_grid` costs beside one patch at a time, and whether both are the same.

    python -m experiments.benchmarks.patch_grid --model=gemma3-270m

One grid of all layers and `--grid_positions` positions of the residual stream is computed in one program, and the same
patches one by one with `model.run`. Printed are the largest difference of the two, the programs that were compiled for
the grid, its forward passes beside those that it needs (one for each patch, and one for the clean values), and the
seconds of both, compilation included and not.
"""

import time
from collections.abc import Callable

import jax
import jax.monitoring
import numpy as np
from absl import flags

import sae
from experiments import common, running
from sae import patching
from sae.language_model import titled

CLEAN = flags.DEFINE_string("clean", "When John and Mary went to the shop, John gave the bag to", "The clean text.")
CORRUPT = flags.DEFINE_string("corrupt", "When John and Mary went to the shop, Mary gave the bag to", "The other one.")
ANSWERS = flags.DEFINE_list("answers", [" Mary", " John"], "Two words; the score is the logit of one less the other's.")
POSITIONS = flags.DEFINE_integer("grid_positions", 9, "The last so many positions are patched.", lower_bound=1)
KIND = flags.DEFINE_string("grid_site", "resid_post", "The kind of site that is patched.")
PASSES_LIMIT, COMPILED_LIMIT = 1.2, 2
_COMPILED = "/jax/core/compile/backend_compile_duration"


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What some work returns, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def one_by_one(model: sae.LanguageModel, clean, corrupt, score, sites: list[str], positions: list[int]) -> np.ndarray:
    """The grid by a run for each patch; the position and the value are arguments of one program for each site."""
    values = model.run(clean, capture=sites).values

    def put(new: jax.Array, position: jax.Array, value: jax.Array, _) -> jax.Array:
        return value.at[:, position].set(new[:, position])

    grid = np.zeros((len(sites), len(positions)), np.float32)
    for i, site in enumerate(sites):
        for j, position in enumerate(positions):
            edit = jax.tree_util.Partial(put, values[site], np.int32(position))
            grid[i, j] = score(model.run(corrupt, edits={site: edit}).logits[0])
    return grid


def main():
    model = common.load_model()
    # pyrefly: ignore[missing-attribute]  not None here
    first, second = (model.tokenizer.encode(answer)[1] for answer in ANSWERS.value)
    score = lambda logits: logits[-1, first] - logits[-1, second]  # noqa: E731
    tokens = model.run(CLEAN.value).tokens  # the compiler's options are found out too
    T = tokens.shape[1]
    positions = list(range(max(0, T - POSITIONS.value), T))
    sites = [name for name, site in model.sites.items() if site.kind == KIND.value]
    compiled: list[str] = []
    listening = True

    def listen(event: str, _: float, **about) -> None:
        if event == _COMPILED and listening:
            compiled.append(str(about.get("fun_name")))

    # pyrefly: ignore[bad-argument-type]  JAX names no argument in its calls
    jax.monitoring.register_event_duration_secs_listener(listen)
    texts = CLEAN.value, CORRUPT.value
    grid, with_compiling = timed(lambda: sae.patch_grid(model, *texts, score, KIND.value, positions))
    listening = False
    _, seconds = timed(lambda: sae.patch_grid(model, *texts, score, KIND.value, positions))
    singly, single_with_compiling = timed(lambda: one_by_one(model, *texts, score, sites, positions))
    _, single_seconds = timed(lambda: one_by_one(model, *texts, score, sites, positions))

    size = patching.together(grid.size, T, model.vocab_size)
    passes, needed = -(-grid.size // size) * size + 1, grid.size + 1
    difference = float(np.abs(grid - singly).max())
    print(f"{titled(model)}: {len(sites)} layers x {len(positions)} positions of {T} tokens, {KIND.value}")
    print(f"largest difference {difference:.2g}, of scores from {grid.min():.3g} to {grid.max():.3g}")
    print(f"programs compiled: {len(compiled)} ({', '.join(compiled)}), at most {COMPILED_LIMIT}")
    print(f"forward passes: {passes} of {needed} needed, {passes / needed:.3f} times, at most {PASSES_LIMIT}")
    print(f"seconds: the grid {seconds:.2f} ({with_compiling:.2f} with compiling), one patch at a time "
          f"{single_seconds:.2f} ({single_with_compiling:.2f})")  # fmt: skip
    if len(compiled) > COMPILED_LIMIT or passes > PASSES_LIMIT * needed:
        raise SystemExit("a limit is passed")


if __name__ == "__main__":
    running.run(main)
