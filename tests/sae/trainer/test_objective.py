"""The loss and its gradients against formulas written out in float64 numpy (`reference.py`), in every recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from mishax_lite.compiling import jit_program
from sae.architectures import jumprelu
from sae.architectures.jumprelu import Params
from sae.objectives import Matryoshka
from sae.sparsity import Now, Quadratic
from tests.sae.trainer import reference, stepping

A, A_OUT, Z, B = 6, 5, 64, 32
EPS = 0.3
# Relative, to float64. A GPU's sums over the batch have another order and its float32 products other blocks.
TOLERANCE = 1e-5 if jax.default_backend() == "cpu" else 5e-5
RECIPES = {
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


def draw(run):
    """Parameters and inputs with no pre-activation within 1e-5 of a threshold or of an edge of its window."""
    for attempt in range(1000):
        rng = np.random.default_rng(attempt)
        out = A_OUT if run.transcodes else A
        W_dec = rng.normal(size=(Z, out))
        W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
        p = Params(
            W_enc=rng.normal(size=(A, Z)) / np.sqrt(A),
            b_enc=0.1 * rng.normal(size=Z),
            W_dec=W_dec,
            b_dec=0.1 * rng.normal(size=out),
            threshold=rng.uniform(0.1, 0.5, size=Z),
            W_skip=0.1 * rng.normal(size=(A, out)) if run.autoencoder.skip else None,
        )
        # As float32 has them: what is compared is arithmetic, not how inputs are rounded.
        p = jax.tree.map(lambda v: v.astype(np.float32).astype(np.float64), p)
        x = rng.normal(size=(B, A)).astype(np.float32).astype(np.float64)
        y = np.tanh(x[:, :out]).astype(np.float32).astype(np.float64) if run.transcodes else x
        distance = np.abs(reference.pre_activations(p, x, run) - p.threshold)
        if min(distance.min(), np.abs(distance - EPS / 2).min()) > 1e-5:
            return p, x, y
    raise AssertionError("no draw keeps clear of the edges")


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_gradients(name):
    run = RECIPES[name].replace(bandwidth=EPS, coefficient=0.07, coefficient_warmup=0)
    if "frequency_factor" in run.fields():
        run = run.replace(frequency_factor=0.02 / 0.07)
    p, x, y = draw(run)
    dead = np.arange(Z) % 3 == 0
    want_loss, want = reference.loss_and_gradients(p, x, y, run, 0.07, 9.0, 0.02, dead)
    trained = p
    if run.autoencoder.log_threshold:
        trained = p._replace(threshold=np.log(p.threshold))
        want = want._replace(threshold=want.threshold * p.threshold)  # d theta / d log theta
    now = Now(jnp.int32(0), jnp.float32(0.07), jnp.asarray(dead))

    def loss_of(params):
        return stepping.loss(params, jnp.float32(x), jnp.float32(y), run, now)

    gradient = jit_program(jax.value_and_grad(loss_of, has_aux=True), program="other")
    (loss, values), got = gradient(jax.tree.map(jnp.float32, trained))
    assert abs(float(loss) - want_loss) < TOLERANCE * want_loss
    for field in Params._fields:
        if getattr(want, field) is None:
            assert getattr(got, field) is None
            continue
        difference = np.linalg.norm(np.asarray(getattr(got, field), np.float64) - getattr(want, field))
        assert difference <= TOLERANCE * np.linalg.norm(getattr(want, field)), field
        assert np.linalg.norm(getattr(want, field)) > 0, field
    on = reference.pre_activations(p, x, run) > p.threshold
    np.testing.assert_array_equal(values.encoded.l0, on.sum(axis=1))
    np.testing.assert_allclose(values.encoded.fired, on.mean(axis=0), rtol=1e-6)


def test_every_term_of_the_loss_is_in_some_recipe():
    """So that the test above tests it."""
    for field in ("frequency_factor", "revival", "matryoshka", "skip", "log_threshold", "site_out"):
        assert any(run.fields().get(field) for run in RECIPES.values()), field
        assert not all(run.fields().get(field) for run in RECIPES.values()), field


def test_a_value_at_its_threshold_is_off():
    z, theta = jnp.float32([[0.5, 0.5000001, -1.0]]), jnp.float32([0.5, 0.5, 0.5])
    f, l0, fired = jumprelu.activate(z, theta, 0.1)
    np.testing.assert_array_equal(f, jnp.float32([[0.0, 0.5000001, 0.0]]))
    np.testing.assert_array_equal(l0, jnp.float32([1.0]))
    np.testing.assert_array_equal(fired, jnp.float32([0.0, 1.0, 0.0]))


def test_the_quadratic_penalty_has_the_linear_ones_slope_at_twice_the_target():
    slope = jax.grad(lambda l0: Quadratic(l0_target=20.0).of_tokens(l0, 0.3))
    assert slope(40.0) == pytest.approx(0.3)
    assert slope(20.0) == 0.0
    assert slope(10.0) == pytest.approx(-0.15)


def test_matryoshka_prefixes_reconstruct_on_their_own():
    p, x, y = draw(RECIPES["gemma_scope_2"].replace(bandwidth=EPS))
    p = jax.tree.map(jnp.float32, p)
    f = jnp.abs(jnp.asarray(np.random.default_rng(0).normal(size=(B, Z)), jnp.float32))
    whole, quarter = Matryoshka((0.25,)).errors(p, f, jnp.float32(x), jnp.float32(y))
    first = np.arange(Z) % 32 < 8
    for got, kept in ((whole, np.ones(Z, bool)), (quarter, first)):
        want = np.square((np.asarray(f) * kept) @ np.asarray(p.W_dec) + np.asarray(p.b_dec) - y).sum(axis=1).mean()
        assert got == pytest.approx(want, rel=1e-5)
