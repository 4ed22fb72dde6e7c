"""Each architecture's loss, gradients and release against independent float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae.architectures import BatchTopK, Encoded, Gated, JumpReLU, ReLU, TopK
from sae.architectures.batchtopk import Running, nth_largest
from sae.initialisation import Initialisation
from sae.inputs import Inputs, Units
from sae.objectives import Matryoshka, Reconstruction
from sae.parts import Sizes, numbers_of
from sae.runs import Run
from sae.sparsity import L1, Now, Tanh
from sae.trainer.complaints import complaints
from tests.sae import architectures_by_hand as by_hand

A, A_OUT, Z, B = 6, 5, 32, 16
DEAD = np.arange(Z) % 3 == 0
AUX = {"aux_k": 4, "aux": 0.3, "dead": DEAD}
KINDS = {
    "topk": (TopK(k=3, aux_k=4, aux_coefficient=0.3), (), functools.partial(by_hand.topk, k=3, **AUX)),
    "topk, few dead": (
        TopK(k=3, aux_k=11, aux_coefficient=0.3),
        (),
        functools.partial(by_hand.topk, k=3, **(AUX | {"aux_k": 11})),
    ),
    "batchtopk": (
        BatchTopK(k=2.5, aux_k=4, aux_coefficient=0.3),
        (),
        functools.partial(by_hand.topk, k=2.5, whole_batch=True, **AUX),
    ),
    "relu": (ReLU(), (L1(0.05, 0),), functools.partial(by_hand.relu, l1=0.05)),
    "gated": (Gated(), (L1(0.05, 0),), functools.partial(by_hand.gated, l1=0.05)),
    "tanh": (
        JumpReLU(log_threshold=False, bandwidth=0.3),
        (Tanh(0.05, 0, scale=2.0),),
        functools.partial(by_hand.tanh_jumprelu, strength=0.05, scale=2.0, bandwidth=0.3),
    ),
}


def sizes(transcodes=False, sites=1):
    return Sizes(Z, steps=10, batch_size=B, dead_tokens=100, sites=sites, transcodes=transcodes)


def drawn(architecture, transcodes=False, seed=0):
    """Random parameters, as a dict of float64 numpy and as the architecture has them; x and y."""
    rng = np.random.default_rng(seed)
    dims = (A, A_OUT if transcodes else A)
    begun = architecture.init(jax.random.key(seed), dims, sizes(transcodes), Initialisation())
    p = {n: rng.normal(size=v.shape) / np.sqrt(A) for n, v in begun._asdict().items() if v is not None}
    p["W_dec"] /= np.linalg.norm(p["W_dec"], axis=1, keepdims=True)
    if "threshold" in p:
        p["threshold"] = np.abs(p["threshold"])
    p = {name: np.float64(np.float32(value)) for name, value in p.items()}
    x = np.float64(np.float32(rng.normal(size=(B, A))))
    y = np.float64(np.float32(np.tanh(x[:, :A_OUT]))) if transcodes else x
    return p, type(begun)(**{name: jnp.float32(value) for name, value in p.items()}), x, y


@pytest.mark.parametrize("transcodes", [False, True], ids=["autoencoder", "transcoder"])
@pytest.mark.parametrize("name", KINDS)
def test_loss_latents_and_gradients_are_those_of_the_paper(name, transcodes):
    architecture, terms, reference = KINDS[name]
    if transcodes and name in ("topk", "topk, few dead", "relu"):
        architecture = type(architecture)(**{**vars(architecture), "skip": True})
    p, params, x, y = drawn(architecture, transcodes)
    want_loss, want, want_f = reference(p, x, y, transcodes=transcodes)
    about, now = sizes(transcodes), Now(jnp.int32(0), jnp.float32(0), jnp.asarray(DEAD))

    def loss(params, architecture, terms):
        state = architecture.state(about)
        encoded = architecture.encode(params, jnp.float32(x), state, about)
        (total,) = Reconstruction().errors(params, encoded.f, jnp.float32(x), jnp.float32(y))
        added = architecture.auxiliary(params, encoded, jnp.float32(x), jnp.float32(y), state, now.dead)
        total += 0.0 if added is None else added
        return total + sum(term.penalty(encoded, (), now, about) for term in terms), encoded

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (got_loss, encoded), got = compiled(params, *numbers_of((architecture, terms)))
    np.testing.assert_allclose(got_loss, want_loss, rtol=1e-5)
    np.testing.assert_allclose(encoded.f, want_f, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(encoded.l0, (want_f > 0).sum(axis=1))
    np.testing.assert_allclose(encoded.fired, (want_f > 0).mean(axis=0), rtol=1e-6)
    assert set(want) == set(p) and 0 < (want_f > 0).mean() < 1
    for field, value in want.items():
        distance = np.linalg.norm(getattr(got, field) - value) / np.linalg.norm(value)
        assert distance < 1e-5, f"{field}: {distance:.1e}"


@pytest.mark.parametrize("transcodes", [False, True], ids=["autoencoder", "transcoder"])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_released_makes_of_raw_activations_what_was_trained_on_scaled_ones(name, transcodes):
    architecture = KINDS[name][0]
    p, params, x, _ = drawn(architecture, transcodes, seed=1)
    about, rng = sizes(transcodes), np.random.default_rng(5)
    units = {"in": Units(jnp.float32(rng.normal(size=A)), jnp.float32(7.0))}
    units["out"] = Units(jnp.float32(rng.normal(size=A_OUT)), jnp.float32(3.0)) if transcodes else units["in"]
    encoded = architecture.encode(params, jnp.float32(x), architecture.state(about), about)
    state = architecture.update(architecture.state(about), encoded, jnp.int32(0), about)
    if name == "batchtopk":  # the smallest that was kept is above the threshold then, and not at it
        state = state._replace(threshold=0.999 * state.threshold)
    site_out = "out" if transcodes else "in"
    autoencoder = Inputs().fold(architecture.release(params, state, about), units, ("in",), (site_out,))
    raw = units["in"].scale * jnp.float32(x) + units["in"].centre
    scale, centre = units[site_out].scale, units[site_out].centre
    np.testing.assert_allclose(autoencoder(raw), scale * by_hand.out(p, encoded.f, x) + centre, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(autoencoder.encode(raw) / scale, encoded.f, rtol=1e-4, atol=1e-4)
    assert (np.asarray(encoded.f) > 0).any()


@pytest.mark.parametrize("decay", [0.99, 0.1])
def test_batchtopks_threshold_is_the_mean_of_the_smallest_kept_over_the_last_twentieth(decay):
    """Until `decay` makes the mean shorter: at step t each batch before counts by t / (t + 20) less, or by `decay`."""
    architecture, about = BatchTopK(k=2.0, decay=decay), sizes()
    p, params, x, _ = drawn(architecture)
    state, smallest, l0 = architecture.state(about), [], []
    weights = np.zeros(0)
    for i in range(5):
        batch = (1 + i) * x
        z = np.maximum(by_hand.pre_activations(p, batch, False), 0)
        smallest.append(np.sort(z, axis=None)[-2 * B])
        keep = min(decay, i / (i + 20))
        weights = np.append(keep * weights, 1 - keep)
        l0.append((z > np.average(smallest, weights=weights)).sum(axis=1).mean())
        encoded = architecture.encode(params, jnp.float32(batch), state, about)
        state = architecture.update(state, encoded, jnp.int32(i), about)
    want = np.average(smallest, weights=weights)
    np.testing.assert_allclose(architecture.release(params, state, about).threshold, want, rtol=1e-5)
    records = architecture.records(params, state, about)
    np.testing.assert_allclose(records["l0_released"], np.average(l0, weights=weights), rtol=1e-5)
    assert architecture.state(about) == Running(0, 0)


def test_batchtopks_threshold_forgets_the_first_batches_however_short_the_run():
    """The smallest kept latent falls from 10 to 1 in the first half of 40 steps, and stays: with a decay of 0.99 alone
    the mean would be 2.9. After 2,000 steps more it is that mean, whose weights are the powers of 0.99."""
    architecture, about = BatchTopK(k=2.0), sizes()
    smallest = np.concatenate([np.linspace(10, 1, 20), np.ones(20)])
    state = architecture.state(about)
    update = jax.jit(lambda state, threshold, step: architecture.update(state, encoded_with(threshold), step, about))
    for step, threshold in enumerate(smallest):
        state = update(state, np.float32(threshold), np.int32(step))
    assert state.threshold == pytest.approx(1.0, abs=0.01)
    later = np.random.default_rng(0).uniform(1, 2, 2000)
    for step, threshold in enumerate(later):
        state = update(state, np.float32(threshold), np.int32(40 + step))
    weights = 0.99 ** np.arange(2000)[::-1]
    assert state.threshold == pytest.approx(np.average(later, weights=weights), rel=1e-3)


def encoded_with(threshold):
    """A batch without latents whose smallest kept latent is given."""
    zeros = jnp.zeros((B, Z))
    return Encoded(zeros, zeros[:, 0], zeros[0], zeros, threshold)


def test_a_released_threshold_with_another_l0_than_k_is_said_at_the_end():
    run = Run("s", Z, 100, autoencoder=BatchTopK(k=8.0), sparsity=())
    record = {"step": 99, "l0": 8.0, "fvu": 0.2, "dead": 0, "dead_tokens": 10}
    said = complaints(run, [record | {"l0_released": 11.5}])
    assert said["l0"].startswith("the released threshold gives an L0 of 11.5 in the last batches, and k is 8: ")
    assert complaints(run, [record | {"l0_released": 7.1}])["l0"]
    assert not complaints(run, [record | {"l0_released": 8.7}])
    assert not complaints(run, [record | {"step": 60, "l0_released": 11.5}])


@pytest.mark.parametrize("n", [1, 7, 40, 64, 65])
def test_the_nth_largest_is_that_of_a_sort(n):
    values = np.float32(np.maximum(np.random.default_rng(n).normal(size=(8, 8)), 0))
    values[0, :3] = values[5, 5] = 0.25  # equal ones
    want = np.sort(values, axis=None)[-n] if n <= 64 else 0.0
    assert nth_largest(jnp.asarray(values), jnp.int32(n)) == want


def test_matryoshka_batchtopk_is_batchtopk_with_that_objective():
    architecture, objective, about = BatchTopK(k=2.0), Matryoshka(matryoshka=(0.25,)), sizes()
    p, params, x, _ = drawn(architecture)
    encoded = architecture.encode(params, jnp.float32(x), architecture.state(about), about)
    whole, prefix = objective.errors(params, encoded.f, jnp.float32(x), jnp.float32(x))
    f = np.asarray(encoded.f)
    for error, latents in ((whole, 32), (prefix, 8)):  # 32 bands of one latent each
        kept = f * (np.arange(Z) < latents)
        np.testing.assert_allclose(error, np.square(by_hand.out(p, kept, x) - x).sum(axis=1).mean(), rtol=1e-5)


def test_a_crosscoder_is_released_of_those_whose_latents_stand_alone():
    about = sizes(sites=2)
    for architecture in (BatchTopK(k=2.0), ReLU(), Gated(), JumpReLU()):
        _, params, _, _ = drawn(architecture)
        units = {s: Units(jnp.zeros(A // 2), jnp.float32(1)) for s in ("a", "b")}
        crosscoder = Inputs().fold(
            architecture.release(params, architecture.state(about), about), units, ("a", "b"), ("a", "b")
        )
        assert crosscoder.W_enc.shape == (2, A // 2, Z)
    with pytest.raises(ValueError, match="a crosscoder has a threshold for each latent: take BatchTopK"):
        TopK(k=3).check_sizes(about)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (lambda: TopK(k=0), "TopK: k must be positive, got 0"),
        (lambda: TopK(k=2.5), "TopK: k must be a whole number, got 2.5"),
        (lambda: BatchTopK(decay=1.0), "BatchTopK: decay is below 1, got 1.0"),
        (lambda: TopK(k=33).check_sizes(sizes()), "TopK: k is at most the width 32, got 33"),
        (lambda: BatchTopK(k=33.0).check_sizes(sizes()), "BatchTopK: k is at most the width 32, got 33"),
        (lambda: ReLU(skip=True).check_sizes(sizes()), "ReLU: skip is for transcoders"),
        (lambda: Tanh(scale=0.0), "Tanh: scale must be positive, got 0"),
        (
            lambda: BatchTopK(k=3.0).check_sizes(Sizes(2**20, 1, 2**11, 1)),
            "2,147,483,648 latents, and at most 2,147,483,647 can be counted: lower batch_size",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(architecture, message):
    with pytest.raises(ValueError, match=message):
        architecture()
