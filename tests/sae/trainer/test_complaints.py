"""What a run is told is off about it: by hand from records, and on runs that have something wrong with them."""

import doctest
import re
import warnings

import numpy as np
import pytest

import sae
from sae.trainer import complaints, speed, telling
from sae.trainer.speed import Rates
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary

CONFIG = sae.short_run("s", 100, 100, l0_target=20.0, batch_size=64)
GOOD = {"step": 90, "threshold_moved": 0.5, "window": 0.01, "l0": 20.5, "fvu": 0.2, "dead": 3, "dead_tokens": 320}
LAST = GOOD | {"step": 99}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(6000, features=256, dimensions=64)
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=2000)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"threshold_moved": 0.001}, "the thresholds have moved by 0.10% on average"),
        ({"window": 0.0}, "no pre-activations lie within the bandwidth"),
        ({"l0": 31.0}, "L0 is 31, 20 was asked for, and it has stopped moving: 1.6 times the target"),
        ({"dead": 20}, r"20 of 100 latents \(20%\) are dead, silent for the last 320 tokens: set or raise revival"),
        ({"dead": 20, "dead_tokens": 100}, None),  # they have not been silent for as long as the config says
        ({"step": 10, "dead": 20}, None),  # too early to say
    ],
)
def test_complaints_of_a_run_that_goes_on(changes, complaint):
    found = complaints.complaints(CONFIG, [GOOD | changes] * 3)
    assert len(found) == (complaint is not None)
    assert all(re.search(complaint, text) for text in found.values())


@pytest.mark.parametrize(
    ("records", "kind", "complaint"),
    [
        ([LAST], None, None),
        ([LAST | {"l0": 160.0}], "l0", "L0 is 160, 20 was asked for: 8 times the target. To come closer, train for"),
        ([LAST | {"l0": 8.0}], "l0", "0.4 times the target. To come closer, train for more steps than 100, or lower"),
        ([GOOD | {"l0": 80.0}, GOOD, LAST | {"l0": 40.0}], "l0", "L0 is 40, 20 was asked for: 2 times the target"),
        ([LAST | {"fvu": 1.7}], "fvu", "the FVU is 1.7, 1.7 at the start: .* worse than the mean .* Train for more"),
        ([GOOD, LAST | {"fvu": 1.7}], "fvu", "the FVU is 1.7, 0.2 at the start: .* Lower the learning rate, now 0.003"),
        ([GOOD, LAST | {"fvu": 0.8}], "fvu", "has risen from 0.2 at step 90 to 0.8 with as many .* training diverges"),
        ([GOOD | {"l0": 23.0}, LAST | {"fvu": 0.8, "l0": 17.0}], None, None),  # sparser, and within the target
        ([LAST | {"dead": 90, "dead_tokens": 128}], "dead", "90 of 100 latents .* silent for the last 128 tokens"),
    ],
)
def test_at_the_end_everything_is_said_however_short_the_run(records, kind, complaint):
    found = complaints.complaints(CONFIG, records)
    assert list(found) == ([] if kind is None else [kind])
    assert kind is None or re.search(complaint, found[kind])


def test_without_a_target_an_l0_of_almost_none_or_all_latents_is_said():
    config = sae.gemma_scope("s", 100, 100, coefficient_warmup=10)
    assert "on most tokens no latent fires. Lower coefficient, now 0.0006" in complaints.complaints(
        config, [LAST | {"l0": 0.1}]
    ).get("l0")
    assert "not sparse" in complaints.complaints(config, [LAST | {"l0": 60.0}]).get("l0")
    assert not complaints.complaints(config, [LAST])


def test_a_target_below_one_latent_a_token_is_said_to_be_so():
    config = CONFIG.replace(l0_target=0.01)
    found = complaints.complaints(config, [LAST | {"l0": 3.58}])
    assert found["l0"].startswith(
        "L0 is 3.58, 0.01 was asked for: 358 times the target. To come closer, give a target of"
    )


@pytest.mark.parametrize(
    ("changes", "kind", "complaint"),
    [
        ({"coefficient_warmup": 100}, "coefficient_warmup", "lambda is warmed up over 100 steps, and the run has 100"),
        ({"learning_rate_warmup": 300}, "learning_rate_warmup", "warmed up over 300 steps, and the run has 100"),
        ({"learning_rate_decay": 96}, "learning_rate_decay", "over 5 steps and decays over the last 96, and the run"),
        # Its unit is tokens: 100 steps of 64.
        ({"dead_tokens": 6400}, "revival", "silent for 6,400 tokens, and the run has 6,400: none ever is"),
        ({"dead_tokens": 6399}, None, None),
        ({"coefficient_warmup": 99, "learning_rate_warmup": 50}, None, None),
    ],
)
def test_warm_ups_longer_than_the_run_are_said_before_it(changes, kind, complaint):
    found = complaints.beforehand(CONFIG.replace(**changes))
    assert list(found) == ([] if kind is None else [kind])
    if kind:
        assert complaint in found[kind]


def test_examples():
    assert doctest.testmod(complaints, extraglobs={"sae": sae}).failed == 0


