"""Progress: a bar by default where somebody looks, words around it, and the same bits with it and without."""

import dataclasses
import io
import itertools
import os
import sys
import types

import jax
import numpy as np
import pytest
from tqdm import tqdm

import sae
from sae import filling, progress
from sae.trainer import sweeps
from sae.trainer.reporting import in_words
from sae.trainer.result import Result
from sae.trainer.speed import Rates
from tests.sae.examples import make_store
from tests.sae.test_harvest import SITES, text_for


def test_a_progress_has_to_give_every_item():
    assert list(progress.every(iter(range(3)), range(3))) == [0, 1, 2]
    for given, message in (
        ([0, 1], "progress ended after 2 of 3: it has to give every one"),
        ([0, 2], "progress gave 2 where 1 comes, after 1 of 3"),
        ([0, 1, 2, 2], "progress gave 2 where none comes, after 3 of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            list(progress.every(given, range(3)))


def test_a_harvest_whose_progress_leaves_out_batches_is_an_error():
    batches = {0: 2, 3: 1}
    right = [None, (0, 0), (0, 1), (3, 0)]
    for last, step in itertools.pairwise([*right, None]):
        filling._check_follows(last, step, batches)
    filling._check_follows((0, 1), None, batches)
    for last, step in ((None, (0, 1)), ((0, 0), (3, 0)), ((0, 0), None), ((0, 1), (0, 1)), ((0, 0), (0, 0))):
        with pytest.raises(ValueError, match="it has to give every batch"):
            filling._check_follows(last, step, batches)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Told:
    """A progress that remembers what it was told, and hands out bars that remember their texts."""

    def __init__(self):
        self.words, self.texts, self.called = [], [], []

    def __call__(self, items, **about):
        self.called.append(about)
        bar = tqdm(items, file=io.StringIO(), **about)
        bar.set_postfix_str = lambda text, refresh=True: self.texts.append(text)
        return bar

    def write(self, text):
        self.words.append(text)


def test_a_bar_is_the_default_where_somebody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.chosen(None) is progress.silent and progress.chosen(True) is progress.Bar
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.chosen(None) is progress.Bar and progress.chosen(False) is progress.silent
    assert progress.chosen(tqdm) is tqdm
    with pytest.raises(ValueError, match="progress is None, True, False, or a function such as tqdm; got 'yes'"):
        progress.chosen("yes")


def test_a_notebook_is_no_terminal_and_somebody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for shell, looks in ((None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress.watched() is looks


def test_without_standard_error_nobody_looks(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert progress.chosen(None) is progress.silent


def test_a_bar_goes_to_standard_error_and_is_gone_at_its_end(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.Bar(range(3), total=3, desc="some")) == [0, 1, 2]
    progress.Bar.write("a line")
    shown = terminal.getvalue()
    assert "some" in shown and shown.endswith("a line\n") and "3/3" not in shown.rsplit("\r", 1)[-1]
    assert list(progress.Bar(range(3, 3), total=3, initial=3, desc="none")) == [] and "none" not in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_terminal_without_a_size_has_its_bar(monkeypatch):
    shown, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert progress.chosen(None) is progress.Bar and list(progress.Bar(range(3), total=3, desc="some")) == [0, 1, 2]
        assert b"some:   0%" in os.read(shown, 1000)
    os.close(shown)


def test_words_that_cannot_be_written_end_no_run():
    class Latin:
        def __call__(self, items, **about):
            return items

        def write(self, text):
            text.encode("ascii")

    progress.say(Latin(), "width_²")
    progress.say(progress.silent, "nobody")
    progress.say(lambda items, **about: items, "nobody")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"l0": 20.13, "fvu": 0.1239, "dead": 3}], "L0 20.1, FVU 0.124, dead 3, waiting 2%"),
        (
            [{"l0": 40.0, "fvu": 0.1, "dead": 3}, {"l0": 10.0, "fvu": 0.1, "dead": 0}],
            "L0 10.0-40.0, FVU 0.100, dead 0-3, waiting 2%",
        ),
    ],
)
def test_metrics_in_words(records, words):
    assert in_words(records, Rates(1e5, 0.02, None)) == words


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    x = np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32)
    return make_store(tmp_path_factory.mktemp("progress") / "s", {"a/x": x, "a/y": x[:, ::-1].copy()})


def configs(**changes):
    return [sae.short_run(site, 32, 12, batch_size=64, l0_target=4.0, **changes) for site in ("a/x", "a/y")]


def train_and_count(store, how):
    """A run, and what it fetched from the device, in order."""
    fetches, records, device_get = [], sweeps.Sweep.records, jax.device_get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps.Sweep, "records", lambda self: fetches.append("records") or records(self))
        patch.setattr(jax, "device_get", lambda tree: fetches.append("get") or device_get(tree))
        return sae.train(configs(), store, log_every=5, progress=how), fetches


