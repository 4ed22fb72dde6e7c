"""`Edits`: joined, bound to a text, given as an argument; and edits that read other sites."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mishax_lite
from mishax_lite import Edits, tap
from tests import compilations

X = jnp.arange(6.0).reshape(2, 3)
POSITIONS = jnp.array([[-1, 0, 1], [0, 1, 2]])


def double(value, site):
    return 2 * value


def increment(value, site):
    return value + 1


def model(x):
    return tap("b", 10 * tap("a", x) + 1)


def reader(x, positions=POSITIONS):
    """A model that says which text it reads."""
    return model(x)


reader.text_of = lambda x, positions=POSITIONS: (x, positions)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Add:
    """Adds a number at positions above 0, once bound."""

    number: jax.Array

    def __call__(self, value, site):
        raise AssertionError("must be bound")

    def bind(self, tokens, positions):
        return jax.tree_util.Partial(
            lambda number, mask, value, site: value + number * mask, self.number, positions > 0
        )


def late(positions):
    """A function of positions that returns edits."""
    return {"a": lambda value, site: value + (positions > 0)}


def test_two_edits_of_one_site_apply_in_the_order_in_which_they_are_joined():
    a, b = Edits.of({"a": double}), Edits.of({"*": increment})
    np.testing.assert_array_equal(mishax_lite.edit(model, a | b)(X), 10 * (2 * X + 1) + 1 + 1)
    np.testing.assert_array_equal(mishax_lite.edit(model, b | a)(X), 10 * (2 * (X + 1)) + 1 + 1)
    assert (a | b).patterns == ("a", "*")


@pytest.mark.parametrize("first", [{"a": double}, Edits.of({"a": double})])
@pytest.mark.parametrize("second", [{"a": increment}, Edits.of({"a": increment}), lambda _: {"a": increment}, None])
def test_dicts_edits_functions_of_positions_and_none_join(first, second):
    if isinstance(second, Edits) or isinstance(first, Edits):  # two dicts join as dicts do
        want = 2 * X if second is None else 2 * X + 1
        np.testing.assert_array_equal(mishax_lite.edit(reader, first | second)(X), 10 * want + 1)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (3, "edits are a dict from patterns to functions .* got a int: 3"),
        ([("a", double)], "got a list"),
        ({"a": 3}, "expected a function for pattern 'a', got int"),
        ({3: double}, "a pattern must be a string; got int: 3"),
    ],
)
def test_what_is_no_edits_is_refused(edits, message):
    for take in (Edits.of, functools.partial(mishax_lite.edit, model), Edits().__or__):
        with pytest.raises(ValueError, match=message):
            take(edits)


def test_a_hundred_numbers_compile_one_program():
    run = jax.jit(lambda edits, x: mishax_lite.edit(reader, edits)(x))
    edits = lambda k: {"b": double} | Edits.of({"a": Add(jnp.float32(k))})  # noqa: E731
    with compilations.counted() as names:
        outs = [float(run(edits(k), X)[0, 2]) for k in range(100)]
    assert names.count("<lambda>") == 1
    assert outs == [2 * (10 * (2 + k) + 1) for k in range(100)]


def test_the_arrays_of_edits_are_leaves_and_functions_are_static():
    edits = Edits.of({"a": Add(jnp.float32(3)), "b": double, "c": jax.tree_util.Partial(double, jnp.ones(2))})
    leaves, tree = jax.tree.flatten(edits)
    assert [np.shape(leaf) for leaf in leaves] == [(), (2,)]
    again = jax.tree.unflatten(tree, leaves)
    assert again.patterns == edits.patterns
    same = Edits.of({"a": Add(jnp.float32(4)), "b": double, "c": jax.tree_util.Partial(double, jnp.ones(2))})
    assert jax.tree.structure(same) == tree


@pytest.mark.parametrize(
    "edits", [Edits.of({"a": Add(jnp.float32(1))}), Edits.of(late), late], ids=["bind", "of", "bare"]
)
@pytest.mark.parametrize(
    "function",
    [
        reader,
        jax.jit(reader),
        functools.partial(reader, positions=POSITIONS),
        functools.partial(jax.jit(reader), X),
        jax.jit(functools.partial(reader, positions=POSITIONS)),
        mishax_lite.edit(reader, {"b": lambda value, site: value}),
    ],
    ids=["plain", "jit", "partial", "partial-of-jit", "jit-of-partial", "edited"],
)
def test_unbound_edits_are_bound_where_the_function_says_which_text_it_reads(function, edits):
    args = () if isinstance(function, functools.partial) and function.args else (X,)
    out = mishax_lite.edit(function, edits)(*args)
    np.testing.assert_array_equal(out, 10 * (X + (POSITIONS > 0)) + 1)


def test_unbound_edits_of_a_function_that_does_not_say_its_text_are_an_error():
    edits = Edits.of({"a": Add(jnp.float32(1))})
    with pytest.raises(ValueError, match=r"Edits\(a: Add\) depends on the text, and <lambda> does not say which"):
        mishax_lite.edit(lambda x: reader(x), edits)(X)
    with pytest.raises(ValueError, match=r"must be bound to a text first: edits.bind\(tokens, positions\)"):
        edits.functions("a")
    bound = edits.bind(X, POSITIONS)
    assert edits.needs_text and not bound.needs_text and bound.bind(X, POSITIONS) is bound
    np.testing.assert_array_equal(mishax_lite.edit(lambda x: reader(x), bound)(X), reader(X + (POSITIONS > 0)))


def test_texts_under_a_vmap_and_functions_that_return_no_edits_are_refused():
    with pytest.raises(
        ValueError, match=r"tokens and positions \[B, T\], got \[4, 2, 3\] and \[4, 2, 3\]; where a vmap"
    ):
        mishax_lite.edit(jax.vmap(reader), late)(jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3)))
    inside = jax.vmap(mishax_lite.edit(reader, late))(jnp.stack([X, X]))
    np.testing.assert_array_equal(inside[1], reader(X + (POSITIONS > 0)))
    with pytest.raises(ValueError, match="<lambda>, a function of positions, must return edits; got a int"):
        mishax_lite.edit(reader, lambda positions: 3)(X)
    with pytest.raises(TypeError) as error:
        mishax_lite.edit(reader, lambda value, site: value)(X)
    assert "one of positions [B, T] that returns edits" in error.value.__notes__[0]


def test_a_model_with_hooks_of_its_own_asks_for_the_functions_of_a_site():
    edits = Edits.of({"a": double}) | {"*": increment} | late
    functions = edits.bind(X, POSITIONS).functions("a")
    value = X
    for function in functions:
        value = function(value, None)
    np.testing.assert_array_equal(value, 2 * X + 1 + (POSITIONS > 0))
    assert len(edits.bind(X, POSITIONS).functions("other")) == 1


def add_a(value, site):
    return value + site.read["a"]


add_a.reads = ("a",)


def scanned(x):
    step = lambda x, _: (tap("b", 10 * tap("a", x) + 1), None)  # noqa: E731
    return jax.lax.scan(step, x, None, length=2)[0]


def remat(x):
    return jax.checkpoint(model)(x)


@pytest.mark.parametrize("function", [model, jax.jit(model), remat, jax.jit(lambda x: jax.jit(model)(x))])
def test_an_edit_reads_an_earlier_site_as_edits_left_it(function):
    np.testing.assert_array_equal(mishax_lite.edit(function, {"b": add_a})(X), 11 * X + 1)
    np.testing.assert_array_equal(mishax_lite.edit(function, {"b": add_a, "a": double})(X), 22 * X + 1)


def test_reading_in_a_scan_from_around_it_and_through_derivatives():
    np.testing.assert_array_equal(mishax_lite.edit(scanned, {"b": add_a})(X), 11 * (11 * X + 1) + 1)

    def around(x):
        x = tap("a", x)
        return jax.lax.scan(lambda carry, _: (tap("b", 10 * carry), None), x, None, length=2)[0]

    np.testing.assert_array_equal(mishax_lite.edit(around, {"b": add_a})(X), 10 * (11 * X) + X)
    for function in (model, remat):
        gradient = jax.grad(lambda x, f=function: mishax_lite.edit(f, {"b": add_a})(x).sum())(X)
        np.testing.assert_array_equal(gradient, jnp.full_like(X, 11))


def in_two_programs(x):
    return tap("b", 10 * jax.jit(lambda x: tap("a", x))(x) + 1)


@pytest.mark.parametrize(
    ("function", "edits", "message"),
    [
        (in_two_programs, {"b": add_a}, "site 'b' reads site 'a', whose value cannot be carried to it"),
        (
            lambda x: scanned(x) + tap("b", x),
            {"b#1": add_a},
            "site 'b#1' reads site 'a', whose value cannot be carried",
        ),
        (lambda x: tap("a", tap("b", x)), {"b": add_a}, "reads site 'a', which comes after it"),
        (jax.vmap(model), {"b": add_a}, "one of them is in a vmap inside the function"),
        (lambda x: tap("b", x), {"b": add_a}, "no site matches 'a'"),
        (lambda x: custom(x), {"b": add_a}, "whose value cannot be carried to it"),
    ],
    ids=["jit", "scan", "later", "vmap", "absent", "rule"],
)
def test_a_site_whose_value_is_not_visible_cannot_be_read(function, edits, message):
    with pytest.raises(ValueError, match=message):
        mishax_lite.edit(function, edits)(X)
    np.testing.assert_array_equal(jax.vmap(mishax_lite.edit(model, {"b": add_a}))(X), 11 * X + 1)


@pytest.mark.parametrize("check", [True, False])
def test_in_a_shard_map_an_edit_reads_what_its_device_has(check):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    spread = lambda f: jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check)  # noqa: E731
    np.testing.assert_array_equal(mishax_lite.edit(spread(model), {"b": add_a})(X), 11 * X + 1)
    outside = lambda x: spread(lambda x: tap("b", x))(tap("a", x))  # noqa: E731
    with pytest.raises(ValueError, match="which is outside of the shard_map around the edit"):
        mishax_lite.edit(outside, {"b": add_a})(X)


@jax.custom_jvp
def custom(x):
    return model(x)


custom.defjvp(lambda primals, tangents: jax.jvp(model, primals, tangents))
