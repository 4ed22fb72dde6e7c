"""Writers that are suspended, killed, or taken over at any step, and buckets that lose answers: the store of one."""

import dataclasses
import shutil
import socket

import numpy as np
import pytest

from sae.store import arrays, attempts, claims, places, writing
from sae.store import manifest as manifests
from tests.sae import examples

ROWS, SEGMENT = 2500, 1000


@pytest.fixture(scope="module")
def values():
    return {"a/b": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}


def contents(place):
    return {name: place.read(name) for name in place.names()}


def segment(values, index):
    """The arguments of `write_segment` for a segment."""
    part = slice(index * SEGMENT, min(ROWS, (index + 1) * SEGMENT))
    number = np.arange(part.start, part.stop)
    rows = {"token": number, "position": np.ones_like(number), "document": np.zeros_like(number)}
    return {site: x[part] for site, x in values.items()}, rows


class Killed(BaseException):
    """Ends a writer where it is."""


class Steps:
    """Counts the steps in which a writer reads or writes, on a host of its own, and does something before one."""

    def __init__(self, monkeypatch):
        self.patch, self.host, self.acting, self.dead = monkeypatch, "first", False, set()
        self.at: dict[str, tuple[int, callable]] = {}
        self.count: dict[str, int] = {}
        monkeypatch.setattr(socket, "gethostname", lambda: self.host)
        names = ["read", "write", "create", "replace", "names", "move", "remove", "entries"]
        for kind, name in [*((places.Place, n) for n in names), (arrays.Writer, "write"), (arrays.Writer, "close")]:
            monkeypatch.setattr(kind, name, self.counting(getattr(kind, name)))

    def counting(self, whole):
        def step(*args, **kwargs):
            host = self.host
            if host in self.dead:
                raise Killed
            self.count[host] = self.count.get(host, 0) + 1
            number, action = self.at.get(host, (0, None))
            if self.count[host] == number:
                action()
                self.host = host
                if host in self.dead:
                    raise Killed
            return whole(*args, **kwargs)

        return step

    def kill(self):
        self.dead.add(self.host)


def write(place, values, host, steps, manifest):
    """A whole harvest by a writer that takes silent ones for gone at once; False where it was refused or killed."""
    steps.host = host
    try:
        for index in writing.missing_segments(place, manifest):
            claim = claims.claim(place, index, silent_seconds=0)
            writing.write_segment(place, claim, *segment(values, index), manifest)
    except (OSError, Killed):
        return False
    return True


def one_segment_missing(where, name, values):
    """A store without segment 1, as before that was begun, and what it has to become."""
    if where(name).folder is None:
        store = examples.make_store(where(name), values, segment_rows=SEGMENT)
    else:  # a copy, as writing waits for the disk
        store = examples.make_store(where("whole"), values, segment_rows=SEGMENT)
        shutil.copytree(store.path, where(name).folder)
        store = dataclasses.replace(store, place=where(name))
    expected = contents(store.place)
    attempts.discard(store.place, 1)
    return store, expected


def every(where, steps, same):
    """Each step on a disk; fewer in a bucket, where they take long, and where another test has them all."""
    return range(1, steps + 1, 5 if where("s").folder is None else 1 if same else 2)


def count_steps(where, values, monkeypatch):
    with monkeypatch.context() as patch:
        store, _ = one_segment_missing(where, "count", values)
        steps = Steps(patch)
        assert write(store.place, values, "first", steps, store.manifest)
        return steps.count["first"]


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False], ids=["same_numbers", "other_rounding"])
def test_a_writer_suspended_at_any_step_and_taken_over_changes_nothing(values, where, monkeypatch, same):
    number = count_steps(where, values, monkeypatch)
    late = values if same else {"a/b": values["a/b"] * np.float32(1 + 1e-6)}
    others = contents(examples.make_store(where("late"), late, segment_rows=SEGMENT).place)
    for step in every(where, number, same):
        store, expected = one_segment_missing(where, f"s{step}", values)
        with monkeypatch.context() as patch:
            steps, results = Steps(patch), []
            second = lambda: results.append(write(store.place, values, "second", steps, store.manifest))  # noqa: B023, E731
            steps.at["first"] = (step, second)
            results.append(write(store.place, late, "first", steps, store.manifest))
            assert any(results), f"neither wrote it at step {step}"
            assert writing.missing_segments(store.place, store.manifest) == []
        outcomes = [part(expected, of, 1) for of in (expected, others)]
        assert contents(store.place) in outcomes, step


def part(whole, of, index):
    """The files of a store, with one segment of another."""
    name = f"segment_{index:05d}/"
    return {k: v for k, v in whole.items() if not k.startswith(name)} | {
        k: v for k, v in of.items() if k.startswith(name)
    }


@pytest.mark.slow
def test_a_writer_suspended_while_another_is_killed_changes_nothing(values, where, monkeypatch):
    number = count_steps(where, values, monkeypatch)
    rng = np.random.default_rng(0)
    for trial in range(6 if where("s").folder is None else 30):
        store, expected = one_segment_missing(where, f"k{trial}", values)
        with monkeypatch.context() as patch:
            steps = Steps(patch)
            second = lambda: write(store.place, values, "second", steps, store.manifest)  # noqa: B023, E731
            steps.at["first"] = (int(rng.integers(1, number)), second)
            steps.at["second"] = (int(rng.integers(1, number)), steps.kill)
            write(store.place, values, "first", steps, store.manifest)
            assert write(store.place, values, "third", steps, store.manifest), steps.at
            assert writing.missing_segments(store.place, store.manifest) == []
        assert contents(store.place) == expected, steps.at


def test_nothing_of_killed_writers_is_left_on_a_disk(values, tmp_path, monkeypatch):
    def files(store):
        return {str(p.relative_to(store.path)): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}

    number = count_steps(lambda name: places.place(tmp_path / name), values, monkeypatch)
    for step in range(1, number + 1):
        store, _ = one_segment_missing(lambda name: places.place(tmp_path / name), f"n{step}", values)
        with monkeypatch.context() as patch:
            steps = Steps(patch)
            steps.at["first"] = (step, steps.kill)
            assert not write(store.place, values, "first", steps, store.manifest)
            assert write(store.place, values, "second", steps, store.manifest)
            assert writing.missing_segments(store.place, store.manifest) == []
        whole = examples.make_store(tmp_path / "whole", values, segment_rows=SEGMENT)
        assert files(store) == files(whole), step


def test_two_launches_with_other_documents_leave_the_store_of_the_first(where):
    """The second once wrote its documents.json, and was refused for its manifest thereafter."""
    place, manifest = where("s"), examples.manifest({"a": (3,)}, 10)
    documents = (("doc", "made-up"),)
    manifests.write(place, manifest, documents)
    others = (("another", "text"),)
    changed = dataclasses.replace(manifest, documents_sha256=manifests.documents_sha256(others))
    with pytest.raises(ValueError, match="documents_sha256: the store has"):
        manifests.write(place, changed, others)
    assert manifests.read_documents(place, manifest) == list(documents)
