"""Who may write a segment: one writer at a time, and no clock decides it."""

import socket
import time

import pytest

from sae.store import claims


def test_a_claim_that_does_not_change_is_taken_over_and_one_that_does_is_not(where, monkeypatch):
    place, host = where("s"), ["first"]
    monkeypatch.setattr(socket, "gethostname", lambda: host[0])
    monkeypatch.setattr(time, "time", lambda: {"first": 0.0, "second": 1200.0}[host[0]])  # 20 minutes apart
    with claims.Claims(place, silent_seconds=1.5) as alive:
        alive.take(0)
        claims.claim(place, 1, silent_seconds=1.5)  # renewed by nobody
        host[0] = "second"
        began = time.monotonic()
        with pytest.raises(OSError, match=r"segment_00000 is being written by .* on first, last heard of 0 s"):
            claims.claim(place, 0, silent_seconds=1.5)
        assert time.monotonic() - began < 1.0
        claims.claim(place, 1, silent_seconds=1.5).release()
        assert 1.5 <= time.monotonic() - began < 3.5
        host[0] = "first"


def test_a_harvest_watches_all_claims_so_that_it_waits_once(where, monkeypatch):
    place, host = where("s"), ["first"]
    monkeypatch.setattr(socket, "gethostname", lambda: host[0])
    for index in range(3):
        claims.claim(place, index)
    host[0] = "second"
    began = time.monotonic()
    with claims.Claims(place, silent_seconds=1.5) as later:
        for index in range(3):
            later.take(index)
    assert time.monotonic() - began < 3.5
    assert place.names("writers/") == []


def test_another_boot_of_a_machine_of_the_same_name_is_not_this_machine(where, monkeypatch):
    """Its process numbers say nothing: its writers are watched as any other machine's."""
    place = where("s")
    monkeypatch.setattr(claims, "_machine", lambda: "twin before")
    claims.claim(place, 0)
    monkeypatch.setattr(claims, "_machine", lambda: "twin after")
    monkeypatch.setattr(claims, "_started", lambda process: None)  # here it is gone
    began = time.monotonic()
    claims.claim(place, 0, silent_seconds=0.5)
    assert time.monotonic() - began >= 0.5


def test_a_released_claim_is_not_renewed(where):
    place = where("s")
    claim = claims.claim(place, 0)
    claim.release()
    claim.renew()
    assert place.names("writers/") == []


def test_a_claim_that_was_removed_by_mistake_is_made_again(where):
    place = where("s")
    claim = claims.claim(place, 0)
    assert place.replace("writers/segment_00000.json", place.read("writers/segment_00000.json"), None)
    claim.renew()
    with pytest.raises(OSError, match="is being written by process"):
        claims.claim(place, 0)
    claim.release()
    assert place.names("writers/") == []


def test_a_writer_that_was_silent_learns_that_it_has_lost_its_claim(where, monkeypatch):
    place = where("s")
    first = claims.claim(place, 0)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    second = claims.claim(place, 0, silent_seconds=0)
    with pytest.raises(OSError, match="another writer has taken it over"):
        first.renew()
    first.release()  # not its own any more: nothing happens
    second.renew()
    second.release()
    assert place.names("writers/") == []
