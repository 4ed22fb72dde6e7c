"""`modules`: the output of every module of an Equinox model, under the module's path."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, modules, sites

X = jnp.arange(6.0).reshape(2, 3) / 5


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.fixture(scope="module")
def model(eqx):
    class Block(eqx.Module):
        parts: dict
        pair: Pair
        scale: float = 2.0

        def __call__(self, x, key=None):
            return self.pair.first(self.parts["norm"](x) * self.scale), {"second": self.pair.second(x), "count": 3}

    class Net(eqx.Module):
        blocks: list
        head: eqx.nn.MLP
        name: str = eqx.field(static=True)

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            make = lambda key: eqx.nn.Linear(3, 3, key=key)  # noqa: E731
            self.blocks = [Block({"norm": eqx.nn.LayerNorm(3)}, Pair(make(key), make(key))) for key in keys[:2]]
            self.head = eqx.nn.MLP(3, 2, 4, 1, key=keys[2])
            self.name = "net"

        def __call__(self, x):
            for block in self.blocks:
                x, more = block(x)
                assert isinstance(more["count"], int)
            return self.head(x)

        def features(self, x):
            return self.blocks[0](x)[0]

    return Net(jax.random.key(0))


def test_equinox_paths_and_values(eqx, model):
    tapped = modules(model)
    out, values = capture(tapped, "*")(X[0])
    np.testing.assert_allclose(out, model(X[0]), rtol=1e-6)
    parts = ("parts/norm", "pair/first", "pair/second")
    block = lambda k: [*[f"blocks/{k}/{part}" for part in parts], f"blocks/{k}"]  # noqa: E731
    assert list(values) == [*block(0), *block(1), "head/layers/0", "head/layers/1", "head", "Net"]
    np.testing.assert_allclose(values["blocks/0"][0], model.features(X[0]), rtol=1e-6)
    np.testing.assert_allclose(values["blocks/0"][1]["second"], model.blocks[0].pair.second(X[0]), rtol=1e-6)
    assert list(capture(tapped.features, "*")(X[0])[1]) == block(0)


def test_equinox_models_stay_pytrees(eqx, model):
    types = [type(model), type(model.blocks[0]), type(model.head.layers[0])]
    tapped = modules(modules(model, "blocks/*"), "head")
    assert isinstance(tapped, type(model)) and isinstance(tapped.blocks[1].pair, Pair)
    for left, right in zip(jax.tree.leaves(tapped), jax.tree.leaves(model), strict=True):
        assert left is right
    assert jax.tree.structure(tapped) == jax.tree.structure(modules(modules(model, "blocks/*"), "head"))
    assert str(tapped) == str(model)
    names = list(sites(tapped, X[0]))
    assert "blocks/0" in names and "head" in names and "head/layers/0" not in names
    for copy in (
        jax.tree.map(lambda leaf: leaf, tapped),
        eqx.tree_at(lambda m: m.blocks[0].pair.first.weight, tapped, jnp.zeros((3, 3))),
        eqx.combine(*eqx.partition(tapped, eqx.is_array)),
        eqx.nn.inference_mode(tapped),
        dataclasses.replace(tapped.blocks[0], scale=3.0),
    ):
        known = names if isinstance(copy, type(model)) else names[:4]
        assert list(sites(lambda x, copy=copy: copy(x), X[0])) == known
    assert [type(model), type(model.blocks[0]), type(model.head.layers[0])] == types and not sites(model, X[0])


def test_equinox_transformations(eqx, model):
    tapped = modules(model, "blocks/?/pair/first")
    names = ["blocks/0/pair/first", "blocks/1/pair/first"]
    for call, x in (
        (eqx.filter_jit(tapped), X[0]),
        (lambda x: eqx.filter_jit(lambda m, x: m(x))(tapped, x), X[0]),
        (jax.vmap(tapped), X),
    ):
        out, values = capture(call, "*")(x)
        np.testing.assert_allclose(out, jax.vmap(model)(X) if x is X else model(x), rtol=1e-5)
        assert list(values) == names
    loss = lambda m, x: m(x).sum()  # noqa: E731
    zero = edit(loss, {"blocks/1/pair/first": lambda v, site: jnp.zeros_like(v)})
    grads, plain = eqx.filter_grad(loss)(tapped, X[0]), eqx.filter_grad(loss)(model, X[0])
    for left, right in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    np.testing.assert_array_equal(eqx.filter_grad(zero)(tapped, X[0]).blocks[0].pair.first.weight, 0)
    texts = [jax.jit(lambda x, m=m: m(x)).lower(X[0]).as_text() for m in (model, tapped)]
    assert texts[0] == texts[1]


def test_equinox_stacked_layers_in_a_scan(eqx):
    keys = jax.random.split(jax.random.key(0), 4)
    layers = modules(eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(keys))

    def run(x):
        arrays, rest = eqx.partition(layers, eqx.is_array)
        return jax.lax.scan(lambda x, layer: (eqx.combine(layer, rest)(x), None), x, arrays)[0]

    out, values = capture(run, "Linear")(X[0])
    assert values["Linear"].shape == (4, 3)
    np.testing.assert_array_equal(values["Linear"][-1], out)


def test_equinox_state(eqx):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    tapped = modules(eqx.nn.Sequential([norm, eqx.nn.Lambda(jnp.tanh)]), "*")
    run = lambda model: jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(X, state)  # noqa: E731
    (out, new), values = capture(lambda: run(tapped), "layers/0")()
    wanted, wanted_state = run(eqx.nn.Sequential([norm, eqx.nn.Lambda(jnp.tanh)]))
    np.testing.assert_allclose(out, wanted, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(new), jax.tree.leaves(wanted_state), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    np.testing.assert_allclose(jnp.tanh(values["layers/0"][0]), out, rtol=1e-6)


def test_equinox_pattern_that_matches_nothing(eqx, model):
    with pytest.raises(ValueError, match="no module's path matches 'heads'; near paths: head"):
        modules(model, "heads")
