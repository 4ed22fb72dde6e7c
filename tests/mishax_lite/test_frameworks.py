"""Gradients at sites, captures in loops and branches, names from module paths: in each framework and in plain JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, gradients, modules, tap

X = jnp.asarray([0.3, -0.7, 1.1, 0.5])
WEIGHT = jnp.linspace(-1, 1, 16).reshape(4, 4)


def hidden(x, dense: Callable):
    """The part that all models have: a layer, a loop that runs as long as it must, a branch."""
    x = tap("dense_out", dense(x))
    x = lax.while_loop(lambda c: jnp.abs(c).max() > 1, lambda c: tap("halved", c / 2), x * 8)
    return lax.cond(x[0] > 0, lambda x: tap("positive", x + 1), lambda x: tap("negative", x - 1), x)


def read(x, dense: Callable):
    """The part with a backward pass."""
    return jnp.tanh(tap("dense_out", dense(x))).sum()


def plain():
    dense = lambda x: x @ WEIGHT  # noqa: E731
    return lambda part: lambda x: part(x, dense), None


def linen():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        part: Callable

        @nn.compact
        def __call__(self, x):
            return self.part(x, nn.Dense(4, use_bias=False, name="dense"))

    params = {"params": {"dense": {"kernel": WEIGHT}}}
    return lambda part: lambda x: modules(Model(part)).apply(params, x), "dense"


def nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, part):
            self.part = part
            self.dense = nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0))
            self.dense.kernel[...] = WEIGHT

        def __call__(self, x):
            return self.part(x, self.dense)

    return lambda part: modules(Model(part)), "dense"


def equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        dense: eqx.nn.Linear
        part: Callable = eqx.field(static=True)

        def __call__(self, x):
            return self.part(x, self.dense)

    dense = eqx.tree_at(lambda d: d.weight, eqx.nn.Linear(4, 4, use_bias=False, key=jax.random.key(0)), WEIGHT.T)
    return lambda part: modules(Model(dense, part)), "dense"


@pytest.fixture(params=[plain, linen, nnx, equinox])
def framework(request):
    """A function from a part to a model with it, and what `modules` calls its layer (None without modules)."""
    return request.param()


def test_gradients_at_sites(framework):
    make, layer = framework
    out, by_site = gradients(make(read), ["dense_out", *([layer] if layer else [])])(X)
    np.testing.assert_allclose(out, jnp.tanh(X @ WEIGHT).sum(), rtol=1e-5)
    for gradient in by_site.values():
        np.testing.assert_allclose(gradient, 1 - jnp.tanh(X @ WEIGHT) ** 2, rtol=1e-4)
    assert len(by_site) == 1 + (layer is not None)


def test_captures_in_a_loop_and_in_a_branch(framework):
    make, layer = framework
    values = capture(make(hidden), ["halved", "positive", "negative", *([layer] if layer else [])], loops="last")(X)[1]
    start = 8 * (X @ WEIGHT)
    turns = int(np.ceil(np.log2(np.abs(start).max())))
    np.testing.assert_allclose(values["halved"].value, start / 2**turns, rtol=1e-5)
    assert values["halved"].count == turns
    taken = bool(start[0] > 0)
    assert (values["positive"].taken, values["negative"].taken) == (taken, not taken)
    np.testing.assert_allclose(values["negative"].value, 0 if taken else start / 2**turns - 1, rtol=1e-5)
    if layer:
        np.testing.assert_allclose(values[layer], X @ WEIGHT, rtol=1e-5)
    assert capture(make(hidden), "halved", loops=2)(X)[1]["halved"].value.shape == (2, 4)
