"""`modules`: the output of every module of a Flax linen, nnx or Equinox model, under the module's path."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, modules, sites

X = jnp.arange(6.0).reshape(2, 3) / 5


def test_anything_else_is_refused():
    for model in (lambda x: x, jnp.ones(3), [1], dict):
        with pytest.raises(ValueError, match="expected a module of Flax linen, Flax nnx or Equinox; got"):
            modules(model)
    with pytest.raises(ValueError, match="the pattern must be a string; got list"):
        modules(lambda x: x, ["a"])


# Flax linen


@pytest.fixture(scope="module")
def nn():
    return pytest.importorskip("flax.linen", reason="flax is not installed: pip install flax")


@pytest.fixture(scope="module")
def linen(nn):
    """Classes of linen modules, by name."""

    class Block(nn.Module):
        """In the compact style; its output is a pytree."""

        width: int = 4

        @nn.compact
        def __call__(self, x):
            hidden = nn.Dense(self.width, name="up")(x)
            return nn.Dense(3)(nn.relu(hidden)), {"hidden": hidden, "count": 2, "what": "text"}

    class Nothing(nn.Module):
        def __call__(self, x):
            return None

    class Net(nn.Module):
        """In the setup style, with another method, a shared module and one that returns nothing."""

        def setup(self):
            self.blocks = [Block(), Block(5)]
            self.norm = nn.BatchNorm(use_running_average=False)
            self.nothing = Nothing()
            self.dropout = nn.Dropout(0.5, deterministic=False)

        def encode(self, x):
            for block in self.blocks:
                x, more = block(x)
                assert more["count"] == 2 and more["what"] == "text"
            return x

        def __call__(self, x):
            self.nothing(x)
            return self.dropout(self.norm(self.norm(self.encode(x))))

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return Block()(x)[0], None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 4}
            return nn.scan(Step, **options)(name="steps")(x, None)[0]

    class Lifted(nn.Module):
        kind: str

        @nn.compact
        def __call__(self, x):
            options = {}
            if self.kind == "vmap":
                options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return getattr(nn, self.kind)(Step, **options)(name="step")(x)[0]

    return {cls.__name__: cls for cls in (Block, Net, Nothing, Scanned, Lifted)}


KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def intermediates(model, variables, x):
    """What Flax itself records of every call, by our names."""
    _, state = model.apply(
        variables, x, rngs=KEYS, capture_intermediates=True, mutable=["intermediates", "batch_stats"]
    )
    found = {}

    def walk(tree, path):
        for key, value in tree.items():
            if key != "__call__":
                walk(value, (*path, key))
                continue
            calls = [call for call in value if call is not None]
            for k, call in enumerate(calls):
                name = "/".join(path) or type(model).__name__
                found[name if len(calls) == 1 else f"{name}#{k}"] = call

    walk(state["intermediates"], ())
    return found


def arrays(value):
    return [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)]


def check_linen(model, pattern="*"):
    tapped = modules(model, pattern)
    variables = jax.jit(model.init)(KEYS, X)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(tapped.init)(KEYS, X), variables)
    run = lambda model, v: model.apply(v, X, rngs=KEYS, mutable=["batch_stats"])  # noqa: E731
    out, values = jax.jit(capture(functools.partial(run, tapped), "*"))(variables)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, out, jax.jit(functools.partial(run, model))(variables))
    return values, variables


def test_linen_paths_and_values_are_those_that_flax_records(linen):
    values, variables = check_linen(linen["Net"]())
    recorded = intermediates(linen["Net"](), variables, X)
    assert set(values) == set(recorded) | {"Net"}
    assert "blocks_1/Dense_0" in values and "norm#1" in values and "nothing" not in values
    for name, value in values.items():
        expected = arrays(recorded[name])
        for got, want in zip(jax.tree.leaves(value), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert values["blocks_0"][1]["count"] is None


def test_linen_patterns_choose(linen):
    values, _ = check_linen(linen["Net"](), "blocks_?/up")
    assert list(values) == ["blocks_0/up", "blocks_1/up"]
    both = modules(modules(linen["Net"](), "blocks_?"), "Net")
    found = sites(lambda v: both.apply(v, X, rngs=KEYS, mutable=["batch_stats"]), both.init(KEYS, X))
    assert list(found) == ["blocks_0", "blocks_1", "Net"]


def test_linen_pattern_that_matches_nothing(linen):
    model = modules(linen["Net"](), "block_?/up")
    with pytest.raises(ValueError, match=r"no module's path matches 'block_.*near paths: .*blocks_1/up"):
        model.init(KEYS, X)


def test_linen_scan(linen):
    values, _ = check_linen(linen["Scanned"]())
    assert {name: jax.tree.map(jnp.shape, value) for name, value in values.items()} == {
        "steps/Block_0/up": (4, 2, 4),
        "steps/Block_0/Dense_0": (4, 2, 3),
        "steps/Block_0": ((4, 2, 3), {"hidden": (4, 2, 4), "count": None, "what": None}),
        "steps": ((4, 2, 3), None),
        "Scanned": (2, 3),
    }
    np.testing.assert_allclose(values["steps"][0][-1], values["Scanned"])


@pytest.mark.parametrize("kind", ["remat", "vmap", "jit"])
def test_linen_lifted_modules(linen, kind):
    values, _ = check_linen(linen["Lifted"](kind))
    shapes = {name: value.shape for name, value in values.items() if name.endswith(("up", "Dense_0", "Lifted"))}
    assert shapes == {"step/Block_0/up": (2, 4), "step/Block_0/Dense_0": (2, 3), "Lifted": (2, 3)}
    assert set(values) == {*shapes, "step/Block_0", "step"}


def test_linen_cached_parts_are_traced_for_each_pattern(nn):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dense(3, name="up")(x))

    Jitted = nn.jit(Block)  # made once: what is traced is cached for all models that have it

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Jitted(name="block")(x)

    model = Net()
    variables = model.init(KEYS, X)
    model.apply(variables, X)
    for pattern in ("block/up", "block/Dense_0", "block/up"):
        modules(model, pattern).apply(variables, X)
        assert list(sites(modules(model, pattern).apply, variables, X)) == [pattern]
    assert not sites(model.apply, variables, X)


def test_linen_methods_and_bind(linen):
    model = linen["Net"]()
    variables = model.init(KEYS, X)
    tapped = modules(model, "*/up")
    for call in (
        lambda x: tapped.apply(variables, x, method="encode"),
        lambda x: tapped.apply(variables, x, method=type(model).encode),
        lambda x: tapped.bind(variables).encode(x),
        lambda x: modules(model.bind(variables), "*/up").encode(x),
    ):
        out, values = capture(call, "*")(X)
        np.testing.assert_allclose(out, model.apply(variables, X, method="encode"), rtol=1e-6)
        assert list(values) == ["blocks_0/up", "blocks_1/up"]


def test_linen_edits_gradients_and_idle_taps(linen):
    model = linen["Lifted"]("remat")
    variables = model.init(KEYS, X)
    tapped = modules(model)
    texts = [jax.jit(m.apply).lower(variables, X).as_text() for m in (model, tapped)]
    assert texts[0] == texts[1]
    zero = edit(tapped.apply, {"step/Block_0/up": lambda v, site: jnp.zeros_like(v)})
    np.testing.assert_allclose(zero(variables, X), jnp.broadcast_to(zero(variables, X)[0], (2, 3)))
    loss = lambda run: jax.grad(lambda v: run(v, X).sum())(variables)  # noqa: E731
    jax.tree.map(np.testing.assert_allclose, loss(tapped.apply), loss(model.apply))
    dead = loss(zero)["params"]["step"]["Block_0"]["up"]["kernel"]
    np.testing.assert_array_equal(dead, 0)


def test_linen_models_stay_what_they_are(nn, linen):
    @dataclasses.dataclass(unsafe_hash=True)
    class Plain:
        x: int

    class Keyed(nn.Module, kw_only=True):
        sizes: tuple[int, ...] = (3, 2)
        inner: Any = None

        @nn.compact
        def __call__(self, x):
            for size in self.sizes:
                x = nn.Dense(size)(x)
            return self.inner(x)[0]

    model = Keyed(inner=linen["Block"](), sizes=(2, 3))
    before = (type(model), repr(model), hash(model))
    tapped = modules(model, "inner*")
    assert isinstance(tapped, Keyed) and repr(tapped) == repr(model)
    assert tapped == modules(model, "inner*") and hash(tapped) == hash(modules(model, "inner*"))
    assert list(sites(tapped.apply, tapped.init(KEYS, X), X)) == ["inner/up", "inner/Dense_0", "inner"]
    assert (type(model), repr(model), hash(model)) == before
    assert not sites(model.apply, model.init(KEYS, X), X)

    class Outer(nn.Module):
        """A tapped model as a part of another, and one made within a call."""

        part: Any

        @nn.compact
        def __call__(self, x):
            with pytest.raises(ValueError, match="belongs to a model that is running or bound"):
                modules(nn.Dense(2, name="late"))
            return self.part(x)

    outer = Outer(tapped)
    assert list(sites(outer.apply, outer.init(KEYS, X), X)) == ["inner/up", "inner/Dense_0", "inner"]


# Flax nnx


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


# Equinox


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
