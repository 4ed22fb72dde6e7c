"""Which lock and which Python `make` takes, asked of make itself with interpreters that pretend to be others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def interpreter(path: Path, minor: int) -> Path:
    """Writes a program that runs Python code as this interpreter does, but says that it is Python 3.minor."""
    pretence = f"import sys; sys.version_info = (3, {minor}, 0); sys.executable = sys._base_executable = '{path}'; "
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretence}exec(sys.argv[2])" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs make without what a make that runs these tests has put into the environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("minor", "lock"),
    [(11, "requirements.lock"), (12, "requirements-newest.lock"), (13, "requirements-newest.lock")],
)
def test_the_python_that_is_named_decides_on_the_lock(tmp_path, minor, lock):
    python = interpreter(tmp_path / "python", minor)
    result = make("-n", "env", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert f"{python} -m venv --clear {tmp_path}/venv" in result.stdout, result.stderr
    assert result.stdout.count(f"--require-hashes -r {lock}\n") == 1


@pytest.mark.parametrize(("minor", "lock"), [(11, "requirements.lock"), (13, "requirements-newest.lock")])
def test_an_environment_keeps_its_python_until_another_is_named(tmp_path, minor, lock):
    own, other = interpreter(tmp_path / "venv/bin/python", minor), interpreter(tmp_path / "python", 12)
    result = make("-n", "test", f"VENV={tmp_path}/venv")
    assert f"{own} -m venv" in result.stdout, result.stderr  # it has no stamp yet
    assert f"-r {lock}\n" in result.stdout

    (tmp_path / f"venv/.stamp-3.{minor}").touch()
    assert "-m venv" not in make("-n", "test", f"VENV={tmp_path}/venv").stdout
    assert f"{other} -m venv" in make("-n", "test", f"VENV={tmp_path}/venv", f"PYTHON={other}").stdout


def test_a_python_that_only_pyenv_can_run_is_one(tmp_path):
    python = interpreter(tmp_path / "versions/python", 13)
    (tmp_path / "bin").mkdir()
    for name, lines in {
        "python3.13": ['[ "$PYENV_VERSION" = 3.13.9 ] || { echo "pyenv: command not found" >&2; exit 127; }']
        + [f'exec {python} "$@"'],
        "pyenv": ['[ "$1" = whence ] && echo 3.13.9'],
    }.items():
        (tmp_path / "bin" / name).write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    result = make("-n", "env", "PYTHON=python3.13", f"VENV={tmp_path}/venv", PATH=path)
    assert f"{python} -m venv" in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary-learning", "circuit-tracer", "saebench"])
def test_a_peer_has_an_environment_of_its_own_between_two_halves_of_ours(tmp_path, name):
    lines = make("-n", f"test-peers-{name}", f"VENV={tmp_path}/venv", f"PEERS_DIR={tmp_path}/run").stdout.splitlines()
    script, run = name.replace("-", "_"), f"{tmp_path}/run-{name}"
    halves = [line for line in lines if f"{script}_ours" in line or f"{script}_theirs" in line]
    ours = f"JAX_PLATFORMS=cpu {tmp_path}/venv/bin/python -m tests.peers.{script}_ours"
    assert halves[0] == f"{ours} write {run}" and halves[2] == f"{ours} read {run}" and len(halves) == 3
    assert halves[1].endswith(f" .venv-peers-{name}/bin/python tests/peers/{script}_theirs.py {run}")
    for half in ("ours", "theirs"):
        assert (ROOT / "tests" / "peers" / f"{script}_{half}.py").exists()


@pytest.mark.parametrize("name", ["too_old", "absent"])
def test_a_python_that_does_not_do_is_an_error_that_says_what_would(tmp_path, name):
    interpreter(tmp_path / "too_old", 10)
    result = make("env", f"PYTHON={tmp_path / name}", f"VENV={tmp_path}/venv")
    assert result.returncode == 2
    assert (
        f"make: {tmp_path / name} is not a Python 3.11 or newer; name one: make env PYTHON=python3.12" in result.stderr
    )
    assert not (tmp_path / "venv").exists()
