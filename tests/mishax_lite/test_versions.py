"""Which versions of JAX are admitted and tested, and what is said of others."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mishax_lite import UntestedVersionWarning
from mishax_lite._versions import TESTED, warn_if_untested

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements-oldest.lock", "requirements.lock", "requirements-newest.lock")


def locked(lock: str) -> list[str]:
    """The versions of JAX that a lock pins; several if they differ between Pythons or platforms."""
    return re.findall(r"(?m)^jax==(\S+)", (ROOT / lock).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("lock", "version"), list(zip(LOCKS, TESTED, strict=True)))
def test_locks_pin_the_versions_that_are_named_as_tested(lock, version):
    assert locked(lock) == [version], (
        f"after `make locks`, TESTED in mishax_lite/_versions.py has to name {locked(lock)}"
    )


def test_setup_admits_the_oldest_tested_version_and_all_above():
    bounds = re.findall(r'"jax(?:\[tpu\])?([<>=][^"]*)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert bounds == [f">={TESTED[0]}"] * 2  # install_requires, and the extra `tpu`


@pytest.mark.parametrize("version", [*TESTED, "0.9.1", "0.11.2", "0.12.7", "0.12.1.dev20261101", "0.12.0rc1"])
def test_versions_between_the_oldest_and_the_newest_pass_in_silence(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_untested(version)


@pytest.mark.parametrize("version", ["0.13.0", "0.13.0.dev20261101", "0.100", "1.0.0", "0.8.1", "0.7.2", "unknown"])
def test_versions_outside_are_warned_of_by_the_names_of_those_tested(version):
    with pytest.warns(UntestedVersionWarning) as records:
        warn_if_untested(version)
    assert len(records) == 1
    message = str(records[0].message)
    assert all(tested in message for tested in TESTED)
    assert f"this is JAX {version}." in message
    assert "pip install 'jax>=0.8.2,<0.13'" in message


def imported(version: str, *before: str) -> subprocess.CompletedProcess:
    """Imports mishax_lite twice in a process of its own, with a JAX that says that it is of this version."""
    program = "\n".join(
        ["import importlib, sys, jax", f"jax.__version__ = {version!r}", *before]
        + ["import mishax_lite", "from mishax_lite import hooks", "import mishax_lite"]
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_importing_warns_once_at_the_import_of_the_user():
    result = imported("0.13.0")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("UntestedVersionWarning") == 1
    assert result.stderr.startswith("<string>:3: UntestedVersionWarning: mishax_lite is tested with JAX")


def test_importing_is_silent_with_a_tested_version():
    result = imported(TESTED[-1])
    assert (result.returncode, result.stderr) == (0, "")


def test_the_warning_comes_before_an_import_that_a_new_jax_breaks():
    result = imported("0.13.0", "sys.modules['mishax_lite._jax_internals'] = None")
    assert result.returncode == 1
    warned, failed = (result.stderr.find(text) for text in ("UntestedVersionWarning", "Traceback"))
    assert 0 <= warned < failed


def test_the_readmes_filter_silences_the_warning():
    readme = (ROOT / "mishax_lite" / "README.md").read_text(encoding="utf-8")
    (filtering,) = re.findall(r"`(warnings\.filterwarnings\(.*?\))`", readme)
    result = imported("0.13.0", "import warnings", filtering)
    assert (result.returncode, result.stderr) == (0, "")
