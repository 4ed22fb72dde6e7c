"""What a run would take, against what it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.trainer import planning, programs
from sae.trainer.sweeps import groups_of
from tests import compilations
from tests.sae.trainer import stepping


def config(**changes):
    return sae.short_run("x", 64, 100, **{"batch_size": 128, "l0_target": 4.0, **changes})


def test_a_plan_adds_up(one_device):
    configs = [config(), config(l0_target=8.0), dataclasses.replace(config(), width=96)]
    plan = sae.plan(configs, {"x": 32}, one_device, rows=5000)
    bytes_of = [sum(leaf.nbytes for leaf in jax.tree.leaves(stepping.begun(c, 32, 32))) for c in configs]
    assert plan.state == sum(bytes_of)
    assert (plan.steps, plan.tokens, plan.passes) == (100, 12_800, 2.56)
    assert plan.read == 12_800 * 32 * 4
    # Six products of 2 B A Z operations would be too many: b_dec's gradient needs none of its own.
    products = sum(5 * 2 * 128 * 32 * c.width for c in configs)
    assert products < plan.flops < 1.5 * products
    assert plan.temporaries > 0 and plan.seconds > 0
    text = str(plan)
    assert "mesh 1 data x 1 latent" in text and "100 steps, 12,800 tokens, 2.56 passes" in text


def test_a_plan_without_a_mesh_is_for_the_mesh_that_training_would_take():
    plan = sae.plan(config(), {"x": 32})
    assert plan.mesh == {"data": jax.device_count(), "latent": 1}
    assert "at 50% of the peak, " in str(plan) and " TFLOP/s of a device, as this machine multiplied" in str(plan)
    with pytest.raises(ValueError, match="the width of 'x' is missing: there are those of y"):
        sae.plan([config()], {"y": 32})


def test_a_plan_says_what_full_precision_costs_on_a_gpu(one_device):
    """And nowhere else, nor where no run has it."""
    full, fast = config(), config(precision="high")
    assert planning.precision_advice([full], "cpu") is planning.precision_advice([full], "tpu") is None
    assert planning.precision_advice([fast], "gpu") is None
    advice = planning.precision_advice([fast, full], "gpu")
    assert "31.6 ms" in advice and "6.9 ms" in advice and "4.6 times" in advice and "precision='high'" in advice
    plan = sae.plan([full], {"x": 32}, one_device)
    assert plan.advice is None and "precision" not in str(plan)
    assert str(dataclasses.replace(plan, advice=advice)).endswith("\n" + advice)


def test_states_are_split_over_the_mesh(meshes):
    whole = sae.plan([config()], {"x": 32}, meshes(1, 1))
    split = sae.plan([config()], {"x": 32}, meshes(2, 4))
    assert whole.state / 4 < split.state < whole.state / 3
    assert split.batches == whole.batches // 2


def test_what_does_not_fit_is_refused_with_advice(one_device, monkeypatch):
    monkeypatch.setattr(planning, "memory", lambda device: 50_000)
    with pytest.raises(
        ValueError, match=r"does not fit into a device's memory, which has 0.00 GiB: the states .* Put m"
    ):
        sae.plan([config()], {"x": 32}, one_device).check()

    def refuse(shape, mesh):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA wants 17.5G of 16G hbm")

    monkeypatch.setattr(programs, "compiled_step", refuse)
    with pytest.raises(ValueError, match=r"and XLA says: RESOURCE_EXHAUSTED: XLA wants 17.5G"):
        sae.plan([config()], {"x": 32}, one_device).check()


def test_training_is_refused_before_it_starts(one_device, monkeypatch, tmp_path):
    from tests.sae import examples

    store = examples.make_store(tmp_path / "s", {"x": np.ones((500, 32), np.float32)}, segment_rows=500)
    monkeypatch.setattr(planning, "memory", lambda device: 50_000)
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
