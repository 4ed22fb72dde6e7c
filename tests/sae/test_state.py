"""Constants, schedules, constraint and folding, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sae
from sae import objective, state


def test_the_papers_constants():
    c = sae.gemma_scope("layer_20/resid_post", 2**14, 1_000_000)
    assert (c.learning_rate, c.threshold_learning_rate, c.learning_rate_warmup) == (7e-5, 7e-5, 1000)
    assert (c.coefficient_warmup, c.batch_size, c.bandwidth, c.threshold_init) == (10_000, 4096, 0.001, 0.001)
    assert c.log_threshold and c.learning_rate_decay == 0 and c.l0_target is None


def test_learning_rate_schedule():
    c = sae.gemma_scope("s", 8, 5000)
    rate = state.learning_rate_schedule(c, 7e-5)
    for step, want in ((0, 7e-6), (500, 7e-6 + 6.3e-5 / 2), (1000, 7e-5), (4999, 7e-5)):
        assert float(rate(step)) == pytest.approx(want, rel=1e-5)
    decaying = state.learning_rate_schedule(dataclasses.replace(c, learning_rate_decay=1000), 7e-5)
    assert float(decaying(4500)) == pytest.approx(3.5e-5, rel=1e-5)
    assert float(decaying(3999)) == pytest.approx(7e-5, rel=1e-5)


def test_the_optimizer_is_adam_without_momentum():
    c = dataclasses.replace(sae.gemma_scope("s", 4, 10), learning_rate_warmup=0, threshold_learning_rate=1e-3)
    params = state.initial(c, 3).params
    ours, theirs = state.optimizer(c), optax.adam(1.0, b1=0.0, b2=0.999, eps=1e-8)
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(p + s), params)
        got, ours_state = ours.update(grads, ours_state)
        want, theirs_state = theirs.update(grads, theirs_state)
        warm = 0.1 if step == 0 else 1.0  # a warm-up of no steps is over after the first
        for name in objective.Params._fields:
            rate = 1e-3 if name == "threshold" else 7e-5
            np.testing.assert_allclose(getattr(got, name), warm * rate * getattr(want, name), rtol=1e-4)


def test_initial_values():
    s = state.initial(sae.gemma_scope("s", 32, 10, seed=3), 8)
    np.testing.assert_allclose(np.linalg.norm(s.params.W_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(s.params.W_enc, s.params.W_dec.T)
    np.testing.assert_allclose(jnp.exp(s.params.threshold), 0.001, rtol=1e-5)
    assert not s.params.b_enc.any() and not s.params.b_dec.any()
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(s))


def test_decoder_rows_keep_unit_norm_and_lambda_warms_up():
    c = sae.short_run("s", 32, 8, l0_target=4, coefficient=0.5)
    assert c.coefficient_warmup == 2
    run = jax.jit(lambda s, x: state.step(s, x, jnp.float32(2.0), state.targets(c), config=c))
    s = state.initial(c, 8)
    factors = []
    for i in range(4):
        x = jax.random.normal(jax.random.key(i), (16, 8))
        params = state.with_theta(s.params, c)
        _, _, l0 = objective.forward(params, x / 2.0, c.bandwidth)
        s, metrics = run(s, x)
        factors.append(float(metrics["penalty"] / objective.penalty(l0, 0.5, 4.0).mean()))
        np.testing.assert_allclose(np.linalg.norm(s.params.W_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(factors, [0.0, 0.5, 1.0, 1.0], rtol=1e-4)


def test_the_decoders_gradient_has_no_part_along_its_rows():
    """With the parallel part removed, a step of plain descent would not change a row's norm to first order; Adam's
    second moment shows what came in."""
    c = sae.short_run("s", 16, 8, l0_target=4)
    s = state.initial(c, 8)
    after, _ = state.step(
        s, jax.random.normal(jax.random.key(0), (64, 8)), jnp.float32(1.0), state.targets(c), config=c
    )
    seen = np.sqrt(np.asarray(after.optimizer[0].nu.W_dec) / 0.001)  # |g|
    params = state.with_theta(s.params, c)
    x = jax.random.normal(jax.random.key(0), (64, 8))
    raw = jax.grad(lambda p: objective.loss(p, x, c.bandwidth, jnp.float32(0.0), jnp.float32(4.0))[0])(params).W_dec
    W = np.asarray(params.W_dec)
    want = np.abs(raw - (raw * W).sum(1, keepdims=True) * W)
    np.testing.assert_allclose(seen, want, atol=1e-5)
    assert np.abs(np.asarray(raw) - want).max() > 1e-3


@pytest.mark.parametrize("log_threshold", [False, True])
def test_folding(log_threshold):
    """Folded on raw activations = unfolded on scaled ones, times the scale."""
    c = dataclasses.replace(sae.short_run("s", 24, 8), log_threshold=log_threshold)
    rng = np.random.default_rng(0)
    p = objective.Params(
        W_enc=jnp.float32(rng.normal(size=(8, 24))),
        b_enc=jnp.float32(rng.normal(size=24)),
        W_dec=state.unit_rows(jnp.float32(rng.normal(size=(24, 8)))),
        b_dec=jnp.float32(rng.normal(size=8)),
        threshold=jnp.float32(rng.uniform(0.1, 1.0, size=24)),
    )
    stored = p._replace(threshold=jnp.log(p.threshold)) if log_threshold else p
    scale, raw = 37.5, jnp.float32(37.5 * rng.normal(size=(64, 8)))
    reconstruction, f, _ = objective.forward(p, raw / scale, c.bandwidth)
    released = state.fold(stored, c, scale, sae.Info("m", "s", "s"))
    np.testing.assert_allclose(released.encode(raw), scale * f, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(released(raw), scale * reconstruction, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(released.W_dec, p.W_dec)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("learning_rate", 0.0), ("coefficient", -1.0), ("l0_target", 99.0)]
)
def test_values_out_of_range_are_refused(field, value):
    good = sae.short_run("s", 8, 10)
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(good, **{field: value})
