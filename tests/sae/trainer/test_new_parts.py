"""An architecture, a sparsity term and an objective that a test has written: trained, swept, stopped, resumed and
released like those of the library."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import architectures, objectives, sparsity
from sae.architectures import JumpReLU
from sae.objectives import Objective
from sae.parts import Number
from sae.sparsity import SparsityTerm
from sae.trainer import programs
from sae.trainer.sweeps import Sweep
from tests import compilations
from tests.registering import registered
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary


@dataclasses.dataclass(frozen=True)
class Running(JumpReLU):
    """A JumpReLU that keeps a running mean of the L0, and how often each latent has fired.

    Attributes:
      skip: as of a JumpReLU.
      log_threshold: as of a JumpReLU.
      bandwidth: as of a JumpReLU.
      threshold_init: as of a JumpReLU.
      threshold_learning_rate: as of a JumpReLU.
      decay: of the mean.
    """

    decay: Number = 0.9

    def state(self, sizes):
        return {"l0": jnp.float32(0.0), "fired": jnp.zeros(sizes.width)}

    def update(self, state, encoded, step, sizes):
        mean = self.decay * state["l0"] + (1 - self.decay) * encoded.l0.mean()
        return {"l0": mean, "fired": state["fired"] + encoded.fired}

    def records(self, params, state, sizes):
        return super().records(params, state, sizes) | {"running_l0": state["l0"], "fired": state["fired"].sum()}

    def warnings(self, course):
        return {"running": f"the running L0 is {course.last['running_l0']:.3g}"}

    def release(self, params, state, sizes):
        return dataclasses.replace(super().release(params, state, sizes), threshold=state["fired"])


@dataclasses.dataclass(frozen=True)
class Magnitude(SparsityTerm):
    """The sum of the latents, whose strength grows by a tenth with each step.

    Attributes:
      magnitude: its coefficient at the start.
    """

    magnitude: Number = 1e-3

    def init(self, sizes):
        return jnp.float32(1.0)

    def strength(self, state, step, sizes):
        return self.magnitude * state

    def penalty(self, encoded, state, now, sizes):
        return now.strength * encoded.f.sum(axis=-1).mean()

    def update(self, state, encoded, step, sizes):
        return 1.1 * state


@dataclasses.dataclass(frozen=True)
class Halved(Objective):
    """Half of the squared error.

    Attributes:
      precision: of matrix products.
    """

    precision: str = "highest"

    def errors(self, params, f, x, y):
        return (0.5 * jnp.square(f @ params.W_dec + params.b_dec - y).sum(axis=-1).mean(),)


@pytest.fixture(scope="module", autouse=True)
def added():
    kinds = (architectures.ARCHITECTURES, "running", Running), (sparsity.TERMS, "magnitude", Magnitude)
    with registered(*kinds, (objectives.OBJECTIVES, "halved", Halved)):
        yield


class Stop(Exception):
    pass


def stopped(step):
    """A progress bar that raises at a step."""

    def progress(steps, **_):
        for s in steps:
            if s == step:
                raise Stop
            yield s

    return progress


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(2000, features=64, dimensions=32)
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=1000)


def run(decay=0.9, **changes):
    fields = {"batch_size": 64, "log_threshold": False, "threshold_init": 0.01, "bandwidth": 0.02, **changes}
    about = {"sparsity": (Magnitude(),), "objective": Halved(), "autoencoder": Running(decay=decay)}
    return sae.Run("x", 64, 12, **about).replace(**fields)


def test_they_train_with_their_states_records_and_strengths(small, one_device):
    with pytest.warns(sae.TrainingWarning, match="the running L0 is"):
        (autoencoder,), history = sae.train(run(), small, one_device, log_every=1)
    mean = 0.0
    for number, record in enumerate(history):
        mean = 0.9 * mean + 0.1 * record["l0"]
        assert record["running_l0"] == pytest.approx(mean, rel=1e-5)
        assert record["coefficient"] == pytest.approx(1e-3 * 1.1**number, rel=1e-5)
        assert record["loss"] == pytest.approx(record["reconstruction"] + record["penalty"], rel=1e-5)
    fired = sum(record["l0"] for record in history)
    assert history[-1]["fired"] == pytest.approx(fired, rel=1e-4)
    scale = small.mean_squared_norm("x") ** 0.5
    assert np.asarray(autoencoder.threshold).sum() == pytest.approx(scale * fired, rel=1e-4)


@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")
def test_runs_that_differ_in_their_numbers_share_a_program_and_a_stopped_sweep_ends_in_the_same_bits(
    small, one_device, tmp_path
):
    runs = [run(decay=0.9, batch_size=32), run(decay=0.5, batch_size=32, magnitude=2e-3)]
    with compilations.counted() as names:
        unbroken, history = sae.train(runs, small, one_device, log_every=1)
    assert len([name for name in names if name == "one"]) <= 1
    assert history[0]["running_l0"] == pytest.approx(0.1 * history[0]["l0"], rel=1e-5)
    assert history[1]["running_l0"] == pytest.approx(0.5 * history[1]["l0"], rel=1e-5)
    with pytest.raises(Stop):
        sae.train(runs, small, one_device, checkpoint_dir=tmp_path / "c", save_every=4, progress=stopped(7))
    resumed, _ = sae.train(runs, small, one_device, checkpoint_dir=tmp_path / "c")
    jax.tree.map(np.testing.assert_array_equal, unbroken, resumed)
    alone, _ = sae.train(runs[1], small, one_device)
    jax.tree.map(np.testing.assert_array_equal, unbroken[1], alone.pop())


def test_what_an_architecture_keeps_lies_over_the_mesh_as_its_latents_do(meshes):
    sweep = Sweep([run()], [{"x": run().inputs.units(Constant(), "x")}], {"x": 32}, meshes(2, 4))
    sweep.begin()
    (state,) = sweep.states()
    assert {shard.data.shape for shard in state.kept["fired"].addressable_shards} == {(16,)}
    assert {shard.data.shape for shard in state.kept["l0"].addressable_shards} == {()}
    assert programs.Shape.of(run(0.1), {"x": 32}) == programs.Shape.of(run(0.2), {"x": 32})


class Constant:
    """As much of a source as units are made of."""

    name = "constants"

    def mean_squared_norm(self, site):
        return 4.0

    def mean(self, site):
        return np.zeros(32)


def test_a_run_with_them_comes_back_from_json():
    assert sae.Run.of_json(run(0.3).json()) == run(0.3)
    assert run(0.3).json()["autoencoder"]["kind"] == "running"
