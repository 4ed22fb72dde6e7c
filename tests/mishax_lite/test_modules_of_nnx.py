"""`modules`: the output of every module of a Flax nnx model, under the module's path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, modules, sites

X = jnp.arange(6.0).reshape(2, 3) / 5


@pytest.fixture(scope="module")
def nnx():
    return pytest.importorskip("flax.nnx", reason="flax is not installed: pip install flax")


@pytest.fixture(scope="module")
def Transformer(nnx):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.mlp = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            x = self.norm(self.mlp(x))
            return x, {"mean": x.mean(), "calls": self.calls}

    class Odd(nnx.Module, pytree=False):
        """What is no pytree may hold modules in lists and dicts."""

        def __init__(self, rngs):
            self.parts = [{"one": nnx.Linear(3, 3, rngs=rngs)}]

        def __call__(self, x):
            self.parts[0]["one"](x)

    class Transformer(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([Layer(rngs), Layer(rngs)])
            self.tied = self.layers[0]
            self.odd = Odd(rngs)
            self.head = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs))

        def __call__(self, x):
            for layer in self.layers:
                x, more = layer(x)
                assert isinstance(more["calls"], int)
            self.odd(x)
            return self.head(self.tied(x)[0])

    return Transformer


def test_nnx_paths_and_values(nnx, Transformer):
    model, twin = Transformer(), Transformer()
    out, values = capture(modules(model), "*")(X)
    np.testing.assert_allclose(out, twin(X), rtol=1e-5)
    layer = [f"layers/0/{name}" for name in ("mlp", "norm")] + ["layers/0"]
    assert list(values) == [
        *[f"{name}#0" for name in layer],
        *["layers/1/mlp", "layers/1/norm", "layers/1"],
        "odd/parts/0/one",
        *[f"{name}#1" for name in layer],
        *["head/layers/0", "head/layers/2", "head"],
        "Transformer",
    ]
    np.testing.assert_allclose(values["layers/0/mlp#0"], twin.layers[0].mlp(X), rtol=1e-5)
    np.testing.assert_allclose(values["layers/0#0"][1]["mean"], values["layers/0/norm#0"].mean(), rtol=1e-5)
    np.testing.assert_array_equal(out, values["Transformer"])


def test_nnx_state_is_shared_with_the_model(nnx, Transformer):
    model, twin = Transformer(), Transformer()
    types = [type(node) for _, node in nnx.iter_graph(model)]
    tapped = modules(model, "layers/*")
    for _ in range(2):
        np.testing.assert_allclose(capture(tapped, "layers/1")(X)[0], twin(X), rtol=1e-5)
    np.testing.assert_allclose(model.layers[0].norm.mean[...], twin.layers[0].norm.mean[...], rtol=1e-5)
    assert tapped.tied is tapped.layers[0] and isinstance(tapped, Transformer)
    # Attributes are the view's own, and taps stand in no module of the model.
    assert (tapped.layers[1].calls, model.layers[1].calls) == (2, 0)
    assert [type(node) for _, node in nnx.iter_graph(model)] == types
    assert not sites(model, X)
    model.layers[0].mlp.bias[...] += 1.0
    np.testing.assert_array_equal(tapped.layers[0].mlp.bias[...], model.layers[0].mlp.bias[...])


def test_nnx_transformations_keep_the_taps(nnx, Transformer):
    model = Transformer()
    model.eval()
    tapped = modules(model, "layers/?/mlp")
    names = ["layers/0/mlp#0", "layers/1/mlp", "layers/0/mlp#1"]
    graph, state = nnx.split(tapped)
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model))
    for call in (
        lambda x: nnx.merge(graph, state)(x),
        lambda x: nnx.clone(tapped)(x),
        lambda x: nnx.vmap(lambda m, x: m(x[None])[0], in_axes=(None, 0))(tapped, x),
        jax.jit(lambda x: nnx.merge(graph, state)(x)),
    ):
        out, values = capture(call, "*")(X)
        np.testing.assert_allclose(out, model(X), rtol=1e-4, atol=1e-5)
        assert list(values) == names
    zero = edit(lambda m, x: m(x), {"layers/1/mlp": lambda v, site: jnp.zeros_like(v)})
    grads = nnx.grad(lambda m: zero(m, X).sum())(tapped)
    np.testing.assert_array_equal(grads["layers"][1]["mlp"]["kernel"][...], 0)
    text = lambda graph: jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, X).as_text()  # noqa: E731
    assert text(nnx.graphdef(tapped)) == text(nnx.graphdef(model))


def test_nnx_jit(nnx, Transformer):
    try:
        run = nnx.jit(lambda m, x: m(x))
    except TypeError as error:  # Flax 0.12.0 passes what JAX has dropped
        pytest.skip(f"nnx.jit itself does not work here: {error}")
    model, twin = Transformer(), Transformer()
    tapped = modules(model, "head")
    run(model, X), twin(X)
    out, values = capture(run, "head")(tapped, X)
    np.testing.assert_allclose(out, twin(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values["head"], out)
    np.testing.assert_allclose(model.layers[1].norm.mean[...], twin.layers[1].norm.mean[...], rtol=1e-5)


def test_nnx_pattern_that_matches_nothing(nnx, Transformer):
    with pytest.raises(ValueError, match=r"no module's path matches 'layer/0'; near paths: layers/0.*12 modules"):
        modules(Transformer(), "layer/0")