@pytest.fixture(scope="module")
def trained(store):
    """{how: (result, what was fetched, the progress)} of the same run with and without progress."""
    hows = {"off": False, "on": Told(), "function": lambda steps, **_: steps}
    return {name: (*train_and_count(store, how), how) for name, how in hows.items()}


def test_progress_changes_no_bit_and_fetches_nothing(trained):
    (off, fetched, _), (on, also, _), (function, third, _) = trained.values()
    for other in (on, function):
        jax.tree.map(np.testing.assert_array_equal, off.autoencoders, other.autoencoders)
        assert off.history == other.history
    assert fetched == also == third and fetched.count("records") == 4


def test_the_bar_shows_each_record_and_words_come_before_and_after(trained):
    result, _, told = trained["on"]
    assert told.called == [{"total": 12, "initial": 0, "desc": "train"}]
    assert len(told.texts) == 4 and all("FVU" in text for text in told.texts)  # steps 0, 5, 10, 11
    last = [record for record in result.history if record["step"] == 11]
    assert told.texts[-1].startswith(f"L0 {min(r['l0'] for r in last):.1f}") and "waiting" in told.texts[-1]
    first, table = told.words
    assert first.startswith("train: 2 autoencoders, 12 steps of 64 tokens; 0.85 epochs over 900 tokens of ")
    assert table == result.table()


def test_the_result_is_a_pair_a_line_and_a_table(trained, store):
    result = trained["off"][0]
    autoencoders, history = result
    assert autoencoders is result.autoencoders and repr(result) == f"Result(2 autoencoders, {len(history)} records)"
    with pytest.raises(ValueError, match="2 autoencoders were trained"):
        _ = result.autoencoder
    over, *lines = result.table().splitlines()
    # Records stand at steps 1, 6, 11 and 12.
    assert over == "in training, L0 and FVU as means over step 12:"
    tokens = history[-1]["dead_tokens"]
    heading = ["site", "width", "target", "lambda", "L0", "FVU", "dead", "in", f"{tokens:,}", "tokens"]
    assert lines[0].split() == heading
    for line, record, site in zip(lines[1:], history[-2:], ("a/x", "a/y"), strict=True):
        numbers = [f"{record['coefficient']:.2g}", f"{record['l0']:.1f}", f"{record['fvu']:.3f}", str(record["dead"])]
        assert line.split() == [site, "32", "4", *numbers]
    assert len({len(line) for line in lines}) == 1


def test_the_table_has_a_column_for_what_runs_differ_in(trained):
    first = trained["off"][0].autoencoders[0]
    other = first.info.training.replace('"seed": 0', '"seed": 7').replace('"site_out": null', '"site_out": "b"')
    second = dataclasses.replace(first, info=dataclasses.replace(first.info, training=other))
    record = {"site": "a/x", "l0_target": None, "coefficient": 6e-4, "l0": 3.0, "fvu": float("nan"), "dead": 1}
    history = [
        {**record, "run": run, "step": step, "dead_tokens": 90, "batches": 10} for step in (49, 59) for run in (0, 1)
    ]
    over, *lines = Result([first, second], history).table().splitlines()
    assert over == "in training, L0 and FVU as means over steps 51 to 60:"
    lines = [line.split() for line in lines]
    assert lines[0] == ["site", "width", "seed", "target", "lambda", "L0", "FVU", "dead", "in", "90", "tokens"]
    assert lines[1] == ["a/x", "32", "0", "-", "0.0006", "3.0", "nan", "1"]
    assert lines[2] == ["a/x", "to", "b", "32", "7", "-", "0.0006", "3.0", "nan", "1"]


def test_a_run_that_has_ended_shows_its_table_again(store, tmp_path):
    tables = []
    for _ in range(2):
        told = Told()
        sae.train(configs()[:1], store, checkpoint_dir=tmp_path / "c", progress=told)
        tables.append(told.words[1])
    assert "from step 12 on" in told.words[0] and tables[0] == tables[1]


def test_harvest_says_first_what_it_takes(tiny, tmp_path):
    sequences = text_for(tiny)
    some = sequences.take(np.arange(20))
    tokens = int(some.text(tiny.tokenizer.special_ids).sum())
    told = Told()
    store = sae.harvest(tiny, some, SITES[:1], tmp_path / "s", shuffle_rows=8 * 31, progress=told)
    (line,) = told.words
    assert line.startswith(
        f"harvest: 20 of {len(sequences)} sequences of 32 tokens, {tokens} tokens at {SITES[0]} of gemma2-tiny, "
        "float32, up to "
    )
    assert line.endswith(f" in {tmp_path / 's'}") and told.called[0]["desc"] == "harvest"
    again = Told()
    sae.harvest(tiny, some, SITES[:1], tmp_path / "s", shuffle_rows=8 * 31, progress=again)
    assert again.words[0] == line + "; nothing is left to do here"
    half = Told()
    sae.harvest(tiny, some, SITES[:1], tmp_path / "h", shuffle_rows=8 * 31, worker=(1, 2), progress=half)
    assert "; here 1 of 3 segments: 8 sequences, about " in half.words[0] and store.manifest.segments == 3
