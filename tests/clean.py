"""Environments that have this project's wheel and what it declares, and nothing else of the one that tests run in."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Builds the wheel in a folder, from a copy of the tree, where setuptools may leave folders."""
    ignored = shutil.ignore_patterns("__pycache__", "benchmarks/results")
    for name in ("mishax_lite", "gemma", "sae", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    process = subprocess.run([sys.executable, "-c", build], cwd=folder / "source", capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, site: Path, extras: Iterable[str] = ()) -> Path:
    """Lays out a wheel's files in a folder as pip does, with links to the packages that it and these extras need.

    Raises:
        AssertionError: if a package of this environment is not one that the wheel admits.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (metadata,) = site.glob("*.dist-info/METADATA")
    lines = metadata.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    requires = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    installed = importlib.metadata.distributions()
    owners = Counter(top for other in installed for top in {f.parts[0] for f in other.files or ()})
    for distribution in _needed(requires, set(extras)):
        files = [f for f in distribution.files or () if f.parts[0] != ".." and f.suffix != ".pth"]
        # A folder of several distributions, such as `google`, is linked file by file.
        for place in {f.parts[0] if owners[f.parts[0]] == 1 else str(f) for f in files}:
            target = Path(distribution.locate_file(place))
            if target.exists():
                (site / place).parent.mkdir(parents=True, exist_ok=True)
                (site / place).symlink_to(target)
    return site


def _needed(requires: Iterable[str], extras: set[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that these requirements need, and those that they need in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen = set()

    def visit(requires: Iterable[str], extras: set[str]) -> None:
        for requirement in map(Requirement, requires):
            environments = [{"extra": extra} for extra in extras | {""}]
            if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
                continue
            name = canonicalize_name(requirement.name)
            if (name, frozenset(requirement.extras)) in seen:
                continue
            seen.add((name, frozenset(requirement.extras)))
            found[name] = importlib.metadata.distribution(name)
            assert requirement.specifier.contains(found[name].version, prereleases=True), requirement
            visit(found[name].requires or (), set(requirement.extras))

    visit(requires, extras)
    return list(found.values())


def python(site: Path, cwd: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code with the packages of such a folder alone: `-S` leaves out those of this environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XLA_FLAGS"))}
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
