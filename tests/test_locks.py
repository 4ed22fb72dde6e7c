"""Each lock has, with hashes, all that setup.py asks of it, in versions that setup.py admits."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def declared():
    """By extra, what setup.py asks for; under "" what it always asks for."""
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        patch.setattr(setuptools, "setup", lambda **arguments: calls.append(arguments))
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return {"": calls[0]["install_requires"], **calls[0]["extras_require"]}


def pins(lock):
    """By name, the versions that a lock has: more than one where markers choose; each entry has its hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / lock).read_text(encoding="utf-8").strip()):
        name, version = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", entry).groups()
        assert "--hash=sha256:" in entry, f"{lock}: {name}"
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ["test"]),
        ("requirements-newest.lock", ["test"]),
        ("requirements-oldest.lock", ["test"]),
        ("requirements-tpu.lock", ["tpu", "launch"]),
    ],
)
def test_a_lock_has_what_setup_asks_for(declared, lock, extras):
    locked = pins(lock)
    for requirement in map(Requirement, [line for extra in ("", *extras) for line in declared[extra]]):
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert versions and all(map(requirement.specifier.contains, versions)), f"{lock}: {requirement}, {versions}"


PEERS = re.findall(r"(?m)^peer-(\S+) := (\S+)==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "package", "version"), PEERS)
def test_the_lock_of_a_peer_has_the_peer_and_the_torch_that_make_names(name, package, version):
    locked = pins(f"tests/peers/{name}.lock")
    (torch,) = re.findall(r"(?m)^TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert locked[canonicalize_name(package)] == [version] and locked["torch"] == [torch]


def test_tests_have_what_every_launch_has(declared):
    """So that an extra without which a launch does not run is in the locks."""
    parts = {line for extra in ("chat", "pages", "tensorboard") for line in declared[extra]}
    assert parts <= set(declared["launch"]) <= set(declared["test"])
    assert not {Requirement(line).name for line in declared["launch"]} & {Requirement(r).name for r in declared[""]}
