"""What `sites`, `capture` and `edit` promise, apart from single transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import capture, edit, sites, tap
from tests import compilations

X = jnp.arange(6.0).reshape(2, 3)


def model(x, scale=2, name="n", extra=None):
    x = tap("layer_0/mid", x * scale)
    x = tap("layer_1/mid", x + 1)
    tap("layer_1/unused", jnp.sum(x))
    return {"out": tap("out", x.T), "name": name, "extra": extra, "count": 3}


def test_sites_names_shapes_and_order_without_computing():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    found = sites(model, shape)
    assert [(name, s.shape, s.dtype) for name, s in found.items()] == [
        ("layer_0/mid", (2, 3), jnp.bfloat16),
        ("layer_1/mid", (2, 3), jnp.bfloat16),
        ("layer_1/unused", (), jnp.bfloat16),
        ("out", (3, 2), jnp.bfloat16),
    ]
    captured = capture(model, "*")(X)[1]
    assert {k: (v.shape, v.dtype) for k, v in captured.items()} == {
        k: (v.shape, v.dtype) for k, v in sites(model, X).items()
    }


def test_arguments_and_outputs_that_are_no_arrays_pass_as_they_are():
    seen = []

    def f(x, flag, name, fn, nothing, n):
        seen.append((flag, name, nothing, n))
        assert flag is True and type(n) is int and isinstance(x, jax.core.Tracer)
        return fn(tap("x", x)), fn, name, flag, nothing, n, 1.5

    out, values = capture(f, "x")(np.ones(3), True, "text", jnp.sin, None, n=4)
    assert out[1:] == (jnp.sin, "text", True, None, 4, 1.5)
    np.testing.assert_allclose(out[0], np.sin(np.ones(3)))
    assert seen == [(True, "text", None, 4)] and values["x"].shape == (3,)
    assert edit(f, {"x": lambda v, s: v})(X, True, "text", jnp.sin, None, 4)[1:] == out[1:]


def test_patterns_are_fnmatch_and_cross_slashes():
    assert list(capture(model, "layer_*")(X)[1]) == ["layer_0/mid", "layer_1/mid", "layer_1/unused"]
    assert list(capture(model, ["layer_[01]/mid", "out"])(X)[1]) == ["layer_0/mid", "layer_1/mid", "out"]
    assert list(capture(model, ["*/mid"])(X)[1]) == ["layer_0/mid", "layer_1/mid"]
    assert capture(model, [])(X)[1] == {}
    with pytest.raises(ValueError, match=r"no site matches 'Layer_0/mid'.*layer_0/mid"):
        capture(model, ["Layer_0/mid"])(X)


def test_a_pattern_without_a_site_offers_near_names():
    for hook in (capture(model, "layer_2/mid"), edit(model, {"layer_2/mid": lambda v, s: v})):
        with pytest.raises(ValueError, match=r"'layer_2/mid'.*layer_[01]/mid"):
            hook(X)
    with pytest.raises(ValueError, match="taps nothing"):
        capture(jnp.sin, "x")(X)
    with pytest.raises(ValueError, match="pattern must be a string"):
        capture(model, [3])
    with pytest.raises(ValueError, match="expected a function for pattern 'out'"):
        edit(model, {"out": 3})


def test_repeated_names_are_numbered_in_program_order():
    inner = jax.jit(lambda x: tap("x", x + 1))

    def f(x):
        return inner(inner(x)) + tap("y", tap("x", x * 10))

    out, values = capture(f, "x")(1.0)
    assert {k: float(v) for k, v in values.items()} == {"x#0": 2, "x#1": 3, "x#2": 10}
    assert list(capture(f, ["x#1"])(1.0)[1]) == ["x#1"]
    assert list(sites(f, 1.0)) == ["x#0", "x#1", "x#2", "y"]
    assert edit(f, {"x#1": lambda v, s: v + 100})(1.0) == out + 100
    names = []
    edit(f, {"x": lambda v, s: names.append(s.name) or v})(1.0)
    assert names == ["x#0", "x#1", "x#2"]
    assert edit(f, {"x#[02]": lambda v, s: 0 * v})(1.0) == 1


def test_inner_transformations_act_first():
    double = {"layer_0/mid": lambda v, s: 2 * v}
    want = 2 * (2 * X)
    np.testing.assert_array_equal(capture(edit(model, double), "layer_0/mid")(X)[1]["layer_0/mid"], want)
    out, values = edit(capture(model, "layer_0/mid"), double)(X)
    np.testing.assert_array_equal(values["layer_0/mid"], want)
    np.testing.assert_array_equal(out["out"], (want + 1).T)
    # The inner edit is first: (x + 1) * 2, not x * 2 + 1.
    both = edit(edit(model, {"layer_0/mid": lambda v, s: v + 1}), double)
    np.testing.assert_array_equal(both(X)["out"], ((2 * X + 1) * 2 + 1).T)
    nested = capture(capture(model, "out"), "layer_0/mid")(X)
    np.testing.assert_array_equal(nested[0][1]["out"], model(X)["out"])
    assert list(nested[1]) == ["layer_0/mid"]


def test_all_patterns_of_a_dict_apply_in_its_order():
    edits = {"layer_0/*": lambda v, s: v + 1, "*/mid": lambda v, s: v * 2}
    np.testing.assert_array_equal(capture(edit(model, edits), "layer_0/mid")(X)[1]["layer_0/mid"], (2 * X + 1) * 2)
    edits = dict(reversed(edits.items()))
    np.testing.assert_array_equal(capture(edit(model, edits), "layer_0/mid")(X)[1]["layer_0/mid"], 2 * X * 2 + 1)


def test_site_says_where_it_is():
    sites_seen = []
    edit(model, {"out": lambda v, s: sites_seen.append(s) or v})(X)
    (site,) = sites_seen
    assert (site.name, site.shape, site.dtype, site.loop) == ("out", (3, 2), jnp.float32, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s: v[0], r"site 'layer_0/mid'.*\(3,\).*expected \(2, 3\)"),
        (lambda v, s: v.astype(jnp.float16), "site 'layer_0/mid'.*float16.*float32"),
        (lambda v, s: None, "site 'layer_0/mid'.*structure"),
        (lambda v, s: "text", "site 'layer_0/mid'.*got a str"),
    ],
    ids=["shape", "dtype", "nothing", "no array"],
)
def test_an_edit_may_not_change_the_type(change, message):
    for run in (
        edit(model, {"layer_0/mid": change}),
        jax.jit(lambda x: edit(model, {"layer_0/mid": change})(x)["out"]),
    ):
        with pytest.raises(ValueError, match=message):
            run(X)


def test_errors_in_an_edit_name_the_site():
    with pytest.raises(ZeroDivisionError) as caught:
        edit(model, {"out": lambda v, s: 1 / 0})(X)
    assert "site 'out'" in caught.value.__notes__[0]


def test_python_scalars_are_taken_for_scalar_sites():
    f = lambda x: tap("s", jnp.sum(x).astype(jnp.bfloat16)) * 2  # noqa: E731
    assert edit(f, {"s": lambda v, s: 3.0})(X) == 6
    with pytest.raises(ValueError, match="site 's'"):
        edit(lambda n: tap("s", n), {"s": lambda v, s: 1.5})(jnp.int32(2))


def test_a_tapped_pytree_is_one_site():
    f = lambda x: tap("kv", {"k": x, "v": (x[0], 2)})["v"][0]  # noqa: E731
    values = capture(f, "kv")(X)[1]["kv"]
    np.testing.assert_array_equal(values["v"][0], X[0])
    assert values["v"][1] == 2
    seen = []
    changed = edit(f, {"kv": lambda t, s: seen.append(s) or {"k": t["k"], "v": (t["v"][0] + t["k"][1], 0)}})(X)
    np.testing.assert_array_equal(changed, X[0] + X[1])
    assert seen[0].shape == {"k": (2, 3), "v": ((3,), ())}
    assert sites(f, X)["kv"]["k"].shape == (2, 3)


def test_edits_close_over_traced_values_and_are_differentiated_through():
    arrays = jax.jit(lambda x: model(x)["out"])

    def loss(direction, x):
        return (edit(arrays, {"layer_1/mid": lambda v, s: v + direction})(x) ** 2).sum()

    def written_out(direction, x):
        return ((x * 2 + 1 + direction) ** 2).sum()

    direction = jnp.asarray([0.5, -1.0, 2.0])
    for argument in (0, 1):
        want = jax.grad(written_out, argument)(direction, X)
        np.testing.assert_allclose(jax.grad(loss, argument)(direction, X), want, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.grad(loss, argument))(direction, X), want, rtol=1e-6)


def test_the_gradient_at_a_site_is_that_of_a_zero_added_there():
    def loss(zero, x):
        return (edit(lambda x: model(x)["out"] ** 2, {"layer_1/mid": lambda v, s: v + zero})(x)).sum()

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros_like(X), X), 2 * (2 * X + 1), rtol=1e-6)


def test_calls_outside_jit_find_what_was_compiled_before():
    @jax.jit
    def f(x):
        return tap("x", x + 1)

    hooked = capture(f, "x")
    hooked(X)
    with compilations.counted() as names:
        hooked(X)
    assert not names


def test_only_what_is_asked_for_is_computed():
    def f(x):
        for k in range(6):
            x = tap(f"layer_{k}", jnp.tanh(x @ x))
        return x

    x = jnp.ones((8, 8))
    flops = lambda g: jax.jit(g).lower(x).compile().cost_analysis()["flops"]  # noqa: E731
    assert flops(lambda x: capture(f, "layer_1")(x)[1]) < 0.4 * flops(f)


def test_discarded_results_are_captured_wherever_they_are():
    def f(x):
        jax.jit(lambda x: tap("in a call", 2 * x))(x)
        jax.lax.scan(lambda c, v: (c, tap("in a loop", v)), 0.0, x)
        jax.jit(log)(x)
        return x

    def log(x):
        tap("without output", x)

    for g in (f, jax.jit(f), jax.grad(lambda x: jax.jit(f)(x).sum())):
        assert sorted(capture(g, "*")(X)[1]) == ["in a call", "in a loop", "without output"]


def test_hooks_work_on_methods_partials_and_callable_objects():
    class Model:
        def __init__(self):
            self.w = 3.0

        def __call__(self, x):
            return tap("x", x * self.w)

        method = __call__

    for f in (Model(), Model().method, functools.partial(Model.__call__, Model())):
        assert capture(f, "x")(2.0)[1]["x"] == 6
        assert jax.jit(edit(f, {"x": lambda v, s: v + 1}))(2.0) == 7
