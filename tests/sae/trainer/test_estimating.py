"""What a run would take, against what it takes."""

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import topologies
from sae.trainer import devices, programs
from sae.trainer.sweeps import groups_of
from tests import compilations
from tests.sae import examples
from tests.sae.trainer import stepping


def config(**changes):
    return sae.short_run("x", 64, 100, **{"batch_size": 128, "l0_target": 4.0, **changes})


def test_an_estimate_adds_up(one_device):
    configs = [config(), config(l0_target=8.0), dataclasses.replace(config(), width=96)]
    source = sae.rows({"x": np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float32)})
    estimate = sae.estimate(configs, source, one_device)
    bytes_of = [sum(leaf.nbytes for leaf in jax.tree.leaves(stepping.begun(c, 32, 32))) for c in configs]
    assert estimate.state == estimate.checkpoint == sum(bytes_of)
    assert (estimate.steps, estimate.tokens, estimate.epochs) == (100, 12_800, 2.56)
    assert estimate.read == 12_800 * 32 * 4
    # Six products of 2 B A Z operations would be too many: b_dec's gradient needs none of its own.
    products = sum(5 * 2 * 128 * 32 * c.width for c in configs)
    assert products < estimate.flops < 1.5 * products
    assert estimate.temporaries > 0 and estimate.seconds > 0
    text = str(estimate)
    assert "mesh 1 data x 1 latent" in text and "100 steps, 12,800 tokens, 2.56 epochs" in text


def test_without_a_store_an_estimate_is_the_same_but_for_the_epochs(one_device):
    """Of the runs' sites alone, whatever others there are."""
    arrays = {site: np.zeros((500, dim), np.float32) + 1 for site, dim in (("x", 32), ("y", 24), ("z", 40))}
    transcoder = config(site_out="y")
    stored = sae.estimate(transcoder, sae.rows(arrays), one_device)
    assert stored.epochs == 12_800 / 500 and stored.read == 12_800 * (32 + 24) * 4
    alone = sae.estimate(transcoder, {site: array.shape[1] for site, array in arrays.items()}, one_device)
    measured = {"seconds": None, "peak_flops": None}  # what this machine does at that moment
    assert dataclasses.replace(alone, **measured) == dataclasses.replace(stored, epochs=None, **measured)
    assert "epochs" not in str(alone) and "epochs" in str(stored)


def test_parameters_and_adams_moments_are_three_times_the_released_autoencoder(one_device):
    """Counted by hand: W_enc and W_dec [A, Z], b_enc and thresholds [Z], b_dec [A]; the rest are numbers per latent."""
    A, Z = 32, 64
    parameters = 4 * (2 * A * Z + 2 * Z + A)
    estimate = sae.estimate(config(), {"x": A}, one_device)
    assert 3 * parameters <= estimate.state <= 3 * parameters + 4 * 4 * (A + Z) + 100
    assert estimate.batches == 3 * 128 * A * 4
    assert estimate.peak == estimate.state + estimate.batches + estimate.temporaries


def test_an_estimate_without_a_mesh_is_for_the_mesh_that_training_would_take():
    estimate = sae.estimate(config(), {"x": 32})
    assert estimate.mesh == {"data": jax.device_count(), "latent": 1}
    text = str(estimate)
    assert "at 50% of the peak, " in text and " TFLOP/s of a device, as this machine multiplied" in text


@pytest.mark.parametrize(
    ("dims", "mesh", "changes", "error"),
    [
        ({"y": 32}, None, {}, "the length of 'x' is missing, got those of y"),
        ({"x": 32.0}, None, {}, "the length of 'x' must be a whole number, got 32.0"),
        ({"x": 32}, (2, 2), {}, r"takes a jax.sharding.Mesh, or a topology such as 'v5e:4x4'; got"),
        ({"x": 32}, None, {"latent": 2}, "latent=2 goes with a topology such as 'v5e:4x4'"),
        ({"x": 32}, "v9:2x2", {}, "no topology 'v9:2x2'|libtpu is not installed"),
    ],
)
def test_what_no_estimate_can_be_made_of_is_refused(dims, mesh, changes, error):
    with pytest.raises(ValueError, match=error):
        sae.estimate([config()], dims, mesh, **changes)


