"""The wheel: what it has, and that launches run from it in a folder without a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("evaluate", "explore", "generate", "harvest", "inspect-store", "scope", "train")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's files in a folder, as pip lays them out; built from a copy, where setuptools may leave folders."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "benchmarks/results")
    for name in ("mishax_lite", "gemma", "sae", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path, command: str, *flags: str) -> subprocess.CompletedProcess:
    """A console command, as pip's script for it runs it."""
    script = f"import sys; sys.argv[0] = {command!r}; from mishax_experiments.commands import main; main()"
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_wheel_has_the_packages_with_their_data_and_no_benchmarks(installed):
    packages = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert packages == {"mishax_lite", "gemma", "sae", "mishax_experiments"}
    assert not [path for path in (installed / "mishax_experiments").iterdir() if path.is_dir()]
    for name in ("gemma", "sae", "mishax_lite"):
        for file in (ROOT / name).rglob("*"):
            # Beside code: the shipped model with its text and licences, templates of pages.
            if file.is_file() and "__pycache__" not in file.parts and file.name != "README.md":
                assert (installed / name / file.relative_to(ROOT / name)).exists(), file
    (info,) = installed.glob("*.dist-info")
    entries = (info / "entry_points.txt").read_text()
    assert entries.split("\n")[1:-1] == [f"mishax-{name} = mishax_experiments.commands:main" for name in COMMANDS]


def test_every_module_is_a_command_and_says_which_flags_it_has(installed, tmp_path):
    from experiments import commands

    assert {name.replace("_", "-") for name in commands.LAUNCHES} == set(COMMANDS)
    done = run(installed, tmp_path, "/bin/mishax-inspect-store", "--help")
    assert done.returncode == 1 or done.returncode == 0
    assert "mishax-inspect-store --store_dir=runs/store --verify" in done.stdout
    assert "--[no]verify" in done.stdout and "--store_dir" in done.stdout and "python -m" not in done.stdout
    refused = run(installed, tmp_path, "/bin/mishax-harvest", "--store_dir=")
    assert refused.returncode == 2 and refused.stderr.startswith("error: --store_dir is empty")
    unknown = run(installed, tmp_path, "/bin/mishax-harvst")
    assert unknown.returncode == 1 and "no launch 'harvst'" in unknown.stderr


def test_a_launch_from_the_wheel(installed, tmp_path):
    small = ("--sites=layer_0/resid_pre", "--length=16", "--max_sequences=8", "--store_dir=store")
    done = run(installed, tmp_path, "mishax-harvest", *small)
    assert done.returncode == 0, done.stderr
    assert "store: " in done.stdout and "tokens at layer_0/resid_pre; left out: special tokens" in done.stdout
    assert (tmp_path / "store" / "manifest.json").exists()
