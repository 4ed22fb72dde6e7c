"""A harvest that is killed again and again ends in the same store as one that is left in peace."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import gemma
import sae
from sae.store.places import place
from tests.sae import harvest_worker

pytestmark = [pytest.mark.killed, pytest.mark.usefixtures("quick_starts")]
KILLS = 25
STOPS = 50
STORES = 3  # that the two write meanwhile
WORKER = Path(harvest_worker.__file__)


def start(where, worker="0/1", devices=1, errors=None, wait=False, **options):
    """A worker that has loaded its model and begins to harvest, unless it is to wait. Its errors may go to a file."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(WORKER.parents[2]),
    }
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), where.url, worker, str(devices), json.dumps(options)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors or subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "ready\n", worker.stderr and worker.stderr.read()
    if not wait:
        begin(worker)
    return worker


def begin(worker):
    worker.stdin.write("go\n")
    worker.stdin.flush()


def finish(worker):
    """Its seconds, when it is left to end."""
    began = time.monotonic()
    rest, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0 and rest.strip().endswith("done"), errors
    return time.monotonic() - began


def committed(where, prefix="segment_"):
    return sum(name.endswith("segment.json") for name in where.names(prefix))


def kill_at_random(where, kills, rng, seconds, **about):
    """Starts and kills workers; returns how many were killed in the midst of it, and the segments there were then."""
    seen = []
    for _ in range(kills):
        worker = start(where, **about)
        time.sleep(rng.uniform(0, seconds))
        worker.kill()
        worker.communicate()
        seen.append(committed(where))
    return seen


def writing(where, host):
    """Whether a machine has claimed a segment."""
    claims = [where.read(name) for name in where.names("") if re.search(r"writers/segment_\d+\.json$", name)]
    return any(claim and json.loads(claim)["host"] == host for claim in claims)


def contents(where):
    return {name: where.read(name) for name in where.names()}


def rows_of(store):
    names = [*store.sites, "token", "position", "document"]
    return {name: np.concatenate([store.rows_between(name, i, 0, n) for i, n in store.segments]) for name in names}


def tokens_of_text():
    """How often each (document, position, token) stands in the text that the worker harvests."""
    text = harvest_worker.text(gemma.load("gemma2-tiny"))
    document = np.broadcast_to(np.asarray(text.document).reshape(len(text.tokens), -1), text.tokens.shape)
    position = np.broadcast_to(np.arange(text.tokens.shape[1]), text.tokens.shape)
    return Counter(zip(*(array.ravel().tolist() for array in (document, position, text.tokens)), strict=True))


def test_killed_at_25_random_moments(where):
    peaceful, killed = where("peaceful"), where("killed")
    seconds = finish(start(peaceful))
    seen = kill_at_random(killed, KILLS, np.random.default_rng(0), 0.02 + seconds / 16)
    assert len([count for count in seen if count < 100]) >= KILLS // 2, f"it had ended before the kills: {seen}"
    assert len(set(seen)) > KILLS // 4, f"no kill came while segments were written: {seen}"
    finish(start(killed))
    assert contents(killed) == contents(peaceful)
    rows = rows_of(sae.ActivationStore.open(killed))
    identities = np.stack([rows[name] for name in ("document", "position", "token")], axis=1)
    assert Counter(map(tuple, identities.tolist())) <= tokens_of_text(), "a row stands twice"
    print(f"committed segments after each kill: {seen}; {len(identities)} rows")


def test_two_processes_of_four_devices_killed_give_the_rows_of_one(where, tmp_path):
    one, two = place(tmp_path / "one"), where("two")
    seconds = finish(start(one))
    rng = np.random.default_rng(1)
    for _ in range(3):
        workers = [start(two, worker=f"{i}/2", devices=4) for i in range(2)]
        time.sleep(rng.uniform(0.1, seconds / 4))
        for worker in workers:
            worker.kill()
            worker.communicate()
    for worker in [start(two, worker=f"{i}/2", devices=4) for i in range(2)]:
        finish(worker)
    expected, got = sae.ActivationStore.open(one), sae.ActivationStore.open(two)
    assert got.segments == expected.segments and got.sinks == expected.sinks
    a, b = rows_of(expected), rows_of(got)
    for name in ("token", "position", "document"):
        np.testing.assert_array_equal(a[name], b[name])
    for site in expected.sites:
        np.testing.assert_allclose(a[site], b[site], atol=1e-4, rtol=1e-4)


def test_suspended_at_50_random_moments_while_another_harvests_the_same(where, tmp_path):
    """On machines whose clocks are 20 minutes apart; whoever is silent for half a second is taken over. The other one
    tries again and again, and gives up after three segments, so that there is always something to take over."""
    peaceful, place = where("peaceful"), where("shared")
    finish(start(peaceful))
    about = {"stores": STORES, "silent_seconds": 0.5, "pause": 0.05}
    rng, stops = np.random.default_rng(2), 0
    with open(tmp_path / "one", "w") as one, open(tmp_path / "two", "w") as two:
        suspended = start(place, errors=one, wait=True, host="one", clock=-600, hold=0.1, **about)
        other = start(place, errors=two, wait=True, host="two", clock=600, batches=3, rest=0.5, **about)
        begin(suspended)
        begin(other)
        while stops < STOPS and other.poll() is None and suspended.poll() is None:
            time.sleep(rng.uniform(0, 0.4))
            until = time.monotonic() + 3
            while stops % 2 and not writing(place, "one") and time.monotonic() < until:
                time.sleep(0.02)
            suspended.send_signal(signal.SIGSTOP)
            before, until = committed(place, ""), time.monotonic() + 10
            time.sleep(0.1)
            while stops % 2 and committed(place, "") == before and time.monotonic() < until:  # until the other has more
                time.sleep(0.1)
            suspended.send_signal(signal.SIGCONT)
            stops += 1
        for worker in (suspended, other):
            finish(worker)
    # Its claim was taken over, or, where it had only begun with it, the segment was there already.
    taken_over = len(re.findall("another writer has|by another writer just now", (tmp_path / "one").read_text()))
    assert stops == STOPS, f"one had ended after {stops} stops"
    assert taken_over >= STOPS // 10, f"the suspended one was taken over only {taken_over} times"
    expected = contents(peaceful)
    for number in range(STORES):
        assert contents(where(f"shared/{number}")) == expected, number
    print(f"taken over {taken_over} times of {stops}")


def test_two_launches_of_the_same_worker_do_not_write_over_each_other(tmp_path):
    where, alone = place(tmp_path / "s"), place(tmp_path / "alone")
    workers = [start(where), start(where)]
    results = [worker.communicate(timeout=300) for worker in workers]
    codes = [worker.returncode for worker in workers]
    for code, (_, errors) in zip(codes, results, strict=True):
        assert code == 0 or "is being written by process" in errors or "just now" in errors, errors
    if not any(code == 0 for code in codes):
        pytest.fail(f"neither finished: {results}")
    finish(start(where))
    finish(start(alone))
    assert contents(where) == contents(alone)