def test_a_topology_is_laid_out_over_both_axes(monkeypatch):
    """The chips are this machine's: libtpu's are in test_tpu.py."""
    monkeypatch.setattr(topologies, "chips", lambda topology: jax.devices()[: int(topology.split(":")[1])])
    estimate = sae.estimate(config(), {"x": 32}, "v5e:8", latent=4)
    assert estimate.devices.startswith("8 x ") and estimate.mesh == {"data": 2, "latent": 4}
    with pytest.raises(ValueError, match="v5e:8 has 8 devices: 3 of them cannot share the parameters evenly"):
        sae.estimate(config(), {"x": 32}, "v5e:8", latent=3)


def test_the_example_of_the_docstring_runs():
    (test,) = doctest.DocTestFinder(recurse=False).find(sae.estimate, "estimate", globs={"sae": sae})
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize().attempted == 3 and not runner.failures


def test_an_estimate_says_what_full_precision_costs_on_a_gpu(one_device):
    """And nowhere else, nor where no run has it."""
    full, fast = config(), config(precision="high")
    assert devices.precision_advice([full], "cpu") is devices.precision_advice([full], "tpu") is None
    assert devices.precision_advice([fast], "gpu") is None
    advice = devices.precision_advice([fast, full], "gpu")
    assert "31.6 ms" in advice and "6.9 ms" in advice and "4.6 times" in advice and "precision='high'" in advice
    estimate = sae.estimate([full], {"x": 32}, one_device)
    assert estimate.advice is None and "precision" not in str(estimate)
    assert str(dataclasses.replace(estimate, advice=advice)).endswith("\n" + advice)


def test_states_are_split_over_the_mesh(meshes):
    whole = sae.estimate([config()], {"x": 32}, meshes(1, 1))
    split = sae.estimate([config()], {"x": 32}, meshes(2, 4))
    assert whole.state / 4 < split.state < whole.state / 3
    assert split.batches == whole.batches // 2


def test_what_does_not_fit_is_refused_with_advice(one_device, monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda device: 50_000)
    with pytest.raises(
        ValueError, match=r"does not fit into a device's memory, which has 0.00 GiB: the states .* Put m"
    ):
        sae.estimate([config()], {"x": 32}, one_device).check()

    def refuse(shape, mesh):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA wants 17.5G of 16G hbm")

    monkeypatch.setattr(programs, "compiled_step", refuse)
    with pytest.raises(ValueError, match=r"and XLA says: RESOURCE_EXHAUSTED: XLA wants 17.5G"):
        sae.estimate([config()], {"x": 32}, one_device).check()


def test_training_is_refused_before_it_starts(one_device, monkeypatch, tmp_path):
    store = examples.make_store(tmp_path / "s", {"x": np.ones((500, 32), np.float32)}, segment_rows=500)
    monkeypatch.setattr(devices, "memory", lambda device: 50_000)
    with pytest.raises(ValueError, match="does not fit into a device's memory"):
        sae.train(config(), store, one_device, checkpoint_dir=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"x is the same vector at every token of .*: there is nothing to learn"):
        sae.train(config(), store, one_device)


def test_runs_of_one_shape_share_a_program():
    configs = [config(), config(l0_target=9.0, seed=4, learning_rate=1e-2), dataclasses.replace(config(), width=96)]
    apart = groups_of(configs, {"x": 32}, "side_by_side")
    assert [members for _, members in apart] == [(0,), (1,), (2,)]
    assert apart[0][0] == apart[1][0] != apart[2][0]
    stacked = groups_of(configs, {"x": 32}, "vmapped")
    assert [(shape.stacked, members) for shape, members in stacked] == [(2, (0, 1)), (0, (2,))]


def test_runs_of_one_shape_begin_by_one_program(one_device):
    """The seed is its argument, and the state that it gives is the seed's."""
    run = config(l0_target=6.0)
    shape = groups_of([run], {"x": 36}, "side_by_side")[0][0]
    runs = [dataclasses.replace(run, seed=seed) for seed in (3, 2**31 + 7)]
    with compilations.counted() as names:
        first, second = (programs.make_state(shape, one, one_device) for one in runs)
    assert len([name for name in names if "initial" in name]) == 1
    for state, one in zip((first, second), runs, strict=True):
        want = stepping.begun(one, 36, 36)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state, want)
    assert float(jnp.abs(first.params.W_dec - second.params.W_dec).max()) > 0.1
