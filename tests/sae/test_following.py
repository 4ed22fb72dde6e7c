"""Penalties without an L0 in them whose lambda follows the L0 all the same."""

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.architectures import Encoded, Gated, JumpReLU, ReLU
from sae.parts import Sizes
from sae.sparsity import ControlledL1, ControlledTanh, Now
from tests.sae.trainer.dictionaries import known_dictionary, mean_l0

SIZES = Sizes(width=8, steps=100, batch_size=4, dead_tokens=100, sites=1, transcodes=False)
FOLLOWED = [ControlledL1(0.2, l0_target=3.0), ControlledTanh(0.2, l0_target=3.0, scale=5.0)]


def encoded(seed=0, **about):
    f = np.maximum(np.random.default_rng(seed).normal(size=(4, 8)), 0.0)
    return f, Encoded(jnp.float32(f), jnp.float32((f > 0).sum(axis=1)), None, None, None, **about)


@pytest.mark.parametrize("step", [0, 10, 60])
@pytest.mark.parametrize("term", FOLLOWED, ids=lambda term: term.kind)
def test_the_penalty_is_lambda_as_of_now_times_the_sum_of_a_token(term, step):
    f, batch = encoded()
    summed = f.sum(axis=1) if term.kind == "controlled_l1" else np.tanh(5.0 * f).sum(axis=1)
    # A lambda that is warm after a quarter of 100 steps, and has been doubled by its controller.
    want = 0.2 * min(1.0, step / 25) * 2.0 * summed.mean()
    got = term.penalty(batch, jnp.log(jnp.float32(2.0)), Now(jnp.int32(step), None, None), SIZES)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gates_are_summed_where_they_stand_for_the_latents():
    _, batch = encoded(magnitude=jnp.full((4, 8), 0.5))
    got = FOLLOWED[0].penalty(batch, jnp.float32(0.0), Now(jnp.int32(50), None, None), SIZES)
    np.testing.assert_allclose(got, 0.2 * 8 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("term", FOLLOWED, ids=lambda term: term.kind)
def test_lambda_grows_where_too_many_latents_fire_and_falls_where_too_few_do(term):
    _, batch = encoded()
    for l0, towards in ((6.0, np.log(2.0)), (3.0, 0.0), (1.5, -np.log(2.0))):
        state = term.update(jnp.float32(0.0), batch._replace(l0=jnp.full(4, l0)), jnp.int32(50), SIZES)
        np.testing.assert_allclose(state, 0.05 * towards, atol=1e-7)  # a share of 1/24 of 100 steps: the fastest
    assert term.update(jnp.float32(0.0), batch, jnp.int32(24), SIZES) == 0.0  # lambda is not warm yet


@pytest.mark.parametrize("kind", [ControlledL1, ControlledTanh])
def test_a_target_without_a_controller_is_refused(kind):
    plain = kind.__name__.removeprefix("Controlled")
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: a fixed lambda takes no .* take sae\.sparsity\.{plain}$"):
        kind(controller=0)
    with pytest.raises(ValueError, match=f"^{kind.__name__}: l0_target must lie between 0 and the width 16, got 20"):
        sae.Run("s", 16, 10, autoencoder=ReLU(), sparsity=(kind(l0_target=20.0),))
    assert sae.Run("s", 64, 10, autoencoder=ReLU(), sparsity=(kind(l0_target=20.0),)).l0_target == 20.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")
def test_gated_relu_and_tanh_autoencoders_end_at_the_l0_that_was_asked_for(one_device):
    x, _, _ = known_dictionary(24_000, 64, 32)
    jumprelu = JumpReLU(log_threshold=False, bandwidth=0.35, threshold_init=0.02, threshold_learning_rate=1e-3)
    kinds = {"gated": (Gated(), ControlledL1), "relu": (ReLU(), ControlledL1), "tanh": (jumprelu, ControlledTanh)}
    runs, aims = [], []
    for architecture, term in kinds.values():
        for target in (4.0, 8.0):
            about = {"scale": 4 * 32**0.5} if term is ControlledTanh else {}
            base = sae.short_run("x", 96, 600, batch_size=128, l0_target=target)
            runs.append(base.replace(autoencoder=architecture, sparsity=(term(l0_target=target, **about),)))
            aims.append(target)
    autoencoders, _ = sae.train(runs, sae.rows({"x": x[:20_000]}), one_device)
    l0s = [mean_l0(autoencoder, x[20_000:]) for autoencoder in autoencoders]
    print([f"{l0:.2f}" for l0 in l0s])
    np.testing.assert_allclose(l0s[:4], aims[:4], rtol=0.05)
    np.testing.assert_allclose(l0s[4:], aims[4:], rtol=0.15)  # the tanh penalty's swings more
