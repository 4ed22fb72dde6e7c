"""`sae.patch_grid` against one patch at a time, and what it costs."""

import dataclasses
import doctest
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import patching
from tests import compilations
from tests.sae.models import lettered

CLEAN, CORRUPT = "the sea", "the tea"


@pytest.fixture(scope="module")
def model():
    return lettered.model()


def score(logits):
    return logits[-1, 3] - logits[-1, 5]


def one_by_one(model, clean, corrupt, sites, positions):
    """The same by a run of its own for each patch."""
    values, grid = model.run(clean, capture=sites).values, np.zeros((len(sites), len(positions)))
    for i, site in enumerate(sites):
        for j, position in enumerate(positions):
            put = lambda value, _, s=site, p=position: value.at[:, p].set(values[s][:, p])  # noqa: E731
            grid[i, j] = score(np.asarray(model.run(corrupt, edits={site: put}).logits[0]))
    return grid


def test_the_grid_is_one_patch_at_a_time(model):
    sites = ["blocks/0/attention/mix", "blocks/1/attention/mix"]
    grid = sae.patch_grid(model, CLEAN, CORRUPT, score, "z", [5, 1, 7])
    assert grid.dtype == np.float32 and grid.shape == (2, 3)
    np.testing.assert_allclose(grid, one_by_one(model, CLEAN, CORRUPT, sites, [5, 1, 7]), atol=1e-5)
    assert np.ptp(grid) > 1e-3


def test_batches_do_not_show(model, monkeypatch):
    whole = sae.patch_grid(model, CLEAN, CORRUPT, score, ["embed", "blocks/*/mlp"])
    monkeypatch.setattr(patching, "TOKENS", 40)  # four patches at a time, of 27
    assert whole.shape == (3, 9)
    other = sae.patch_grid(model, CLEAN, CORRUPT, lambda logits: score(logits), ["embed", "blocks/*/mlp"])
    np.testing.assert_allclose(other, whole, atol=1e-5)


def test_a_whole_patch_of_the_last_position_of_the_stream_gives_the_clean_score(model):
    grid = sae.patch_grid(model, CLEAN, CORRUPT, score, "blocks/1", 8)
    np.testing.assert_allclose(grid, [[score(model.run(CLEAN).logits[0])]], atol=1e-5)


def test_one_program_serves_all_patches_and_the_next_texts(model):
    model.run(CLEAN)  # the compiler's options are found out
    with compilations.counted() as names:
        sae.patch_grid(model, CLEAN, CORRUPT, score, ["embed", "z"])
    assert len(names) == 1, names
    with compilations.counted() as names:
        sae.patch_grid(model, "two sea", "ten sea", score, ["embed", "z"])
    assert names == []


def test_a_score_may_have_numbers_and_axes_of_its_own(model):
    by_id = jax.tree_util.Partial(lambda ids, logits: logits[-1, ids], jnp.array([3, 5]))
    grid = sae.patch_grid(model, CLEAN, CORRUPT, by_id, "z")
    want = sae.patch_grid(model, CLEAN, CORRUPT, score, "z")
    assert grid.shape == (*want.shape, 2)
    np.testing.assert_allclose(grid[..., 0] - grid[..., 1], want, atol=1e-5)


@pytest.mark.parametrize("most", [2048, 40, 9])
def test_it_takes_few_more_forward_passes_than_patches(model, monkeypatch, most):
    """At most 1.2 times as many, counted where the model is computed."""
    monkeypatch.setattr(patching, "TOKENS", most)
    sequences = []

    def counting(params, tokens):
        jax.debug.callback(lambda tokens: sequences.append(len(tokens)), tokens)
        return model.forward(params, tokens)

    counted = dataclasses.replace(model, forward=counting)
    grid = sae.patch_grid(counted, CLEAN, CORRUPT, score, ["embed", "blocks/*/mlp", "z"])
    jax.effects_barrier()
    patches = grid.size
    assert patches == 5 * 9 and patches + 1 <= sum(sequences) <= 1.2 * patches


@pytest.mark.parametrize("patches", [1, 7, 54, 162, 163, 1000])
@pytest.mark.parametrize("length", [2, 9, 300, 5000])
def test_batches_are_bounded_and_nearly_full(patches, length):
    size = patching.together(patches, length, 262_144)
    assert size == 1 or (size * length <= 2048 and size * length * 262_144 <= 2**27)
    assert -(-patches // size) * size <= 1.2 * patches or size * -(-patches // size) - patches < -(-patches // size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corrupt": "the ocean"}, "clean has 9 tokens and corrupt 11"),
        ({"positions": [9]}, "positions are one or more of 0 to 8"),
        ({"positions": -1}, "got -1"),
        ({"site": "blocks/0/mpl"}, "did you mean blocks/0/mlp"),
        ({"clean": [[1, 2], [3, 4]]}, "clean is a text or the ids of one sequence, [T] or [1, T]; got a list"),
        ({"clean": [99] * 9}, "clean: ids are from 0 to 30, got 99 to 99"),
    ],
)
def test_what_cannot_be_is_said(model, arguments, message):
    arguments = {"clean": CLEAN, "corrupt": CORRUPT, "site": "z", "positions": None, **arguments}
    with pytest.raises(ValueError, match=re.escape(message)):
        sae.patch_grid(model, score=score, **arguments)


@pytest.mark.slow
def test_on_gemma_it_is_one_patch_at_a_time_and_its_example_runs(tiny):
    sites = [f"layer_{i}/attn_z" for i in range(6)]
    clean, corrupt = "And the sea was", "And the king was"
    grid = sae.patch_grid(tiny, clean, corrupt, score, "attn_z", [2, 3])
    np.testing.assert_allclose(grid, one_by_one(tiny, clean, corrupt, sites, [2, 3]), atol=2e-4)
    assert not doctest.testmod(patching, extraglobs={"sae": sae, "model": tiny}).failed
