"""`modules`: the output of every module of a Flax linen model, under the module's path."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, modules, sites

X = jnp.arange(6.0).reshape(2, 3) / 5


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
