"""Constants, schedules, constraint, controller and release, by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sae
from sae.architectures import affine, jumprelu
from sae.architectures.base import unit_rows
from sae.architectures.jumprelu import Params
from sae.inputs import Units
from sae.sparsity import Now
from sae.trainer import programs
from sae.trainer.loss import Parts
from tests.sae.trainer import stepping
from tests.sae.trainer.stepping import begun, stepped


def units(scale, centre=0.0, A=8):
    return {"s": Units(jnp.full((A,), centre, jnp.float32), jnp.float32(scale))}


def test_gemma_scopes_constants():
    run = sae.gemma_scope("layer_20/resid_post", 2**14, 1_000_000)
    c = types.SimpleNamespace(**run.fields())
    assert (c.learning_rate, c.threshold_learning_rate, c.learning_rate_warmup) == (7e-5, 7e-5, 1000)
    assert (c.coefficient_warmup, c.batch_size, c.bandwidth, c.threshold_init) == (10_000, 4096, 0.001, 0.001)
    assert (c.sparsity, c.objective, run.l0_target) == ("linear", "reconstruction", None)
    assert (c.beta1, c.beta2, c.encoder_init, c.dead_tokens) == (0.0, 0.999, 1.0, 10_000_000)
    assert (c.centre, c.skip, c.site_out, c.precision) == (False, False, None, "highest")
    assert c.log_threshold and c.learning_rate_decay == 0 and c.decoder_rate_factor == 1 and c.coefficient == 6e-4
    assert run == sae.Run("layer_20/resid_post", 2**14, 1_000_000)


def test_gemma_scope_2s_constants():
    one, run = (f("s", 2**14, 1_000_000) for f in (sae.gemma_scope, sae.gemma_scope_2))
    assert {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(run, f.name)} == {
        "sparsity",
        "objective",
    }
    two = types.SimpleNamespace(**run.fields())
    assert (two.sparsity, two.coefficient_warmup, two.frequency_limit) == ("quadratic+frequency", 50_000, 0.1)
    assert (two.frequency_factor, two.coefficient, two.l0_target, two.controller) == (0.1, 6e-4, 50.0, 0.0)
    assert two.matryoshka == (1 / 32, 1 / 8, 1 / 4, 1 / 2)


@pytest.mark.parametrize(("recipe", "warmup"), [(sae.gemma_scope, 10_000), (sae.gemma_scope_2, 50_000)])
def test_schedules_step_by_step(recipe, warmup):
    c = recipe("s", 64, 100_000)
    steps = np.concatenate([np.arange(1200), np.arange(1200, 100_000, 997)])
    rates = jax.vmap(c.optimizer.schedule(c.optimizer.learning_rate, c.steps))(steps)
    within = np.minimum(steps / 1000, 1.0)
    want = 7e-5 * (0.1 + 0.9 * (1 - np.cos(np.pi * within)) / 2)
    np.testing.assert_allclose(rates, want, rtol=2e-5)
    assert rates[0] == pytest.approx(7e-6) and rates[500] == pytest.approx(3.85e-5) and rates[1000] == 7e-5
    warm = jax.vmap(lambda s: c.sparsity[0].warmth(s, c.sizes))(steps)
    np.testing.assert_allclose(warm, np.minimum(steps / warmup, 1.0), rtol=1e-6)


def test_learning_rate_decay():
    rate = sae.gemma_scope("s", 8, 5000, learning_rate_decay=1000).optimizer.schedule(7e-5, 5000)
    assert float(rate(4500)) == pytest.approx(3.5e-5, rel=1e-5)
    assert float(rate(3999)) == pytest.approx(7e-5, rel=1e-5)
    assert float(rate(5000)) == 0


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_optimizer_is_adam_without_momentum(factor):
    changes = {"learning_rate_warmup": 0, "threshold_learning_rate": 1e-3, "decoder_rate_factor": factor}
    c = sae.gemma_scope("s", 4, 10, **changes)
    s, of = begun(c, 3, 3), (c.autoencoder, c.sizes)
    params = s.params
    ours, theirs = s.optimizer, optax.adam(1.0, b1=0.0, b2=0.999, eps=1e-8)
    theirs_state = theirs.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(p + s), params)
        after, ours = c.optimizer.update(grads, ours, params, jnp.int32(step), *of)
        along = (grads.W_dec * params.W_dec).sum(1, keepdims=True)
        want, theirs_state = theirs.update(grads._replace(W_dec=grads.W_dec - along * params.W_dec), theirs_state)
        warm = 0.1 if step == 0 else 1.0  # a warm-up of no steps is over after the first
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
            rate = warm * (1e-3 if name == "threshold" else 7e-5) * (factor if name.endswith("_dec") else 1.0)
            moved = getattr(params, name) + rate * getattr(want, name)
            moved = unit_rows(moved) if name == "W_dec" else moved
            np.testing.assert_allclose(getattr(after, name), moved, rtol=1e-5, atol=1e-8)


def test_initial_values():
    s = begun(sae.gemma_scope("s", 32, 10, seed=3), 8, 8)
    np.testing.assert_allclose(np.linalg.norm(s.params.W_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(s.params.W_enc, s.params.W_dec.T)
    np.testing.assert_allclose(jnp.exp(s.params.threshold), 0.001, rtol=1e-5)
    assert not s.params.b_enc.any() and not s.params.b_dec.any() and s.params.W_skip is None
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(s))
    t = begun(sae.gemma_scope("s", 32, 10, site_out="t", skip=True), 8, 5)
    assert t.params.W_enc.shape == (8, 32) and t.params.W_dec.shape == (32, 5) and t.params.W_skip.shape == (8, 5)
    np.testing.assert_allclose(np.linalg.norm(t.params.W_enc, axis=0), 1.0, rtol=1e-6)
    assert not t.params.W_skip.any()


def test_decoder_rows_keep_unit_norm_and_lambda_warms_up():
    c = sae.short_run("s", 32, 8, l0_target=4, coefficient=0.5, penalty="quadratic", revival=0.0)
    c = c.replace(coefficient_warmup=2, controller=0.0)
    run = jax.jit(lambda s, x: stepped(s, {"s": x}, units(2.0), c))
    s = begun(c, 8, 8)
    factors = []
    for i in range(4):
        s = run(s, jax.random.normal(jax.random.key(i), (16, 8)))
        factors.append(float(s.tally.coefficient))
        np.testing.assert_allclose(np.linalg.norm(s.params.W_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.diff([0.0, *factors]), [0.0, 0.25, 0.5, 0.5], rtol=1e-6)


def test_the_decoders_gradient_has_no_part_along_its_rows():
    """With the parallel part removed, a step of plain descent would not change a row's norm to first order; Adam's
    second moment shows what came in."""
    c = sae.short_run("s", 16, 8, l0_target=4, revival=0.0)
    s = begun(c, 8, 8)
    x = jax.random.normal(jax.random.key(0), (64, 8))
    after = stepped(s, {"s": x}, units(1.0), c)
    seen = np.sqrt(np.asarray(after.optimizer[1].nu.W_dec) / (1 - c.optimizer.beta2))  # |g|
    now = Now(jnp.int32(0), jnp.float32(0.0), jnp.zeros(16, bool))
    raw = jax.grad(lambda p: stepping.loss(p, x, x, c, now)[0])(s.params).W_dec
    W = np.asarray(s.params.W_dec)
    want = np.abs(raw - (raw * W).sum(1, keepdims=True) * W)
    np.testing.assert_allclose(seen, want, atol=1e-5)
    assert np.abs(np.asarray(raw) - want).max() > 1e-3


def test_the_controller_follows_the_l0():
    c = sae.short_run("s", 16, 8, l0_target=4, controller=0.5)
    assert c.warm_from == 2

    def after(l0, step=2, run=c, before=1.0):
        return float(run.sparsity[0].followed(jnp.float32(before), jnp.float32(l0), step, run.sizes))

    assert after(5.0) == pytest.approx(1.0 + 0.5 * np.log(5 / 4))
    assert (after(400.0), after(0.0)) == (1.5, 0.5)
    assert after(400.0, before=6.8) == after(400.0, before=6.9) == pytest.approx(np.log(1000.0))
    assert after(400.0, step=1) == 1.0  # lambda is not yet warm
    assert after(5.0, run=sae.short_run("s", 16, 8, l0_target=4, penalty="quadratic", controller=0.0)) == 1.0


def test_silent_latents_are_counted_in_tokens():
    c = sae.gemma_scope("s", 16, 8, batch_size=64, threshold_init=0.5)
    s = begun(c, 8, 8)
    s = s._replace(params=s.params._replace(threshold=s.params.threshold.at[3].set(jnp.log(1e6))))
    for i in range(3):
        s = stepped(s, {"s": jax.random.normal(jax.random.key(i), (64, 8))}, units(1.0), c)
    assert s.silent[3] == 3 * 64 and s.silent.sum() == 3 * 64


RELEASED = {
    "raw": sae.short_run("s", 64, 8),
    "log": sae.short_run("s", 64, 8, log_threshold=True),
    "matryoshka": sae.gemma_scope_2("s", 64, 8),
    "transcoder": sae.short_run("s", 64, 8, site_out="t"),
    "skip": sae.short_run("s", 64, 8, site_out="t", skip=True),
    "crosscoder": sae.short_run(("s", "t"), 64, 8),
}


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_released_does_on_raw_activations_what_was_trained_on_scaled_ones(name):
    c = RELEASED[name]
    rng = np.random.default_rng(0)
    widths = {"s": 8, "t": 8 if len(c.sites) > 1 else 6}
    A_in, A_out = (sum(widths[site] for site in sites) for sites in (c.sites, c.sites_out))
    p = Params(
        W_enc=jnp.float32(rng.normal(size=(A_in, 64))),
        b_enc=jnp.float32(rng.normal(size=64)),
        W_dec=unit_rows(jnp.float32(rng.normal(size=(64, A_out)))),
        b_dec=jnp.float32(rng.normal(size=A_out)),
        threshold=jnp.float32(rng.uniform(0.1, 1.0, size=64)),
        W_skip=jnp.float32(rng.normal(size=(A_in, A_out))) if c.autoencoder.skip else None,
    )
    folded = {
        site: Units(jnp.float32(50 * rng.normal(size=widths[site])), jnp.float32(scale))
        for site, scale in (("s", 37.5), ("t", 4.0))
    }
    raw = {site: jnp.float32(37.5 * rng.normal(size=(128, widths[site]))) + folded[site].centre for site in widths}
    x = jnp.concatenate([(raw[site] - folded[site].centre) / folded[site].scale for site in c.sites], axis=1)
    f, _, _ = jumprelu.activate(affine.pre_activations(p, x, c.sizes), p.threshold, c.autoencoder.bandwidth)
    made = f @ p.W_dec + p.b_dec + (x @ p.W_skip if c.autoencoder.skip else 0.0)
    want = np.split(np.asarray(made), len(c.sites_out), axis=1)
    want = [folded[site].scale * part + folded[site].centre for site, part in zip(c.sites_out, want, strict=True)]
    stored = p._replace(threshold=jnp.log(p.threshold)) if c.autoencoder.log_threshold else p
    shape = programs.Shape.of(c, widths)
    released = programs.release(shape)(stored, (), shape.renamed(folded, c), Parts.of(c))
    if name == "crosscoder":
        together = jnp.stack([raw[site] for site in c.sites], axis=1)
        np.testing.assert_allclose(released(together), np.stack(want, axis=1), rtol=1e-4, atol=5e-3)
        rows = np.asarray(released.W_dec).reshape(64, -1)
        order = np.arange(64)
    else:
        np.testing.assert_allclose(released(raw["s"]), want[0], rtol=1e-4, atol=5e-3)
        rows = released.W_dec
        order = np.arange(64).reshape(2, 32).T.ravel() if c.objective.kind == "matryoshka" else np.arange(64)
        gain = folded[c.sites_out[0]].scale
        np.testing.assert_allclose(released.encode(raw["s"]), gain * f[:, order], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(released.threshold, gain * p.threshold[order], rtol=1e-6)
        np.testing.assert_array_equal(released.W_dec, p.W_dec[order])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64.5}, "width must be a whole number, got 64.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"coefficient": float("nan")}, "coefficient must be finite, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"coefficient": -1.0}, "coefficient must not be negative"),
        ({"l0_target": 99.0}, "l0_target must lie between 0 and the width 64, got 99"),
        ({"penalty": "cubic"}, "penalty is one of linear, quadratic, got 'cubic'"),
        ({"penalty": "quadratic"}, "needs an L0 to aim at"),
        ({"l0_target": 3.0, "controller": 0.0}, "takes no notice of l0_target"),
        ({"skip": True}, "skip is for transcoders"),
        ({"site": ("a", "a")}, "several different ones"),
        ({"site": ("a", "b"), "site_out": "c"}, "the output sites of a crosscoder are its input sites"),
        ({"matryoshka": (0.3,)}, r"fractions k/32 of the width, k from 1 to 31; got 0.3"),
        ({"matryoshka": (0.5, 0.25)}, "rising fractions"),
        ({"matryoshka": (0.5,), "width": 48}, "multiple of 32"),
        ({"beta2": 1.0}, "beta2 must be from 0 to below 1, got 1.0"),
        ({"precision": "low"}, "precision is one of highest, high, default"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sae.short_run(**{"site": "s", "width": 64, "steps": 10} | changes)
