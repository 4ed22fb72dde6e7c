"""`python -m mishax_lite`, and what importing the package needs."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mishax_lite
from mishax_lite.__main__ import main

ROOT = Path(mishax_lite.__file__).parent.parent

SUBJECT = """
class Block:
    def __call__(self, x):
        y = x + 1
        return y * 2


def other(x):
    return x
"""
PATCHES = """
import {subject}
from mishax_lite import Patch, Rewrite

first = Patch({subject}, {{"Block.__call__": [Rewrite("x + 1", "tap('y', x + 1)")]}})
more = [Patch({subject}, {{"Block.__call__": [Rewrite("return $v", "return tap('out', $v)")]}})]
first.install()
"""


@pytest.fixture
def subject(module):
    return module(SUBJECT).__name__


def test_check_reports_every_edit(module, subject, capsys):
    patches = module(PATCHES.format(subject=subject))
    patches.first.uninstall()
    assert main(["check", patches.__name__]) == 0
    text = capsys.readouterr().out
    assert text.count("ok ") == 2 and "Block.__call__, edit 0: line 4" in text and "pin" in text


def test_check_of_a_module_that_installs_stale_patches(tmp_path):
    """All stale edits at once, although importing the module would stop at the first; from a shell."""
    (tmp_path / "upstream.py").write_text(SUBJECT)
    (tmp_path / "my_patches.py").write_text(
        textwrap.dedent(
            """
            import upstream
            from mishax_lite import Patch, Rewrite

            Patch(upstream, {"Block.__call__": [Rewrite("x + 2", "x")]}).install()
            returns = [Rewrite("return y", "return x"), Rewrite("return $v", "return tap('o', $v)")]
            Patch(upstream, {"other": returns}).install()
            """
        )
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = lambda *args: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "mishax_lite", *args], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    process = run("check", "my_patches")
    assert process.returncode == 1, process.stderr
    assert process.stdout.count("stale ") == 2 and process.stdout.count("ok ") == 1
    assert "+x + 1" in process.stdout and "-x + 2" in process.stdout
    process = run("show", "my_patches", "other")
    assert process.returncode == 1 and "+    return tap('o', x)" in process.stdout and "stale" in process.stderr


def test_show_prints_a_member_as_a_diff(module, subject, capsys):
    patches = module(PATCHES.format(subject=subject))
    patches.first.uninstall()
    assert main(["show", patches.__name__]) == 0
    text = capsys.readouterr().out
    assert "\n-        y = x + 1\n-        return y * 2\n" in text
    assert "\n+        y = tap('y', x + 1)\n+        return tap('out', y * 2)\n" in text
    assert main(["show", patches.__name__, "Block.__call__"]) == 0
    assert capsys.readouterr().out == text
    assert main(["show", patches.__name__, "nobody"]) == 2
    assert "they edit: Block.__call__" in capsys.readouterr().err


def test_nothing_to_check_is_said(subject, capsys):
    assert main(["check", subject]) == 2
    assert "no patches" in capsys.readouterr().err
    assert main(["check", "no_such_module_anywhere"]) == 2
    assert "cannot import" in capsys.readouterr().err


def test_imports_nothing_but_jax_and_the_standard_library():
    """What JAX itself imports is allowed: the modules are compared with those of a process that imports only jax."""
    code = (
        "import sys, jax, jax.numpy, jax.custom_derivatives, jax.extend.core.primitives, jax.extend.linear_util\n"
        "import jax.extend.source_info_util, jax.interpreters.mlir, numpy, argparse\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import mishax_lite, mishax_lite.__main__\n"
        "new = {name.split('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)\n"
        "print(*sorted(new))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["mishax_lite"]


def test_private_jax_is_confined_to_one_file():
    for path in Path(mishax_lite.__file__).parent.glob("*.py"):
        if path.name != "_jax_internals.py":
            assert "jax._src" not in path.read_text(encoding="utf-8"), path
