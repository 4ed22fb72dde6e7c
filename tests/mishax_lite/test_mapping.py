"""Hooks with vmap and shard_map, inside of them and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mishax_lite import capture, edit, sites, tap

X = jnp.arange(24.0).reshape(2, 3, 4)


def f(x, fixed=None):
    fixed = jnp.ones(2) if fixed is None else fixed
    total, _ = lax.scan(lambda c, v: (c + v, tap("loop", c + v)), 0.0, x)
    return tap("sum", total) + tap("fixed", fixed).sum(), tap("x", x * 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_captured_axes_are_loops_then_mapped_axes_then_the_values_own(axis):
    x = X[0]
    values = capture(jax.vmap(f, in_axes=axis), "*")(x)[1]
    rows = jnp.moveaxis(x, axis, 0)
    size, n = rows.shape
    assert {k: v.shape for k, v in values.items()} == {"loop": (n, size), "sum": (size,), "fixed": (2,), "x": (size, n)}
    np.testing.assert_array_equal(values["x"], 2 * rows)
    np.testing.assert_allclose(values["loop"], jnp.cumsum(rows, 1).T, rtol=1e-6)


def test_nested_vmaps_are_outermost_first():
    g = jax.vmap(jax.vmap(f, in_axes=1), in_axes=2)  # mapped: the 4, then the 3; own: 2
    values = capture(g, "*")(X)[1]
    assert values["x"].shape == (4, 3, 2) and values["sum"].shape == (4, 3) and values["loop"].shape == (2, 4, 3)
    np.testing.assert_array_equal(values["x"], 2 * X.transpose(2, 1, 0))
    np.testing.assert_array_equal(values["sum"], X.sum(0).T)


def test_a_value_mapped_by_one_vmap_only_has_one_axis():
    g = jax.vmap(jax.vmap(lambda x, y: tap("x", x) + tap("y", y), in_axes=(None, 0)), in_axes=(0, None))
    values = capture(g, "*")(jnp.arange(2.0), jnp.arange(3.0))[1]
    assert values["x"].shape == (2,) and values["y"].shape == (3,)


def test_an_edit_sees_the_value_without_mapped_axes():
    seen = []
    g = jax.vmap(jax.vmap(f, in_axes=1), in_axes=2)
    add = jnp.asarray([1.0, 2.0])

    def change(v, s):
        seen.append((v.shape, s.shape))
        return v[::-1] + add

    out = edit(g, {"x": change})(X)[1]
    assert seen == [((2,), (2,))]
    np.testing.assert_array_equal(out, g(X[::-1])[1] + add)


def test_vmap_of_hooks_agrees_with_hooks_of_vmap():
    move = {"loop": lambda v, s: v + s.loop[0], "x": lambda v, s: v - v.mean()}
    rows = X[0]
    inside, outside = jax.vmap(edit(f, move))(rows), edit(jax.vmap(f), move)(rows)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(capture(f, "x"))(rows)[1]["x"], capture(jax.vmap(f), "x")(rows)[1]["x"])


def test_vmapped_pytrees_with_unmapped_leaves():
    g = jax.vmap(lambda x: tap("t", {"mapped": x, "fixed": jnp.ones(2)})["mapped"], in_axes=1)
    values = capture(g, "t")(X[0])[1]["t"]
    assert values["mapped"].shape == (4, 3) and values["fixed"].shape == (2,)
    np.testing.assert_array_equal(edit(g, {"t": lambda t, s: {**t, "mapped": t["mapped"] * 2}})(X[0]), 2 * X[0].T)
    with pytest.raises(ValueError) as caught:
        edit(g, {"t": lambda t, s: {**t, "fixed": t["mapped"][:2]}})(X[0])
    assert any("site 't'" in note for note in caught.value.__notes__)


def test_vmap_of_a_branch_on_mapped_values():
    g = jax.vmap(lambda x: lax.cond(x > 1, lambda x: tap("big", 10 * x), lambda x: tap("small", x), x))
    np.testing.assert_array_equal(edit(g, {"big": lambda v, s: v + 1})(jnp.arange(4.0)), [0, 1, 21, 31])
    h = jax.vmap(lambda x: lax.while_loop(lambda c: c < 5, lambda c: tap("w", c + 2), x))
    np.testing.assert_array_equal(edit(h, {"w": lambda v, s: v + 1})(jnp.arange(4.0)), [6, 7, 5, 6])


def test_vmap_of_grad_of_remat():
    g = jax.vmap(jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(tap("h", x * 2)).sum())(x)), in_axes=1)
    np.testing.assert_array_equal(capture(g, "h")(X[0])[1]["h"], 2 * X[0].T)
    move = {"h": lambda v, s: v + 1}
    np.testing.assert_allclose(edit(g, move)(X[0]), 2 * jnp.cos(2 * X[0].T + 1), rtol=1e-5)


MESH = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))


def shards(x):
    scaled = tap("shard", x * (lax.axis_index("b") + 1))
    whole = tap("whole", lax.psum(scaled, "a"))
    return whole, tap("after", scaled + 1)


SHARDED = jax.shard_map(
    shards, mesh=MESH, in_specs=PartitionSpec("a"), out_specs=(PartitionSpec(None, "b"), PartitionSpec("a", "b"))
)


def test_shard_map_captures_with_a_leading_axis_per_mesh_axis():
    x = jnp.arange(8.0).reshape(4, 2)
    shapes = {name: s.shape for name, s in sites(SHARDED, x).items()}
    assert shapes == {"shard": (4, 2, 1, 2), "whole": (4, 2, 1, 2), "after": (4, 2, 1, 2)}
    for run in (capture(SHARDED, "*"), jax.jit(capture(SHARDED, "*"))):
        values = run(x)[1]
        np.testing.assert_array_equal(values["shard"][:, 0, 0], x)
        np.testing.assert_array_equal(values["shard"][:, 1, 0], 2 * x)
        np.testing.assert_array_equal(values["whole"][3, 1, 0], 2 * x.sum(0))


def test_an_edit_in_shard_map_sees_the_local_shard():
    x, seen = jnp.arange(8.0).reshape(4, 2), []

    def change(v, s):
        seen.append(s.shape)
        return jnp.ones_like(v) * x[0, 1] + lax.axis_index("a")

    whole, _ = jax.jit(edit(SHARDED, {"shard": change}))(x)
    np.testing.assert_array_equal(whole, jnp.full((1, 4), 4 + 0 + 1 + 2 + 3))
    assert seen == [(1, 2)]
    zeros = edit(SHARDED, {"shard": lambda v, s: jnp.zeros(v.shape), "whole": lambda v, s: v + 1})(x)
    np.testing.assert_array_equal(zeros[0], jnp.ones((1, 4)))


def test_shard_map_with_grad_scan_and_closed_over_tracers():
    def body(x):
        return lax.psum(lax.scan(lambda c, v: (tap("c", jnp.sin(c + v)), None), x[0] * 0, x)[0].sum(), "a")

    g = jax.shard_map(body, mesh=MESH, in_specs=PartitionSpec("a"), out_specs=PartitionSpec())
    x = jnp.arange(24.0).reshape(8, 3) / 10

    def loss(eps):
        return edit(g, {"c": lambda v, s: v + eps * (s.loop[0] == 1)})(x)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), 12.0, rtol=1e-5)
    assert capture(jax.jit(jax.grad(g)), "c")(x)[1]["c"].shape == (4, 2, 2, 3)


def test_shard_map_over_some_axes_only():
    g = jax.shard_map(
        lambda x: tap("x", x * 2),
        mesh=MESH,
        in_specs=PartitionSpec("b"),
        out_specs=PartitionSpec("b"),
        axis_names={"b"},
    )
    x = jnp.arange(8.0).reshape(4, 2)
    values = jax.jit(capture(g, "x"))(x)[1]["x"]
    np.testing.assert_array_equal(values, 2 * x.reshape(2, 2, 2))
    np.testing.assert_array_equal(jax.jit(edit(g, {"x": lambda v, s: v + 1}))(x), 2 * x + 1)


def test_explicit_shardings_stay_part_of_the_type():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    f = lambda x: lax.scan(lambda c, _: (tap("z", c * 2), None), x, None, length=2)[0]  # noqa: E731
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("d")))
        stacked = jax.jit(capture(f, "z"))(x)[1]["z"]
        assert jax.typeof(stacked).sharding.spec == PartitionSpec(None, "d", None)
        zeros = jax.jit(edit(f, {"z": lambda v, s: jnp.zeros(v.shape)}))(x)
        assert jax.typeof(zeros).sharding.spec == PartitionSpec("d", None)
