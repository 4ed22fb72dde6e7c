"""A bucket that loses answers, answers 500 and lets connections hang: the same store."""

import contextlib
import os

import numpy as np
import pytest

from sae.store import claims, places
from tests.sae import examples, faults

ROWS = 2500


def contents(place):
    return {name: place.read(name) for name in place.names()}


@pytest.fixture
def faulty(bucket, tmp_path, monkeypatch):
    """A function of a fault to a place in the bucket that is reached through a proxy with it."""
    server = os.environ["AWS_ENDPOINT_URL"]
    with contextlib.ExitStack() as stack:

        def start(fault):
            address, counts = stack.enter_context(faults.proxy(server, fault))
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            return places.place(f"{bucket}/{tmp_path.name}/faulty"), counts

        yield start


def test_lost_answers_errors_and_a_connection_that_hangs_change_nothing(bucket, tmp_path, faulty):
    values = {"a/b": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}
    expected = contents(examples.make_store(f"{bucket}/{tmp_path.name}/whole", values, segment_rows=400).place)
    place, counts = faulty(faults.one_in_twenty(seed=0))
    store = examples.make_store(place, values, segment_rows=400)
    assert counts["hang"] == 1 and min(counts["cut"], counts["lost"], counts["500"]) >= 2, counts
    assert store.rows == ROWS and contents(place) == expected


@pytest.mark.parametrize("kind", ["cut", "lost", "500"])
def test_a_conditional_write_whose_answer_was_lost_knows_its_own(faulty, kind):
    place, counts = faulty(faults.once("PUT", kind))
    claim = claims.claim(place, 0)  # named this very process as the one that is at it
    claim.renew()
    claim.release()
    assert place.names("writers/") == [] and counts[kind] == 1
    place, counts = faulty(faults.once("PUT", kind))
    assert place.create("f", "1") and not place.create("f", "2") and place.read("f") == b"1"
    place, counts = faulty(faults.once("PUT", kind))
    assert place.replace("f", b"1", "3") and not place.replace("f", b"1", "4") and place.read("f") == b"3"
    place, counts = faulty(faults.once("DELETE", kind))
    assert place.replace("f", b"3", None) and place.read("f") is None and counts[kind] == 1


def test_a_refused_write_is_refused_although_an_answer_was_lost(faulty):
    place, _ = faulty(faults.once("PUT", "none"))
    assert place.create("f", "theirs")
    for kind in ("cut", "lost", "500"):
        place, _ = faulty(faults.once("PUT", kind))
        assert not place.create("f", "mine")
        assert not place.replace("f", b"other", "mine")
    assert place.read("f") == b"theirs"
