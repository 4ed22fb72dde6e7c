"""A harvest that is killed again and again ends in the same store as one that is left in peace."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import sae
from sae.store.places import place
from tests.sae import harvest_worker

pytestmark = [pytest.mark.killed, pytest.mark.usefixtures("quick_starts")]
KILLS = 25
WORKER = Path(harvest_worker.__file__)


def start(where, share="0/1", devices=1):
    """A worker that has loaded its model and begins to harvest."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(WORKER.parents[2]),
    }
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), where.url, share, str(devices)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    return worker


def finish(worker):
    """Its seconds, when it is left to end."""
    began = time.monotonic()
    rest, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0 and rest.strip().endswith("done"), errors
    return time.monotonic() - began


def committed(where):
    return sum(name.endswith("segment.json") for name in where.names("segment_"))


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


def contents(where):
    return {name: where.read(name) for name in where.names()}


def rows_of(store):
    names = [*store.sites, "token", "position", "document"]
    return {name: np.concatenate([store.rows_between(name, i, 0, n) for i, n in store.segments]) for name in names}


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
    print(f"committed segments after each kill: {seen}; {len(identities)} rows")


def test_two_processes_of_four_devices_killed_give_the_rows_of_one(where, tmp_path):
    one, two = place(tmp_path / "one"), where("two")
    seconds = finish(start(one))
    rng = np.random.default_rng(1)
    for _ in range(3):
        workers = [start(two, share=f"{i}/2", devices=4) for i in range(2)]
        time.sleep(rng.uniform(0.1, seconds / 4))
        for worker in workers:
            worker.kill()
            worker.communicate()
    for worker in [start(two, share=f"{i}/2", devices=4) for i in range(2)]:
        finish(worker)
    expected, got = sae.ActivationStore.open(one), sae.ActivationStore.open(two)
    assert got.segments == expected.segments and got.sinks == expected.sinks
    a, b = rows_of(expected), rows_of(got)
    for name in ("token", "position", "document"):
        np.testing.assert_array_equal(a[name], b[name])
    for site in expected.sites:
        np.testing.assert_allclose(a[site], b[site], atol=1e-4, rtol=1e-4)


def test_two_launches_of_the_same_share_do_not_write_over_each_other(tmp_path):
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
