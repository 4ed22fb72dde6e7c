"""Hooks in people's ordinary code: other transformations, modes and tools of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mishax_lite import absent, capture, edit, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])
WEIGHTS = jnp.asarray([0.5, 1.2, 2.0])


def both(hook):
    """A hooked function, outside jit and inside."""
    return hook, jax.jit(hook)


# Names of axes in an edit


def test_an_edit_under_vmap_may_name_its_axis():
    f = jax.vmap(lambda x: tap("v", x), axis_name="i")
    for run in both(edit(f, {"v": lambda v, site: v - lax.pmean(v, "i")})):
        np.testing.assert_allclose(run(jnp.arange(4.0)), np.arange(4.0) - 1.5)
    nested = jax.vmap(jax.vmap(lambda x: tap("v", x), axis_name="j"), in_axes=1, axis_name="i")
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(edit(nested, {"v": lambda v, s: lax.psum(v, "i")})(x), np.tile(x.sum(1), (3, 1)))
    np.testing.assert_allclose(edit(nested, {"v": lambda v, s: lax.psum(v, ("i", "j"))})(x), np.full((3, 2), 15.0))
    index = edit(nested, {"v": lambda v, s: 0 * v + 10 * lax.axis_index("i") + lax.axis_index("j")})
    np.testing.assert_array_equal(index(x), [[0, 1], [10, 11], [20, 21]])


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: lax.scan(lambda c, _: (tap("v", c), None), x, None, length=1)[0],
        jax.jit(lambda x: tap("v", x)),
        jax.checkpoint(lambda x: tap("v", x)),
        lambda x: lax.cond(x < 100, lambda x: tap("v", x), lambda x: x, x),
        lambda x: lax.while_loop(lambda c: c[1], lambda c: (tap("v", c[0]), False), (x, True))[0],
    ],
    ids=["scan", "jit", "checkpoint", "cond", "while"],
)
def test_an_edit_may_name_the_axis_of_a_vmap_around_a_construct(inner):
    run = edit(jax.vmap(inner, axis_name="i"), {"v": lambda v, site: v - lax.pmean(v, "i")})
    np.testing.assert_allclose(jax.jit(run)(jnp.arange(4.0)), np.arange(4.0) - 1.5)


def test_an_edit_may_name_an_axis_under_custom_rules_and_grad():
    double = jax.custom_jvp(lambda x: tap("v", 2 * x))
    double.defjvp(lambda primals, tangents: (double(*primals), 2 * tangents[0]))
    run = edit(jax.vmap(double, axis_name="i"), {"v": lambda v, site: v - lax.pmean(v, "i")})
    np.testing.assert_allclose(run(jnp.arange(4.0)), 2 * np.arange(4.0) - 3)
    mapped = jax.vmap(lambda x: tap("v", x) ** 2, axis_name="i")
    loss = lambda x: edit(mapped, {"v": lambda v, site: v - lax.pmean(v, "i")})(x).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(jnp.arange(4.0)), 2 * (np.arange(4.0) - 1.5))


def test_a_value_that_a_named_vmap_does_not_map():
    f = jax.vmap(lambda x: x + tap("v", jnp.float32(3.0)), axis_name="i")
    assert capture(f, "v")(X)[1]["v"].shape == ()
    for run in both(edit(f, {"v": lambda v, site: v - lax.pmean(v, "i")})):
        np.testing.assert_allclose(run(X), X)
    with pytest.raises(ValueError) as caught:
        edit(f, {"v": lambda v, site: v + lax.axis_index("i")})(X)
    assert any("same for all elements of a vmap (axis_name='i')" in note for note in caught.value.__notes__)


# Donated buffers

INCREMENT = jax.jit(lambda x: x + 1, donate_argnums=0)


def test_a_captured_value_outlives_its_donation():
    value = capture(lambda x: INCREMENT(tap("in", x * 2)), "in")(X)[1]["in"]
    np.testing.assert_allclose(value * 1, X * 2)
    # From inside a jitted function, under vmap, and before a construct that donates inside.
    inner = jax.jit(lambda x: tap("in", x))
    np.testing.assert_allclose(capture(lambda x: INCREMENT(inner(x * 2)), "in")(X)[1]["in"] * 1, X * 2)
    rows = jnp.stack([X, X])
    value = jax.vmap(capture(lambda x: INCREMENT(tap("in", x * 2)), "in"))(rows)[1]["in"]
    np.testing.assert_allclose(value * 1, rows * 2)
    outer = jax.custom_jvp(lambda x: INCREMENT(x))
    outer.defjvp(lambda primals, tangents: (outer(*primals), tangents[0]))
    np.testing.assert_allclose(capture(lambda x: outer(tap("in", x * 2)), "in")(X)[1]["in"] * 1, X * 2)


def test_arrays_of_the_caller_outlive_donation():
    patch, x = jnp.ones(3), X + 0
    np.testing.assert_allclose(edit(lambda x: INCREMENT(tap("in", x * 2)), {"in": lambda v, s: patch})(X), 2 * patch)
    inner = jax.jit(lambda x: tap("in", x))  # jit hands the same array through
    np.testing.assert_allclose(edit(lambda x: INCREMENT(inner(x)), {"in": lambda v, s: patch})(X), 2 * patch)
    out, values = capture(lambda x: INCREMENT(tap("in", x)), "in")(x)
    np.testing.assert_allclose(values["in"] + 1, out)
    # What was captured further in is needed further out.
    nested = edit(capture(lambda x: tap("out", INCREMENT(tap("in", x * 2))), "in"), {"out": lambda v, s: v * 0})
    np.testing.assert_allclose(nested(X)[1]["in"] * 1, X * 2)


def test_what_no_hook_touches_is_donated_still():
    x = X + 0
    capture(lambda x: tap("out", INCREMENT(x)), "out")(x)
    assert x.is_deleted()


# Modes of shardings


def test_an_edit_under_auto_axes_and_explicit_axes_sees_their_mesh():
    spec = PartitionSpec("d")
    for kind, wrap in (
        (AxisType.Explicit, lambda f: jax.sharding.auto_axes(f, out_sharding=spec)),
        (AxisType.Auto, lambda f: jax.sharding.explicit_axes(f, in_sharding=spec)),
    ):
        mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            y = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, spec))
            f = wrap(lambda v: tap("s", v * 2))
            for run in both(edit(f, {"s": lambda v, site: jnp.sin(v) + 1})):
                np.testing.assert_allclose(run(y), np.sin(2 * np.arange(8.0)) + 1, rtol=1e-5)
            scanned = wrap(lambda v: lax.scan(lambda c, _: (tap("s", c * 2), None), v, None, length=2)[0])
            for run in both(edit(scanned, {"s": lambda v, site: v + 1})):
                np.testing.assert_allclose(run(y), 4 * np.arange(8.0) + 3)
            np.testing.assert_allclose(capture(f, "s")(y)[1]["s"], 2 * np.arange(8.0))


def test_an_edit_runs_under_the_settings_around_the_tap():
    xla_metadata = pytest.importorskip("jax.experimental.xla_metadata")

    def f(x):
        with xla_metadata.set_xla_metadata(around="tap"):
            return tap("h", x)

    text = jax.jit(edit(f, {"h": lambda v, s: jnp.sin(v)})).lower(X).as_text()
    assert any("sine" in line and 'around = "tap"' in line for line in text.splitlines())


# Modes of running


def test_disabled_jit_changes_no_names_and_no_values():
    f = lambda x: lax.scan(lambda c, w: (tap("c", c * w), None), x, WEIGHTS)[0]  # noqa: E731
    g = jax.jit(lambda x: lax.cond(x[0] > 0, lambda x: tap("yes", x), lambda x: tap("no", x), lax.map(jnp.sin, f(x))))
    plain, moved = capture(g, "c")(X), edit(g, {"*": lambda v, s: v + 1})(X)
    with jax.disable_jit():
        assert {name: shape.shape for name, shape in sites(f, X).items()} == {"c": (3, 3)}
        for run in both(capture(g, "c")):
            for got, want in zip(jax.tree.leaves(run(X)), jax.tree.leaves(plain), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(edit(g, {"*": lambda v, s: v + 1})(X), moved, rtol=1e-6)
        mapped = jax.vmap(jax.grad(lambda x: f(x).sum()))
        assert capture(mapped, "c")(jnp.stack([X, X]))[1]["c"].shape == (3, 2, 3)


@pytest.mark.slow
def test_the_checker_of_leaks_finds_none():
    f = lambda x: lax.scan(lambda c, w: (tap("c", c * w), None), x, WEIGHTS)[0].sum()  # noqa: E731
    with jax.checking_leaks():
        assert list(sites(f, X)) == ["c"]
        for function in (f, jax.jit(f), jax.grad(f), lambda x: (f(x), "as it is")):
            for run in (capture(function, "c"), lambda x, g=function: edit(g, {"c": lambda v, s: v + x})(2 * x)):
                run(X)
                jax.jit(lambda x, run=run: jax.tree.leaves(run(x))[0])(X)


def test_hooks_move_nothing_to_the_device_that_the_function_does_not():
    scalar = jnp.zeros(())
    with jax.transfer_guard("disallow"):
        capture(lambda s, x: lax.scan(lambda c, w: (tap("c", c + w), None), s, x), "c")(scalar, X)
        edit(jax.vmap(lambda x: tap("h", -x)), {"h": lambda v, s: -v})(X)


def test_strict_settings():
    f = jax.vmap(lambda x: lax.scan(lambda c, v: (tap("h", c + v), tap("i", 3)), x[0], x)[0])
    rows = jnp.ones((2, 3))
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        values = capture(f, "*")(rows)[1]
        assert values["h"].shape == (3, 2) and values["i"].shape == (3,)
        np.testing.assert_allclose(edit(f, {"h": lambda v, s: v + 1})(rows), [7.0, 7.0])
        np.testing.assert_allclose(edit(f, {"i": lambda v, s: 4})(rows), [4.0, 4.0])
    with jax.enable_x64(True):
        assert capture(lambda: tap("x", 2.0), "x")()[1]["x"].dtype == jnp.float64
        assert sites(lambda x: tap("n", jnp.arange(3) * x), 2)["n"].dtype == jnp.int64


# What comes out


def test_a_captured_python_scalar_is_an_array():
    f = lambda x: (tap("s", 3.0), tap("t", (True, 2, 1j)), x)  # noqa: E731
    shapes = jax.tree.map(lambda v: (v.shape, v.dtype), sites(f, X))
    for run in both(capture(f, "*")):
        out, values = run(X)
        assert jax.tree.map(lambda v: (v.shape, v.dtype), values) == shapes
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((out, values)))
        assert values["s"] == 3 and values["t"] == (True, 2, 1j) and values["s"].weak_type
    # So are the function's outputs: constants, closed over or literal, of NumPy's too.
    constants = lambda x: (tap("x", x), jnp.float32(3), np.arange(2))  # noqa: E731
    for run in (capture(constants, "x"), edit(constants, {"x": lambda v, s: v})):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run(X)))


class Unregistered:
    """No pytree."""

    def __init__(self, y):
        self.y = y


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda y: Unregistered(y), r"class Unregistered.*output\.y,"),
        (lambda y: (1, {"a": Unregistered([0, y])}), r"class Unregistered.*output\[1\]\['a'\]\.y\[1\],"),
        (lambda y: lambda z: y + z, r"class function.*output \(its variable 'y'\),"),
    ],
    ids=["object", "object in a pytree", "closure"],
)
def test_an_output_that_hides_traced_values_is_refused_by_name(make, place):
    f = lambda x: make(tap("y", x * 2))  # noqa: E731
    assert sites(f, X)["y"].shape == (3,)
    for hook in (capture(f, "y"), edit(f, {"y": lambda v, s: v}), lambda x: jax.jit(capture(f, "y"))(x)):
        with pytest.raises(ValueError, match=place):
            hook(X)


def test_an_output_without_traced_values_comes_back_as_it_is():
    thing, text = Unregistered(X), np.asarray(["a", "b"])
    struct = jax.ShapeDtypeStruct((2,), jnp.float32)
    out, _ = capture(lambda x: (tap("y", x), thing, text, struct, str), "y")(X)
    assert out[1] is thing and out[2] is text and out[3] is struct and out[4] is str
    # A tracer of somebody further out may stay in it.
    assert jax.jit(lambda x: capture(lambda y: (tap("y", y), Unregistered(x)), "y")(x * 2)[0][1].y)(X).shape == (3,)


# Programs that no rule can rebuild


def _kernel(x):
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x_ref, o_ref):
        o_ref[...] = tap("inside", x_ref[...] + 1)

    return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


UNREACHABLE = {
    "reduce": lambda x: lax.reduce(x, 0.0, lambda a, b: tap("inside", a + b), (0,)),
    "reduce in jit": jax.jit(lambda x: lax.reduce(x, 0.0, lambda a, b: tap("inside", a + b), (0,))),
    "reduce_window": lambda x: lax.reduce_window(x, 0.0, lambda a, b: tap("inside", a + b), (2,), (1,), "VALID"),
    "scatter": lambda x: x.at[jnp.array([0, 2])].apply(lambda v: tap("inside", 3 * v)),
    "linear_solve": lambda x: lax.custom_linear_solve(
        lambda v: tap("inside", 2 * v), x, lambda _, b: tap("inside", b / 2), symmetric=True
    ),
    "kernel": _kernel,
}
# JAX runs it as ordinary equations, whose taps are sites, until 0.11, and as an object since.
ROOT = lambda x: lax.custom_root(  # noqa: E731
    lambda y: tap("inside", y**2 - x**2),
    jnp.abs(x) + 1,
    lambda f, start: lax.fori_loop(0, 9, lambda i, y: y - f(y) / (2 * y), start),
    lambda g, y: y / g(jnp.ones_like(y)),
)


@pytest.mark.parametrize("name", UNREACHABLE)
def test_taps_that_nobody_can_reach_are_not_in_the_way(name):
    f = lambda x: tap("out", jnp.asarray(UNREACHABLE[name](x)))  # noqa: E731
    want = f(X)
    assert list(sites(f, X)) == ["out"]
    for run in (*both(capture(f, "out")), *both(capture(f, "*"))):
        out, values = run(X)
        assert list(values) == ["out"]
        np.testing.assert_allclose(values["out"], want, rtol=1e-6)
        np.testing.assert_allclose(out, want, rtol=1e-6)
    for run in both(edit(f, {"out": lambda v, s: v + 1})):
        np.testing.assert_allclose(run(X), want + 1, rtol=1e-6)
    for hook in (capture(f, "inside"), edit(f, {"inside": lambda v, s: v}), edit(f, {"*": lambda v, s: v})):
        with pytest.raises(ValueError, match=r"site 'inside.*is in the primitive '.*cannot rebuild"):
            hook(X)


def test_taps_that_nobody_can_reach_stay_for_the_hook_that_names_them():
    f = lambda x: tap("out", lax.reduce(x, 0.0, lambda a, b: tap("inside", a + b), (0,)))  # noqa: E731
    nested = edit(capture(f, "out"), {"inside": lambda v, s: v})
    with pytest.raises(ValueError, match=r"site 'inside'.*the primitive 'reduce'"):
        nested(X)
    deep = lambda x: lax.scan(lambda c, v: (f(x * v), None), 0.0, x)[0]  # noqa: E731
    gradient = jax.grad(lambda x: edit(jax.vmap(deep), {"out": lambda v, s: 2 * v})(x).sum())(jnp.stack([X, X]))
    want = jax.grad(lambda x: 2 * x[2] * x.sum())(X)
    np.testing.assert_allclose(gradient, jnp.stack([want, want]), rtol=1e-5)


def test_the_gradient_through_a_root_finder_is_that_of_its_rule():
    f = lambda x: tap("out", ROOT(x)).sum()  # noqa: E731
    for run in both(capture(jax.grad(f), "out")):
        gradient, values = run(X)
        np.testing.assert_allclose(values["out"], jnp.abs(X), rtol=1e-5)
        np.testing.assert_allclose(gradient, jnp.sign(X), rtol=1e-5)
    if "inside" in sites(f, X):
        for run in both(edit(f, {"inside": lambda v, s: v - 1})):
            np.testing.assert_allclose(run(X), jnp.sqrt(X**2 + 1).sum(), rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"site 'inside.*the primitive 'CustomRoot'"):
            edit(f, {"inside": lambda v, s: v - 1})(X)


# Values that are computed while tracing


def test_taps_of_what_is_computed_at_compile_time_are_sites():
    def f(x):
        with jax.ensure_compile_time_eval():
            steps = tap("steps", jnp.arange(3.0))
            tap("number", int(steps.sum()))
            absent("elsewhere", "it is elsewhere")
            assert steps[1] == 1  # concrete, as the function relies on
        return tap("x", x * steps)

    for g, shape in ((f, ()), (jax.jit(f), ()), (lambda x: lax.map(f, jnp.stack([x, x])), (2,))):
        assert {name: s.shape for name, s in sites(g, X).items()} == {
            "steps": (*shape, 3),
            "number": shape,
            "x": (*shape, 3),
        }
        for run in both(capture(g, "*")):
            out, values = run(X)
            np.testing.assert_array_equal(values["steps"], np.broadcast_to(np.arange(3.0), (*shape, 3)))
            np.testing.assert_array_equal(values["number"], np.broadcast_to(3, shape))
            np.testing.assert_allclose(out, values["x"])
        for run in both(edit(g, {"x": lambda v, s: v + 1})):
            np.testing.assert_allclose(run(X), g(X) + 1, rtol=1e-6)
        with pytest.raises(ValueError, match=r"site 'steps'.*is in jax\.ensure_compile_time_eval"):
            edit(g, {"steps": lambda v, s: v})(X)
        with pytest.raises(ValueError, match="'elsewhere': it is elsewhere"):
            capture(g, "elsewhere")(X)
    assert not jax.make_jaxpr(capture(f, "steps"))(X).effects


# Values that differ between more devices


@pytest.mark.parametrize("around", ["nothing", "scan", "cond", "jit"])
def test_an_edit_in_shard_map_may_not_differ_along_more_mesh_axes(around):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    inner = {
        "nothing": lambda x: tap("s", x * 2),
        "scan": lambda x: lax.scan(lambda c, _: (tap("s", c * 2), None), x, None, length=1)[0],
        "cond": lambda x: lax.cond(x[0] > -1, lambda x: tap("s", x * 2), lambda x: x, x),
        "jit": jax.jit(lambda x: tap("s", x * 2)),
    }[around]
    f = jax.shard_map(inner, mesh=mesh, in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a"))
    x = jnp.arange(4.0)
    index = {"s": lambda v, s: v + lax.axis_index("b")}
    for run in both(edit(f, index)):
        with pytest.raises(ValueError, match=r"'s': got a value that differs .* mesh axis 'b'.*pmean"):
            run(x)
    reduced = edit(f, {"s": lambda v, s: v + lax.pmax(lax.axis_index("b"), "b")})
    np.testing.assert_array_equal(reduced(x), 2 * x + 1)
    own = edit(f, {"s": lambda v, s: v + lax.axis_index("a")})
    np.testing.assert_array_equal(jax.jit(own)(x), 2 * x + jnp.asarray([0, 0, 1, 1]))
