"""The loss and its gradients against formulas written out in float64 numpy (`reference.py`), in every recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from mishax_lite.compiling import jit_program
from sae.trainer import objective
from sae.trainer.objective import Params, Pressure
from sae.trainer.schedules import with_theta
from tests.sae.trainer import reference

A, A_OUT, Z, B = 6, 5, 64, 32
EPS = 0.3
# Relative, to float64. A GPU's sums over the batch have another order and its float32 products other blocks.
TOLERANCE = 1e-5 if jax.default_backend() == "cpu" else 5e-5
CONFIGS = {
    "gemma_scope": sae.gemma_scope("s", Z, 10),
    "gemma_scope_2": sae.gemma_scope_2("s", Z, 10, l0_target=9.0),
    "short_run": sae.short_run("s", Z, 10, l0_target=9.0),
    "short_run, linear": sae.short_run("s", Z, 10, l0_target=9.0, penalty="linear", controller=0.01),
    "short_run, no target": sae.short_run("s", Z, 10),
    "short_run, log": sae.short_run("s", Z, 10, l0_target=9.0, log_threshold=True),
    "short_run, revival": sae.short_run("s", Z, 10, l0_target=9.0, revival=0.05),
    "transcoder": sae.short_run("s", Z, 10, l0_target=9.0, site_out="t"),
    "transcoder, skip": sae.gemma_scope_2("s", Z, 10, l0_target=9.0, site_out="t", skip=True),
    "crosscoder": sae.gemma_scope_2(("s", "t"), Z, 10, l0_target=9.0),
}
RECIPES = {name: config.resolve() for name, config in CONFIGS.items()}


def draw(config):
    """Parameters and inputs with no pre-activation within 1e-5 of a threshold or of an edge of its window."""
    for attempt in range(1000):
        rng = np.random.default_rng(attempt)
        out = A_OUT if config.transcodes else A
        W_dec = rng.normal(size=(Z, out))
        W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
        p = Params(
            W_enc=rng.normal(size=(A, Z)) / np.sqrt(A),
            b_enc=0.1 * rng.normal(size=Z),
            W_dec=W_dec,
            b_dec=0.1 * rng.normal(size=out),
            threshold=rng.uniform(0.1, 0.5, size=Z),
            W_skip=0.1 * rng.normal(size=(A, out)) if config.skip else None,
        )
        # As float32 has them: what is compared is arithmetic, not how inputs are rounded.
        p = jax.tree.map(lambda v: v.astype(np.float32).astype(np.float64), p)
        x = rng.normal(size=(B, A)).astype(np.float32).astype(np.float64)
        y = np.tanh(x[:, :out]).astype(np.float32).astype(np.float64) if config.transcodes else x
        distance = np.abs(reference.pre_activations(p, x, config) - p.threshold)
        if min(distance.min(), np.abs(distance - EPS / 2).min()) > 1e-5:
            return p, x, y
    raise AssertionError("no draw keeps clear of the edges")


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_gradients(name):
    config = dataclasses.replace(RECIPES[name], bandwidth=EPS)
    p, x, y = draw(config)
    dead = np.arange(Z) % 3 == 0
    want_loss, want = reference.loss_and_gradients(p, x, y, config, 0.07, 9.0, 0.02, dead)
    trained = p
    if config.log_threshold:
        trained = p._replace(threshold=np.log(p.threshold))
        want = want._replace(threshold=want.threshold * p.threshold)  # d theta / d log theta
    pressure = Pressure(jnp.float32(0.07), jnp.float32(9.0), jnp.float32(0.02), jnp.asarray(dead))

    def loss_of(params):
        return objective.loss(with_theta(params, config), jnp.float32(x), jnp.float32(y), config, pressure)

    gradient = jit_program(jax.value_and_grad(loss_of, has_aux=True), program="other")
    (loss, parts), got = gradient(jax.tree.map(jnp.float32, trained))
    assert abs(float(loss) - want_loss) < TOLERANCE * want_loss
    for field in Params._fields:
        if getattr(want, field) is None:
            assert getattr(got, field) is None
            continue
        difference = np.linalg.norm(np.asarray(getattr(got, field), np.float64) - getattr(want, field))
        assert difference <= TOLERANCE * np.linalg.norm(getattr(want, field)), field
        assert np.linalg.norm(getattr(want, field)) > 0, field
    on = reference.pre_activations(p, x, config) > p.threshold
    np.testing.assert_array_equal(parts.l0, on.sum(axis=1))
    np.testing.assert_allclose(parts.fired, on.mean(axis=0), rtol=1e-6)


def test_every_term_of_the_loss_is_in_some_recipe():
    """So that the test above tests it."""
    for field in (
        "frequency_coefficient",
        "revival",
        "matryoshka",
        "skip",
        "log_threshold",
        "transcodes",
    ):
        assert any(getattr(config, field) for config in RECIPES.values()), field
        assert not all(getattr(config, field) for config in RECIPES.values()), field


def test_a_value_at_its_threshold_is_off():
    z, theta = jnp.float32([[0.5, 0.5000001, -1.0]]), jnp.float32([0.5, 0.5, 0.5])
    f, l0, fired = objective.activate(z, theta, 0.1)
    np.testing.assert_array_equal(f, jnp.float32([[0.0, 0.5000001, 0.0]]))
    np.testing.assert_array_equal(l0, jnp.float32([1.0]))
    np.testing.assert_array_equal(fired, jnp.float32([0.0, 1.0, 0.0]))


def test_the_quadratic_penalty_has_the_linear_ones_slope_at_twice_the_target():
    config = RECIPES["gemma_scope_2"]
    slope = jax.grad(lambda l0: objective.penalty(l0, config, Pressure(0.3, 20.0, 0.0)))
    assert slope(40.0) == pytest.approx(0.3)
    assert slope(20.0) == 0.0
    assert slope(10.0) == pytest.approx(-0.15)


def test_matryoshka_prefixes_reconstruct_on_their_own():
    config = dataclasses.replace(RECIPES["gemma_scope_2"], matryoshka=(0.25,))
    p, x, y = draw(dataclasses.replace(config, bandwidth=EPS))
    p = jax.tree.map(jnp.float32, p)
    f = jnp.abs(jnp.asarray(np.random.default_rng(0).normal(size=(B, Z)), jnp.float32))
    whole, quarter = objective.errors(p, f, jnp.float32(x), jnp.float32(y), config)
    first = np.arange(Z) % 32 < 8
    for got, kept in ((whole, np.ones(Z, bool)), (quarter, first)):
        want = np.square((np.asarray(f) * kept) @ np.asarray(p.W_dec) + np.asarray(p.b_dec) - y).sum(axis=1).mean()
        assert got == pytest.approx(want, rel=1e-5)
