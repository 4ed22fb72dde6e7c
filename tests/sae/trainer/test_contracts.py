"""A part that breaks its promise is named: before the first step where its release does, while tracing otherwise."""

import dataclasses

import jax.numpy as jnp
import pytest

import sae
from sae import objectives, sparsity
from sae.architectures import ARCHITECTURES, JumpReLU
from tests.registering import registered
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary


@dataclasses.dataclass(frozen=True)
class Wrong(JumpReLU):
    """A JumpReLU that breaks one promise."""

    breaks: str = ""

    def encode(self, params, x, state, sizes):
        encoded = super().encode(params, x, state, sizes)
        return encoded._replace(l0=encoded.l0.sum()) if self.breaks == "l0" else encoded

    def release(self, params, state, sizes):
        released = super().release(params, state, sizes)
        if self.breaks == "tuple":
            return tuple(released.arrays().values())
        if self.breaks == "rank":
            return dataclasses.replace(released, b_enc=jnp.float32(0))
        if self.breaks == "half":
            return dataclasses.replace(released, b_enc=released.b_enc[: sizes.width // 2])
        return released


@dataclasses.dataclass(frozen=True)
class EachToken(sparsity.SparsityTerm):
    """A penalty for each token, where one number is asked for."""

    strength_of_it: float = 1.0

    def penalty(self, encoded, state, now, sizes):
        return encoded.f.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class EachError(objectives.Objective):
    """An error for each token, where one number is asked for."""

    precision: str = "highest"

    def errors(self, params, f, x, y):
        return (jnp.square(f @ params.W_dec + params.b_dec - y).sum(axis=-1),)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    kinds = (ARCHITECTURES, "wrong", Wrong), (sparsity.TERMS, "each_token", EachToken)
    x, _, _ = known_dictionary(500, features=64, dimensions=32)
    store = examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=500)
    with registered(*kinds, (objectives.OBJECTIVES, "each_error", EachError)):
        yield store


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": Wrong(breaks="tuple")}, "Wrong.release returned .*: return a released form, such as sae.Jump"),
        ({"autoencoder": Wrong(breaks="rank")}, r"Wrong.release: b_enc has the shape \[\], expected \[Z\]"),
        ({"autoencoder": Wrong(breaks="half")}, "these arrays make no autoencoder"),
        ({"autoencoder": Wrong(breaks="l0")}, r"Wrong.encode: l0 has the shape \[\], expected \[32\]"),
        ({"sparsity": (EachToken(),)}, r"EachToken.penalty returned an array of shape \[32\], expected one number"),
        ({"objective": EachError()}, r"EachError.errors returned an array of shape \[32\], expected one number"),
    ],
)
def test_a_part_that_breaks_its_promise_is_named_before_a_step_is_made(small, one_device, changes, message):
    run = dataclasses.replace(sae.Run("x", 64, 4, batch_size=32), **changes)
    with pytest.raises(ValueError, match=message):
        sae.train(run, small, one_device, progress=False)
