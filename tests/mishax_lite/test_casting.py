"""Edits of a wider float than their site's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import Edits, edit, tap
from mishax_lite.casting import narrowed


@pytest.mark.parametrize(
    ("site", "result", "dtype"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float32", "float64", "float32"),
        ("bfloat16", "float64", "bfloat16"),
        ("float32", "float32", "float32"),
        ("bfloat16", "float16", "float16"),  # neither is the wider one
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "int32", "int32"),
    ],
)
def test_a_wider_float_is_rounded_to_the_sites_dtype_and_nothing_else_is(site, result, dtype):
    with jax.enable_x64(True):
        edits = Edits.of({"s": lambda value, site: value.astype(result) + jnp.asarray(1, result)})
        (cast,) = narrowed(edits).functions("s")
        assert cast(jnp.zeros(3, site), None).dtype == dtype


def test_numbers_and_texts_are_left_to_the_edit():
    for value in (1.5, "text", np.float64(2)):
        (cast,) = narrowed(Edits.of({"s": lambda *_, value=value: value})).functions("s")
        assert cast(jnp.zeros(3), None) == value


def test_a_narrowed_edit_reads_what_it_read_before():
    add = lambda value, site: value + site.read["a"]  # noqa: E731
    add.reads = ("a",)
    model = lambda x: tap("b", tap("a", x) * 2)  # noqa: E731
    assert edit(model, narrowed(Edits.of({"b": add})))(jnp.float32(2)) == 6