def warned(run, *arguments, **more):
    """What a run returns, and the warnings that it gave."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        result = run(*arguments, **more)
    return result, [str(w.message) for w in given if issubclass(w.category, sae.TrainingWarning)]


def test_a_run_with_everything_wrong_is_told_each_thing_once(small, one_device):
    """The paper's constants in a short run: the trap that others fell into. A record at each of 40 steps."""
    config = sae.gemma_scope("x", 64, 40, batch_size=128, coefficient=1.0, coefficient_warmup=4)
    (_, history), given = warned(sae.train, config, small, one_device, log_every=1)
    assert len(given) == len(set(given))
    for text in ("the learning rate is warmed up over 1000 steps", "the thresholds have moved by 0."):
        assert sum(message.startswith(f"x, 64 latents, lambda 1: {text}") for message in given) == 1, given
    assert [record["dead_tokens"] for record in history] == [128 * ((step + 2) // 2) for step in range(40)]


def test_what_is_to_be_said_of_several_runs_alike_is_said_once():
    """A transcoder is called by both its sites."""
    runs = [
        sae.short_run("x", 64, 20, l0_target=2.0),
        sae.short_run("x", 64, 20, l0_target=3.0),
        sae.short_run("x", 64, 20, l0_target=2.0, site_out="y"),
    ]
    same, own = {"window": "Raise bandwidth"}, {"window": "Raise bandwidth", "l0": "L0 is 9"}
    warned_of: set = set()
    _, given = warned(telling.warn, runs, [same, same, own], warned_of)
    assert given == ["all 3 runs: Raise bandwidth", "x to y, 64 latents, target L0 2: L0 is 9"]
    assert warned(telling.warn, runs, [same, same, own], warned_of)[1] == []
    _, given = warned(telling.warn, runs, [same, same, {}], set())
    assert given == ["2 runs (x, 64 latents, target L0 2; x, 64 latents, target L0 3): Raise bandwidth"]


@pytest.mark.parametrize("log_every", [50, 7])
def test_an_l0_far_off_its_target_is_said_of_a_run_of_any_length(small, one_device, log_every):
    config = sae.short_run("x", 64, 20, batch_size=128, l0_target=1.0)
    (_, history), given = warned(sae.train, config, small, one_device, log_every=log_every)
    assert history[-1]["l0"] > 1.2
    assert sum("1 was asked for" in message for message in given) == 1, given


def test_dead_latents_are_said_of_a_run_shorter_than_dead_tokens(small, one_device):
    """All fire in the first steps, before lambda is warm, and most never again."""
    config = sae.gemma_scope(
        *("x", 64, 60),
        **{"batch_size": 128, "coefficient": 1.0, "coefficient_warmup": 2, "learning_rate_warmup": 2},
        **{"learning_rate": 3e-3, "threshold_learning_rate": 0.3, "bandwidth": 0.05},
    )
    ((autoencoder,), history), given = warned(sae.train, config, small, one_device, log_every=1)
    rows = np.concatenate([small.rows_between("x", index, 0, rows) for index, rows in small.segments])
    silent = int((~(np.asarray(autoencoder.encode(rows)) > 0).any(axis=0)).sum())
    last = history[-1]
    assert history[0]["dead"] == 0 and last["dead_tokens"] == 30 * 128
    assert 32 < last["dead"] <= silent < 64  # some died later
    assert any(f"{last['dead']} of 64 latents" in m and "silent for the last 3,840 tokens" in m for m in given)


@pytest.mark.parametrize(("steps", "seconds", "count"), [(60, 10.0, 1), (20, 10.0, 0), (60, 0.01, 0)])
def test_a_run_that_waits_for_data_is_told_so_once_where_it_matters(
    small, one_device, monkeypatch, steps, seconds, count
):
    """Not in a run of a few steps, and not for a wait that costs nothing."""
    since_last = speed.Speedometer.since_last

    def waited(self):
        since_last(self)
        self.waited = seconds
        return Rates(1.0, input_wait=0.5, share_of_peak=None)

    monkeypatch.setattr(speed.Speedometer, "since_last", waited)
    config = sae.short_run("x", 64, steps, batch_size=128, l0_target=1.0)
    _, given = warned(sae.train, config, small, one_device, log_every=1)
    assert sum("50% of the time goes into waiting for data" in message for message in given) == count


def test_the_last_record_of_a_short_run_is_over_its_end_and_not_over_the_warm_up(small, one_device):
    """Over the last tenth of 20 steps: the mean over the records of every step, of the same run."""
    config = sae.short_run("x", 64, 20, batch_size=128, l0_target=1.0)
    (_, each), _ = warned(sae.train, config, small, one_device, log_every=1)
    (result, given) = warned(sae.train, config, small, one_device)
    last = result.history[-1]
    assert [record["batches"] for record in result.history] == [1, 2] and last["step"] == 19
    for name in ("l0", "loss", "reconstruction"):
        assert last[name] == pytest.approx(np.mean([record[name] for record in each[-2:]]), rel=1e-5)
    # The mean over all steps, of which the warning spoke before, is another one.
    assert abs(np.mean([record["l0"] for record in each[1:]]) / last["l0"] - 1) > 0.1
    assert any(f"L0 is {last['l0']:.3g}, 1 was asked for" in message for message in given), given
    assert result.table().startswith("in training, L0 and FVU as means over steps 19 to 20:")


def test_records_of_other_runs_are_over_all_batches_since_the_one_before(small, one_device):
    """Once a record stands between the warm-up and the end, or where nothing is warmed up."""
    long = sae.short_run("x", 64, 60, batch_size=128, l0_target=8.0)
    topk = sae.Run("x", 64, 20, batch_size=128, autoencoder=sae.architectures.TopK(k=4), sparsity=())
    for config, log_every, batches in ((long, 20, [1, 20, 20, 19]), (topk, 50, [1, 19])):
        (_, history), _ = warned(sae.train, config, small, one_device, log_every=log_every)
        assert [record["batches"] for record in history] == batches
