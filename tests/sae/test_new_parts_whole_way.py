"""An architecture with a released form of its own, a sparsity term and an objective, all in this file: trained, saved,
loaded, evaluated, shown on pages and steered with, without a change to a file of the library."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import architectures, objectives, sparsity
from sae.architectures import Encoded
from sae.architectures.affine import Affine, pre_activations, released_bias
from sae.autoencoder import Info, Largest
from sae.parts import Number
from sae.released import Independent, forms
from sae.text import cut
from tests.registering import registered
from tests.sae.models import whole_way

SITE = "layer_2/resid_post"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class CappedForm(Independent):
    """f = min(max(z, 0), cap), with a cap for each latent."""

    axes: ClassVar = {"W_enc": ("A", "Z"), "b_enc": ("Z",), "W_dec": ("Z", "A'"), "b_dec": ("A'",), "cap": ("Z",)}
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    cap: jax.Array
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def encode(self, x):
        z = jnp.matmul(self.joined(x), self.W_enc, precision="highest") + self.b_enc
        return jnp.clip(z, 0.0, self.cap)

    def scaled(self, gain):
        return dataclasses.replace(super().scaled(gain), cap=gain * self.cap)


@dataclasses.dataclass(frozen=True)
class Capped(Affine):
    """Latents from 0 to a cap.

    Attributes:
      cap: in scaled units.
    """

    cap: Number = 0.2

    def encode(self, params, x, state, sizes):
        z = pre_activations(params, x, sizes)
        f = jnp.clip(z, 0.0, self.cap)
        on = f > 0
        return Encoded(f, on.sum(axis=1).astype(f.dtype), on.mean(axis=0, dtype=f.dtype), z, jnp.float32(0))

    def release(self, params, state, sizes):
        cap = jnp.full((sizes.width,), self.cap)
        return CappedForm(params.W_enc, released_bias(params, sizes), params.W_dec, params.b_dec, cap)


@dataclasses.dataclass(frozen=True)
class Root(sparsity.SparsityTerm):
    """The square roots of the latents, summed.

    Attributes:
      root_coefficient: its strength.
    """

    root_coefficient: Number = 1e-3

    def penalty(self, encoded, state, now, sizes):
        return self.root_coefficient * jnp.sqrt(encoded.f + 1e-4).sum(axis=1).mean()


@dataclasses.dataclass(frozen=True)
class Absolute(objectives.Objective):
    """The sum of the absolute errors of a token.

    Attributes:
      precision: of matrix products.
    """

    precision: str = "highest"

    def errors(self, params, f, x, y):
        return (jnp.abs(f @ params.W_dec + params.b_dec - y).sum(axis=-1).mean(),)


@pytest.fixture
def added():
    kinds = (architectures.ARCHITECTURES, "capped", Capped), (sparsity.TERMS, "root", Root)
    with registered((forms, "Capped", CappedForm), *kinds, (objectives.OBJECTIVES, "absolute", Absolute)):
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # a run of a few steps
def test_an_architecture_a_term_and_an_objective_of_a_test_go_the_whole_way(added, tiny, tmp_path):
    sequences = cut(whole_way.documents(), tiny.tokenizer, 24)
    store = sae.harvest(tiny, sequences, [SITE], tmp_path / "store")
    run = sae.Run(SITE, 32, 30, batch_size=64, autoencoder=Capped(), sparsity=(Root(),), objective=Absolute())
    (trained,), history = sae.train(run.replace(learning_rate=1e-3, learning_rate_warmup=2), store)
    assert history[-1]["reconstruction"] < history[0]["reconstruction"]
    scale = store.mean_squared_norm(SITE) ** 0.5
    np.testing.assert_allclose(trained.cap, 0.2 * scale, rtol=1e-5)
    sae.save(trained, tmp_path / "autoencoder")
    loaded = sae.load(tmp_path / "autoencoder")
    assert isinstance(loaded, CappedForm) and loaded.info == trained.info
    facts = json.loads(loaded.info.training)["run"]
    kinds = facts["autoencoder"]["kind"], facts["sparsity"][0]["kind"], facts["objective"]["kind"]
    assert kinds == ("capped", "root", "absolute") and sae.Run.of_json(facts).autoencoder == Capped()
    x = np.asarray(next(store.batches(64))[SITE])
    np.testing.assert_array_equal(loaded.encode(x), trained.encode(x))
    whole_way.measure(tiny, loaded, sequences)
    whole_way.show(tiny, loaded, sequences, tmp_path / "pages")
    whole_way.steer(tiny, loaded)
