"""Compiled training steps of every recipe, as far as jax, flax, numpy and orbax go: `make test-gpu` on a GPU, and on
the CPU with all other tests. Losses and gradients by themselves: `test_objective.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.inputs import Units
from sae.parts import numbers_of
from sae.trainer import programs
from sae.trainer.loss import Parts
from sae.trainer.sweeps import groups_of
from tests.sae.trainer import reference

pytestmark = pytest.mark.gpu
# Of a loss, relative, to one that is computed in float64. In float32 on both platforms; a GPU adds up the batch and the
# products in another order, and a latent that is within rounding of its threshold moves the loss by its share.
TOLERANCE = 1e-5 if jax.default_backend() == "cpu" else 1e-4
A, Z, B, STEPS = 32, 64, 256, 30
QUICK = {"learning_rate": 3e-3, "learning_rate_warmup": 1, "coefficient_warmup": 1, "batch_size": B}
RECIPES = {
    "gemma_scope": sae.gemma_scope("s", Z, STEPS, **QUICK),
    "gemma_scope_2": sae.gemma_scope_2("s", Z, STEPS, l0_target=9.0, **QUICK),
    "short_run": sae.short_run("s", Z, STEPS, l0_target=9.0, batch_size=B),
    "transcoder": sae.short_run("s", Z, STEPS, l0_target=9.0, batch_size=B, site_out="t", skip=True),
    "crosscoder": sae.short_run(("s", "t"), Z, STEPS, l0_target=9.0, batch_size=B),
}


def rows(step):
    """Sparse sums of fixed directions, of two sites."""
    rng = np.random.default_rng(0)
    directions = {site: rng.normal(size=(48, A)) for site in ("s", "t")}
    rng = np.random.default_rng(step + 1)
    f = rng.exponential(size=(B, 48)) * (rng.uniform(size=(B, 48)) < 0.1)
    return {site: (f @ W).astype(np.float32) for site, W in directions.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_training_steps_of_a_recipe(name, one_device):
    """The first step's loss is the formula's in float64, and thirty steps bring it down."""
    config = RECIPES[name]
    ((shape, _),) = groups_of([config], {"s": A, "t": A}, "side_by_side")
    step, state = programs.compiled_step(shape, one_device), programs.make_state(shape, config, one_device)
    sites = (*config.sites, *(config.sites_out if config.transcodes else ()))
    scale = np.float32(np.sqrt(np.mean(np.square(rows(0)["s"]).sum(axis=1)) * len(config.sites)))
    units = shape.renamed({site: Units(np.zeros(A, np.float32), scale) for site in sites}, config)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    losses = []
    for number in range(STEPS):
        batch = shape.renamed({site: jnp.asarray(rows(number)[site]) for site in sites}, config)
        before = float(state.tally.loss)
        state, total = step(state, batch, units, numbers_of(Parts.of(config)))
        losses.append(float(total) - before)  # the tally adds up the losses
    x = np.concatenate([rows(0)[site] for site in config.sites], axis=1).astype(np.float64) / scale
    y = rows(0)["t"].astype(np.float64) / scale if config.transcodes else x
    if config.autoencoder.log_threshold:
        start = start._replace(threshold=np.exp(start.threshold))
    want = wanted_loss(config, start, x, y)
    assert losses[0] == pytest.approx(want, rel=TOLERANCE)
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    assert int(state.step) == STEPS
    norms = np.linalg.norm(np.asarray(state.params.W_dec, np.float64), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def wanted_loss(config, params, x, y):
    """Of the first step, when no latent is dead and the coefficients are as warm as one step makes them."""
    # Lambda warms up from 0.
    return reference.loss_and_gradients(params, x, y, config, 0.0, config.l0_target or 1.0, 0.0, np.zeros(Z, bool))[0]
