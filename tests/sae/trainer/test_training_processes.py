"""Training in processes that are killed, told to stop, or work together."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.sae import examples
from tests.sae.trainer import train_worker
from tests.sae.trainer.dictionaries import known_dictionary

pytestmark = pytest.mark.usefixtures("quick_starts")
WORKER = Path(train_worker.__file__)
STEPS, KILLS = 60, 10


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    x, _, _ = known_dictionary(6000, features=256, dimensions=64)
    folder = tmp_path_factory.mktemp("stores") / "store"
    examples.make_store(folder, {"x": x, "y": np.tanh(x[:, :40])}, segment_rows=2000)
    return folder


def start(store, folder, devices, mesh, steps=STEPS, **more):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(WORKER.parents[3]),
    }
    job = {"store": str(store), "checkpoints": str(folder / "c"), "out": str(folder / "out"), "mesh": mesh}
    job |= {"steps": steps} | more
    return subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(job)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(worker, step):
    """Reads what it prints until it begins a step, or ends. Returns the first step that it began with."""
    first = None
    for line in worker.stdout:
        first = int(line) if first is None else first
        if int(line) >= step:
            break
    return first


def finished(worker):
    _, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0, errors[-2000:]


def contents(folder):
    found = {"history": json.loads((folder / "out" / "history.json").read_text())}
    for file in sorted((folder / "out").rglob("*.npz")):
        with np.load(file) as arrays:
            found |= {f"{file.parent.name}/{name}": arrays[name] for name in arrays.files}
    return found


@pytest.mark.killed
@pytest.mark.parametrize(("devices", "mesh"), [(1, [1, 1]), (8, [4, 2])], ids=["1 device", "8 devices"])
def test_killed_at_10_random_steps_it_ends_in_the_same_bits(store, tmp_path, devices, mesh):
    finished(start(store, tmp_path / "peaceful", devices, mesh))
    rng = np.random.default_rng(devices)
    begun = []
    for step in np.sort(rng.choice(np.arange(3, STEPS - 1), KILLS, replace=False)):
        worker = start(store, tmp_path / "killed", devices, mesh)
        begun.append(until(worker, step))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
    finished(start(store, tmp_path / "killed", devices, mesh))
    print(f"began at steps {begun}")
    assert len(set(begun)) > KILLS // 2, "it did not go on from checkpoints"
    peaceful, killed = contents(tmp_path / "peaceful"), contents(tmp_path / "killed")
    assert peaceful.pop("history") == killed.pop("history")
    arrays = {"W_enc", "b_enc", "threshold", "W_dec", "b_dec", "largest", "tokens"}
    assert set(peaceful) == {f"{i}/{name}" for i in (0, 1) for name in arrays} | {"1/W_skip", "1/form"}
    for name, values in peaceful.items():
        np.testing.assert_array_equal(values, killed[name], err_msg=name)


@pytest.mark.slow
def test_sigterm_saves_and_stops(store, tmp_path):
    worker = start(store, tmp_path / "told", 1, [1, 1], steps=41)
    until(worker, 22)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 1 and "Preempted: asked to stop by SIGTERM after step" in errors.splitlines()[-1]
    saved = max(int(p.name) for p in (tmp_path / "told" / "c").iterdir() if p.name.isdigit())
    # 22, where the signal comes while step 22 waits for its batch.
    assert 22 <= saved < 41 and f"after step {saved} of 41; saved in" in errors
    again = start(store, tmp_path / "told", 1, [1, 1], steps=41)
    assert until(again, 0) == saved
    finished(again)
    finished(start(store, tmp_path / "peaceful", 1, [1, 1], steps=41))
    told, peaceful = contents(tmp_path / "told"), contents(tmp_path / "peaceful")
    assert told.pop("history") == peaceful.pop("history")
    for name, values in peaceful.items():
        np.testing.assert_array_equal(values, told[name], err_msg=name)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.killed
def test_meshes_and_processes_agree(store, tmp_path):
    """1, 2, 4, 8 devices, and 2 processes of 4, give the same losses over 50 steps."""
    losses = {}
    for devices, mesh in ((1, [1, 1]), (2, [2, 1]), (4, [2, 2]), (8, [2, 4])):
        folder = tmp_path / str(devices)
        finished(start(store, folder, devices, mesh, steps=51, log_every=1))
        losses[devices] = contents(folder)
    port = free_port()
    workers = [
        start(store, tmp_path / "two", 4, [4, 2], steps=51, log_every=1, process=i, processes=2, port=port)
        for i in range(2)
    ]
    for worker in workers:
        finished(worker)
    losses["2x4"] = contents(tmp_path / "two")
    want = losses[1]
    for name, got in losses.items():
        for a, b in zip(want["history"], got["history"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), (name, a["step"], a["run"])
        assert got.keys() == want.keys()
        for array, values in want.items():
            if array not in ("history", "1/form"):
                assert np.linalg.norm(values - got[array]) <= 1e-3 * np.linalg.norm(values), (name, array)
