"""Recipes: what follows from the length, the target or the penalty of a run follows when these are replaced."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import sae

SHORT = {"site": "s", "width": 64, "steps": 600, "l0_target": 20.0}
LENGTHS = {"steps": 6000, "batch_size": 8192}
CHANGES = [
    *({name: value} for name, value in LENGTHS.items()),
    LENGTHS,
    {"l0_target": None},
    {"log_threshold": True},
    {"penalty": "quadratic"},
]


def test_what_a_short_run_is():
    config = sae.short_run(**SHORT).resolve()
    assert (config.coefficient_warmup, config.learning_rate_warmup, config.learning_rate_decay) == (150, 30, 300)
    assert (config.coefficient, config.controller, config.dead_tokens) == (8e-4, 0.04, 600 * 1024 // 20)
    assert (config.threshold_learning_rate, config.frequency_coefficient) == (1e-3, 0.0)
    assert sae.short_run("s", 64, 10).resolve().learning_rate_warmup == 1
    assert sae.short_run("s", 64, 100, l0_target=3.0).resolve().controller == 0.05


@pytest.mark.parametrize("recipe", [sae.short_run, sae.gemma_scope, sae.gemma_scope_2])
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(recipe):
    with pytest.raises(ValueError, match=r"^TrainConfig has no field 'l0_tagret': did you mean l0_target\?$"):
        recipe("s", 64, 10, l0_tagret=20.0)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes))
def test_a_replaced_short_run_is_the_short_run_of_the_new_values(changes):
    replaced = dataclasses.replace(sae.short_run(**SHORT), **changes)
    assert replaced.resolve() == sae.short_run(**(SHORT | changes)).resolve() != sae.short_run(**SHORT).resolve()


def test_a_replaced_coefficient_takes_the_penalty_on_frequent_latents_with_it():
    config = dataclasses.replace(sae.gemma_scope_2("s", 1024, 10**6), coefficient=6e-2)
    assert config.resolve().frequency_coefficient == pytest.approx(6e-3)
    assert config.resolve() == sae.gemma_scope_2("s", 1024, 10**6, coefficient=6e-2).resolve()


def test_a_target_can_be_added_to_a_short_run():
    assert dataclasses.replace(sae.short_run("s", 64, 600), l0_target=20.0).resolve().controller == 0.04


def test_a_number_that_was_given_is_kept():
    given = {"coefficient_warmup": 7, "learning_rate_warmup": 8, "learning_rate_decay": 9, "dead_tokens": 10}
    given |= {"controller": 0.011, "coefficient": 0.012, "threshold_learning_rate": 0.013}
    config = dataclasses.replace(sae.short_run(**SHORT, **given), steps=6000, batch_size=64, log_threshold=True)
    assert {name: getattr(config.resolve(), name) for name in given} == given
    assert dataclasses.replace(sae.gemma_scope("s", 64, 100), steps=10**6).resolve().coefficient_warmup == 10_000


def test_to_resolve_twice_changes_nothing():
    for recipe, target in itertools.product((sae.short_run, sae.gemma_scope_2), (3.0, 30.0)):
        config = recipe("s", 64, 100, l0_target=target).resolve()
        assert (
            config.resolve() == config
            and None not in dataclasses.asdict(dataclasses.replace(config, site_out="t")).values()
        )


@pytest.mark.parametrize("number", [np.int64(5), np.float32(5), np.float64(5), np.array(5.0)])
def test_numbers_of_numpy_are_taken(number):
    config = sae.short_run("s", np.int32(64), 100, l0_target=number)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["l0_target"] == 5.0
    assert config == sae.short_run("s", 64, 100, l0_target=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": "no"}, "centre must be True or False, got 'no'"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"site": 3}, "site must be a text or a tuple, each of it a text, got 3"),
        ({"dead_tokens": 3 * 10**9}, r"dead_tokens must be at most 2,130,706,432, got 3,000,000,000"),
        ({"seed": 2**32}, r"seed must be at most 4,294,967,295, got 4,294,967,296"),
        ({"steps": 2**31}, r"steps must be at most 2,147,483,647"),
        ({"matryoshka": 0.5}, "matryoshka must be a tuple, each of it a number, got 0.5"),
        ({"controller": -0.1}, "controller must not be negative, got -0.1"),
    ],
)
def test_values_of_other_types_and_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"TrainConfig: {message}"):
        dataclasses.replace(sae.short_run("s", 64, 100), **changes)
