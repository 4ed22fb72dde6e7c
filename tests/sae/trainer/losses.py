"""Small runs of every recipe, whose losses are kept in tests/data/training_losses.npz: those of the program before
runs were made of parts. `python -m tests.sae.trainer.losses PATH` trains them and writes their losses to another file.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import sae
from sae.store.source import Generated, Source
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary

KEPT = Path(__file__).parents[2] / "data" / "training_losses.npz"
STEPS, B, Z, A = 200, 64, 64, 32
QUICK = {"batch_size": B, "l0_target": 4.0}
# Gemma Scope's constants, warmed up within the run, and fast enough for the thresholds to move.
PAPER = {"batch_size": B, "coefficient_warmup": 40, "learning_rate_warmup": 20, "bandwidth": 0.02}
PAPER |= {"learning_rate": 1e-3, "threshold_learning_rate": 3e-3, "threshold_init": 0.01}
RUNS = {
    "gemma_scope": sae.gemma_scope("x", Z, STEPS, **PAPER),
    "gemma_scope_2": sae.gemma_scope_2("x", 2 * Z, STEPS, **PAPER, l0_target=9.0),
    "short_run": sae.short_run("x", Z, STEPS, **QUICK, seed=1),
    "short_run, no target": sae.short_run("x", Z, STEPS, batch_size=B),
    "short_run, quadratic": sae.short_run("x", Z, STEPS, **QUICK, penalty="quadratic"),
    "short_run, log": sae.short_run("x", Z, STEPS, **QUICK, log_threshold=True),
    "short_run, quadratic, log": sae.short_run("x", Z, STEPS, **QUICK, penalty="quadratic", log_threshold=True),
    "short_run, revival": sae.short_run("x", 4 * Z, STEPS, **QUICK, revival=0.05, dead_tokens=500, seed=1),
    "short_run, matryoshka": sae.short_run("x", Z, STEPS, **QUICK, matryoshka=(0.125, 0.5)),
    "transcoder": sae.short_run("x", Z, STEPS, **QUICK, site_out="y"),
    "transcoder, skip": sae.short_run("x", Z, STEPS, **QUICK, site_out="y", skip=True),
    "crosscoder": sae.short_run(("x", "w"), Z, STEPS, **QUICK),
}


class Rows(Source):
    """Rows in memory, in an order of their own: what a store does to its batches does not change these."""

    kind, batch_order = "store", 0
    name = "rows in memory"

    def __init__(self):
        x, _, _ = known_dictionary(2000, features=96, dimensions=A)
        # A mean, which some recipes take away; and far from the last bits, which no two machines compute alike.
        x = np.round(x + 5.0, 3)
        self.values = {"x": x, "y": np.round(x[:, :20] ** 2 / 40, 3), "w": np.roll(x, 3, axis=1)}
        self.manifest = examples.manifest({site: v.shape[1:] for site, v in self.values.items()}, len(x))

    @property
    def rows(self):
        return 2000

    def mean_squared_norm(self, site):
        return float(np.square(np.float64(self.values[site])).sum(axis=1).mean())

    def mean(self, site):
        return np.float64(self.values[site]).mean(axis=0)

    def median_norm(self, site):
        raise NotImplementedError("training asks for no median")

    def sink_limits(self):
        return {}

    def batches_per_pass(self, batch_size):
        return -(-self.rows // batch_size)

    def batches(self, batch_size, sites=None, seed=0, start_step=0, *, sharding=None, passes=()):
        def batches():
            rng = np.random.default_rng(seed)
            while True:
                chosen = rng.integers(0, self.rows, batch_size)
                yield jax.device_put({site: self.values[site][chosen] for site in sites}, sharding)

        return Generated(batches())


def losses(names=tuple(RUNS)) -> dict[str, np.ndarray]:
    """[STEPS] of each run, all in one sweep on one device."""
    one_device = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "latent"))
    _, history = sae.train([RUNS[name] for name in names], Rows(), one_device, log_every=1, progress=False)
    return {
        name: np.asarray([record["loss"] for record in history if record["run"] == number], np.float32)
        for number, name in enumerate(names)
    }


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1] if len(sys.argv) > 1 else KEPT, **losses())
