"""Recipes: what follows from the length, the target or the penalty of a run follows when these are replaced."""

import dataclasses
import doctest
import json

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import recipes, runs
from sae.architectures import BatchTopK, Encoded, ReLU, TopK
from sae.sparsity import L1, Now

SHORT = {"site": "s", "width": 64, "steps": 600, "l0_target": 20.0}
LENGTHS = {"steps": 6000, "batch_size": 8192}
RECIPES = (sae.short_run, sae.gemma_scope, sae.gemma_scope_2)


def test_what_a_short_run_is():
    run = sae.short_run(**SHORT)
    adam, (first, revival) = run.optimizer, run.sparsity
    assert (run.warm_from, adam.warmup_steps(600), adam.decay_steps(600)) == (150, 30, 300)
    assert (first.coefficient, first.rate(600), run.sizes.dead_tokens) == (8e-4, 0.04, 600 * 1024 // 20)
    assert (run.autoencoder.threshold_learning_rate, revival.revival) == (1e-3, 1e-3)
    assert sae.short_run("s", 64, 10).optimizer.warmup_steps(10) == 1
    assert sae.short_run("s", 64, 100, l0_target=3.0).sparsity[0].rate(100) == 0.05
    assert sae.short_run("s", 64, 100, l0_target=3.0, penalty="quadratic").sparsity[0].coefficient == 3e-3
    assert sae.short_run("s", 64, 100, log_threshold=True).autoencoder.threshold_learning_rate == 1e-2


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(recipe):
    with pytest.raises(
        ValueError, match=r"^Run has no field 'l0_tagret', and no part has it: did you mean l0_target\?$"
    ):
        recipe("s", 64, 10, l0_tagret=20.0)


@pytest.mark.parametrize("changes", [{"steps": 6000}, {"batch_size": 8192}, LENGTHS], ids=str)
def test_a_replaced_short_run_is_the_short_run_of_the_new_length(changes):
    replaced = dataclasses.replace(sae.short_run(**SHORT), **changes)
    assert replaced == sae.short_run(**(SHORT | changes)) and replaced.sizes != sae.short_run(**SHORT).sizes


def test_a_replaced_coefficient_takes_the_penalty_on_frequent_latents_with_it():
    """Which is relative to lambda."""
    run = sae.gemma_scope_2("s", 1024, 10**6, coefficient=6e-2)
    lam, encoded = jnp.float32(6e-2), Encoded(None, None, jnp.full(4, 0.6), None, None)
    got = run.sparsity[1].penalty(encoded, (), Now(jnp.int32(0), lam, None), run.sizes)
    assert got == pytest.approx(4 * 0.5 * 6e-3)


def test_a_number_that_was_given_is_kept():
    given = {"coefficient_warmup": 7, "learning_rate_warmup": 8, "learning_rate_decay": 9, "dead_tokens": 10}
    given |= {"controller": 0.011, "coefficient": 0.012, "threshold_learning_rate": 0.013}
    run = dataclasses.replace(sae.short_run(**SHORT, **given), steps=6000, batch_size=64)
    assert given.items() <= run.fields().items()
    assert dataclasses.replace(sae.gemma_scope("s", 64, 100), steps=10**6).warm_from == 10_000


def test_a_recipes_target_is_the_k_of_an_architecture_that_keeps_k_latents():
    for recipe in RECIPES:
        assert recipe("s", 64, 100, l0_target=7.0, autoencoder="topk").autoencoder.k == 7
        assert recipe("s", 64, 100, l0_target=7.0, autoencoder=BatchTopK(), sparsity=()).autoencoder.k == 7.0
        # Nobody asked for the 50 of gemma_scope_2.
        assert recipe("s", 64, 100, autoencoder=TopK(k=9), sparsity=()).autoencoder.k == 9
        with pytest.raises(
            ValueError,
            match=r"no part has a field 'l0_target', but the kinds ControlledL1, .*, ControlledTanh have it",
        ):
            recipe("s", 64, 100, l0_target=7.0, autoencoder=ReLU(), sparsity=(L1(),))
        with pytest.raises(
            ValueError,
            match=r"no part has a field 'l0_target', but the kinds ControlledL1, .*, ControlledTanh have it",
        ):
            recipe("s", 64, 100, l0_target=7.0, sparsity=("linear",))


def test_terms_by_name_have_the_recipes_constants():
    by_name = sae.short_run(**SHORT, sparsity=("quadratic", "revival"))
    assert by_name == sae.short_run(**SHORT, penalty="quadratic")
    by_name = sae.gemma_scope_2("s", 64, 100, sparsity=("controlled", "frequency"))
    assert by_name == sae.gemma_scope_2("s", 64, 100, penalty="linear") and by_name.l0_target == 50.0
    assert sae.gemma_scope("s", 64, 100, sparsity=("linear",)) == sae.gemma_scope("s", 64, 100)
    with pytest.raises(ValueError, match="a quadratic penalty needs an L0 to aim at: give l0_target"):
        sae.short_run("s", 64, 100, sparsity=("quadratic",))


@pytest.mark.parametrize("number", [np.int64(5), np.float32(5), np.float64(5), np.array(5.0)])
def test_numbers_of_numpy_are_taken(number):
    run = sae.short_run("s", np.int32(64), 100, l0_target=number)
    assert json.loads(json.dumps(run.json()))["sparsity"][0]["l0_target"] == 5.0
    assert run == sae.short_run("s", 64, 100, l0_target=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": "no"}, "Inputs: centre must be True or False, got 'no'"),
        ({"learning_rate": "1e-3"}, "Adam: learning_rate must be a number, got '1e-3'"),
        ({"learning_rate": None}, "Adam: learning_rate must be a number, got None"),
        ({"site": 3}, "Run: site must be a text or a tuple, each item a text, got 3"),
        ({"dead_tokens": 3 * 10**9}, r"Run: dead_tokens must be at most 2,130,706,432, got 3,000,000,000"),
        ({"seed": 2**32}, r"Run: seed must be at most 4,294,967,295, got 4,294,967,296"),
        ({"steps": 2**31}, r"Run: steps must be at most 2,147,483,647"),
        ({"matryoshka": 0.5}, "Matryoshka: matryoshka must be a tuple, each item a number, got 0.5"),
        ({"controller": -0.1}, "Controlled: controller must not be negative, got -0.1"),
    ],
)
def test_values_of_other_types_and_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sae.short_run(**{"site": "s", "width": 64, "steps": 100, "l0_target": 5.0} | changes)


def test_examples():
    for module in (recipes, runs):
        assert doctest.testmod(module, extraglobs={"sae": sae}).failed == 0
