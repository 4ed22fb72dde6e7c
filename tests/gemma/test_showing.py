"""Models, caches and generated texts print as one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
from gemma.cache import empty
from gemma.model import Model, in_short, param_shapes
from gemma.sampling import Generation

TINY = "Model(gemma2-tiny: 6 layers, 3.2M parameters, float32)"


def test_a_model_is_one_line(tiny):
    assert repr(tiny) == str(tiny) == TINY
    assert repr(tiny.tokenizer) == "Tokenizer(4,096 pieces)"
    shapes = Model(param_shapes(gemma.config("gemma3-270m")), gemma.config("gemma3-270m"))
    assert repr(shapes) == "Model(gemma3-270m: 18 layers, 268M parameters, float32)"
    assert repr(dataclasses.replace(tiny, dtype=jnp.bfloat16)).endswith(", bfloat16)")


def test_under_transformations_and_without_arrays(tiny):
    seen = []
    look = lambda model: seen.append(repr(model)) or 0.0  # noqa: E731
    jax.jit(look)(tiny)
    jax.eval_shape(lambda model: look(model), tiny)  # not the trace that jit has kept
    assert seen == [TINY] * 2
    bare = "Model(gemma2-tiny: 6 layers, float32)"
    assert repr(jax.tree.map(lambda leaf: None, tiny)) == repr(jax.tree.map(lambda leaf: leaf.ndim, tiny)) == bare
    leaves, structure = jax.tree.flatten(tiny)
    assert jax.tree.unflatten(structure, leaves) is not None and "\n" not in repr(structure)


def test_a_cache_and_a_generation_are_one_line(tiny):
    cache = empty(tiny, 2, 64)
    line = "Cache(2 sequences, 6 layers, room for 64 tokens)"
    seen = []
    jax.jit(lambda c: seen.append(repr(c)))(cache)
    assert [repr(cache)] + seen == [line] * 2
    assert repr(jax.tree.map(lambda leaf: None, cache)) == "Cache(6 layers, room for 64 tokens)"
    texts = [" and he said" * 50, " the sea"]
    assert repr(Generation(np.zeros((2, 40), np.int32), texts)) == (
        f"Generation(2 texts of at most 40 tokens: '{texts[0][:40]}...')"
    )
    assert repr(Generation(np.zeros((1, 40), np.int32), None)) == "Generation(1 text of at most 40 tokens)"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (192, "192"), (999, "999"), (1000, "1.0k"), (999_499, "999k"), (999_950, "1.0M"), (3_224_256, "3.2M"),
        (268_098_176, "268M"), (2_614_341_888, "2.6B"), (27_227_128_320, "27B"),
    ],
)  # fmt: skip
def test_numbers_of_parameters_as_names_of_models_have_them(number, text):
    assert in_short(number) == text


def test_bytes_of_a_character(tiny):
    ids = tiny.tokenizer.encode("\U0001f469", add_bos=False)
    assert bytes(b for b in map(tiny.tokenizer.byte, ids) if b is not None).decode() == "\U0001f469"
    assert tiny.tokenizer.byte(tiny.tokenizer.bos) is None
