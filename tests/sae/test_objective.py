"""The loss and its gradients against formulas written out in float64 numpy, from arXiv 2408.05147 and 2407.14435."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import objective, recipes, state

A, Z, B = 6, 10, 32
EPS = 0.3


def draw(seed=0):
    """Parameters and inputs with no pre-activation within 1e-5 of a threshold or of an edge of its window."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        W_dec = rng.normal(size=(Z, A))
        W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
        p = objective.Params(
            W_enc=rng.normal(size=(A, Z)) / np.sqrt(A),
            b_enc=0.1 * rng.normal(size=Z),
            W_dec=W_dec,
            b_dec=0.1 * rng.normal(size=A),
            threshold=rng.uniform(0.1, 0.5, size=Z),
        )
        x = rng.normal(size=(B, A))
        distance = np.abs((x - p.b_dec) @ p.W_enc + p.b_enc - p.threshold)
        if min(distance.min(), np.abs(distance - EPS / 2).min()) > 1e-5:
            return p, x
    raise AssertionError("no draw keeps clear of the edges")


def numpy_loss_and_gradients(p, x, coefficient, target):
    centred = x - p.b_dec
    z = centred @ p.W_enc + p.b_enc
    on = z > p.threshold
    f = z * on
    error = f @ p.W_dec + p.b_dec - x
    l0 = on.sum(axis=1)
    if target is None:
        per_token, slope = coefficient * l0, np.full(B, coefficient)
    else:
        per_token = coefficient * (l0 - target) ** 2 / (2 * target)
        slope = coefficient * (l0 - target) / target
    window = np.abs(z - p.threshold) < EPS / 2
    d_out = 2 * error / B
    d_f = d_out @ p.W_dec.T
    d_z = d_f * on
    d_threshold = (d_f * window * (-p.threshold / EPS)).sum(0) + (slope[:, None] / B * window * (-1 / EPS)).sum(0)
    return (error**2).sum(axis=1).mean() + per_token.mean(), objective.Params(
        W_enc=centred.T @ d_z,
        b_enc=d_z.sum(0),
        W_dec=f.T @ d_out,
        b_dec=d_out.sum(0) - (d_z @ p.W_enc.T).sum(0),
        threshold=d_threshold,
    )


@pytest.mark.parametrize("target", [None, 3.0])
@pytest.mark.parametrize("log_threshold", [False, True])
def test_gradients(target, log_threshold):
    p, x = draw()
    want_loss, want = numpy_loss_and_gradients(p, x, 0.07, target)
    config = dataclasses.replace(recipes.short_run("s", Z, 10), bandwidth=EPS, log_threshold=log_threshold)
    trained = p._replace(threshold=np.log(p.threshold)) if log_threshold else p
    if log_threshold:
        want = want._replace(threshold=want.threshold * p.threshold)  # d theta / d log theta

    def loss_of(params):
        goal = None if target is None else jnp.float32(target)
        return objective.loss(state.with_theta(params, config), jnp.float32(x), EPS, jnp.float32(0.07), goal)[0]

    loss, got = jax.value_and_grad(loss_of)(jax.tree.map(jnp.float32, trained))
    assert abs(float(loss) - want_loss) < 1e-5 * want_loss
    for name in objective.Params._fields:
        difference = np.linalg.norm(np.asarray(getattr(got, name), np.float64) - getattr(want, name))
        assert difference < 1e-5 * np.linalg.norm(getattr(want, name)), name


def test_a_value_at_its_threshold_is_off():
    z, theta = jnp.float32([[0.5, 0.5000001, -1.0]]), jnp.float32([0.5, 0.5, 0.5])
    np.testing.assert_array_equal(objective.jump_relu(z, theta, 0.1), jnp.float32([[0.0, 0.5000001, 0.0]]))
    np.testing.assert_array_equal(objective.count_active(z, theta, 0.1), jnp.float32([1.0]))


def test_the_quadratic_penalty_has_the_linear_ones_slope_at_twice_the_target():
    slope = jax.grad(lambda l0: objective.penalty(l0, 0.3, 20.0))
    assert slope(40.0) == pytest.approx(0.3)
    assert slope(20.0) == 0.0
    assert slope(10.0) == pytest.approx(-0.15)
