r"""What a sweep costs against its runs one by one: time of a step and bytes read, from a store and straight from the
model.

    python -m experiments.benchmarks.sweep_cost --store_dir=runs/real/store
    python -m experiments.benchmarks.sweep_cost --model=gemma3-270m --sites=layer_9/resid_post --from_model

Eight autoencoders differ in lambda. In each round, one of them alone and the eight in each way of training them
together take turns for some steps each; compiling and the first batches are left out. "The 8 runs" are eight
times the time of one.
"""

import itertools
import statistics
import time

import jax
import numpy as np
from absl import flags

import gemma
import sae
from experiments import common, harvest, running
from sae import topologies
from sae.store.source import Source
from sae.trainer.programs import TOGETHER
from sae.trainer.sweeps import Sweep

WIDTH = flags.DEFINE_integer("sweep_width", 4096, "Latents.", lower_bound=1)
BATCH = flags.DEFINE_integer("sweep_batch", 1024, "Tokens of a step.", lower_bound=1)
RUNS = flags.DEFINE_integer("sweep_runs", 8, "Autoencoders in the sweep.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds in which the sides take turns.", lower_bound=1)
STEPS = flags.DEFINE_integer("round_steps", 4, "Steps of a side in a round.", lower_bound=1)
FROM_MODEL = flags.DEFINE_bool("from_model", False, "Train straight from the model, in place of a store.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)


class Side:
    """A sweep, and the seconds that a step took in each round."""

    def __init__(self, source: Source, site: str, runs: int, together: str):
        mesh = topologies.mesh(jax.devices()[:1], 1, "latent", "this machine")
        self._source, self._site = source, site
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        configs = [
            sae.short_run(site, WIDTH.value, 1000, batch_size=BATCH.value, coefficient=1e-3 * (i + 1), l0_target=None)
            for i in range(runs)
        ]
        units = [{site: c.inputs.units(source, site)} for c in configs]
        self._sweep = Sweep(configs, units, {site: source.width(site)}, mesh, together)
        self._sweep.begin()
        zeros = jax.device_put(np.zeros((BATCH.value, source.width(site)), np.float32), self._split)
        self._sweep.update({site: zeros}).block_until_ready()  # compiles
        self.seconds: list[float] = []

    def round(self) -> None:
        """Measures from the arrival of one batch to that of another, in an epoch of its own. With a model, whose
        batches come by the segment, it measures from the first of the second segment to the first of another."""
        batches = self._source.batches(BATCH.value, [self._site], sharding=self._split)
        steps = STEPS.value
        for _ in range(steps if FROM_MODEL.value else 2):
            self._sweep.update(next(batches)).block_until_ready()
        batch = next(batches)
        began = time.perf_counter()
        for _ in range(steps * (SEGMENTS if FROM_MODEL.value else 1)):
            finished = self._sweep.update(batch)
            batch = next(batches)
            finished.block_until_ready()
        count = steps * (SEGMENTS if FROM_MODEL.value else 1)
        self.seconds.append((time.perf_counter() - began) / count)
        batches.close()


SEGMENTS = 3  # of a round with a model


def main():
    if FROM_MODEL.value:
        model = gemma.load(common.MODEL.value)
        text, _ = common.texts(model)
        (site,) = harvest.sites(model)[-1:]
        # pyrefly: ignore[missing-attribute]  not None here
        counted = sae.Counted(model.tokenizer.special_ids, sinks=sae.Sinks(4.0))
        # Segments of a few batches, so that a round sees the model at work as often as a long run would.
        source = sae.stream(model, text, [site], shuffle_rows=STEPS.value * BATCH.value, counted=counted)
    else:
        source = sae.ActivationStore.open(harvest.STORE_DIR.value)
        site = source.sites[-1]
    sides = {"one alone": Side(source, site, 1, "side_by_side")}
    for together in ("side_by_side",) if FROM_MODEL.value else TOGETHER:
        sides[f"{RUNS.value} {together}"] = Side(source, site, RUNS.value, together)
    for _, side in itertools.product(range(ROUNDS.value), sides.values()):
        side.round()
    one = sides.pop("one alone")
    print(f"{site} from {source.name}: {WIDTH.value} latents, batches of {BATCH.value}, {ROUNDS.value} rounds")
    print(f"one alone: {statistics.median(one.seconds) * 1e3:.0f} ms a step")
    for name, side in sides.items():
        ratios = [b / (RUNS.value * a) for a, b in zip(one.seconds, side.seconds, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{name}: {statistics.median(side.seconds) * 1e3:.0f} ms a step, {np.median(ratios):.3f} times "
            f"{RUNS.value} runs' ({spread})"
        )


if __name__ == "__main__":
    running.run(main)
