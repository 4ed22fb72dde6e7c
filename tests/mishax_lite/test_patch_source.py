"""Where the source of a module comes from: lines, scripts, archives, import hooks and pytest's rewritten asserts."""

import ast
import importlib.machinery
import importlib.util
import inspect
import linecache
import os
import posixpath
import runpy
import subprocess
import sys
import traceback
import types
import zipfile

import pytest

import mishax_lite
from mishax_lite import Patch, PatchError, Rewrite

ROOT = mishax_lite.__path__[0].removesuffix("mishax_lite")

# What ends a line for `str.splitlines` and is inside of a line for Python; the last two only in strings and comments.
SEPARATORS = {
    "form feed": "\n\x0c\n",
    "in a string": 's = "a\x0cb\x0bc\x1cd\x85e\u2028f"\n',
    "comment": "# \u2028 \x1e\n",
}


@pytest.mark.parametrize("separator", SEPARATORS)
def test_lines_are_counted_as_python_counts_them(module, separator):
    text = SEPARATORS[separator]
    f, g = "def f(x):\n    y = x + 1\n    return y\n", "def g(x):\n    return 1 / x\n"
    source = f"{text}def a(x):\n    return x\n{text}\n{f}\n{g}"
    m, changed = module(source), module(source.replace("return y", "return -y"))
    patch = Patch(m, {"f": [Rewrite("x + 1", "tap('y', x + 2)")]})
    pin = lambda patch: patch.check().findings[0].pin  # noqa: E731
    assert pin(patch) != pin(Patch(changed, patch.edits))
    assert pin(patch) == pin(Patch(module(f), patch.edits))
    assert inspect.getsource(m.f) == f
    with patch:
        assert inspect.getsource(m.f) == "def f(x):\n    y = tap('y', x + 2)\n    return y\n"
        assert inspect.getsource(m.a) == "def a(x):\n    return x\n" and "return 1 / x" in inspect.getsource(m.g)
        with pytest.raises(ZeroDivisionError) as caught:
            m.g(0)
        assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "return 1 / x"
    assert inspect.getsource(m.f) == f
    assert "\n def f(x):\n-    y = x + 1\n+    y = tap('y', x + 2)\n     return y\n" in patch.diff()
    stale = Patch(m, {"f": [Rewrite("y = x + 3", "y = x")]}).check().findings[0]
    assert "nearest source, line" in stale.diff and "\n  y = x + 1\n" in stale.diff


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
@pytest.mark.parametrize("indent", ["    ", "\t"])
@pytest.mark.parametrize("head", ["", "\ufeff", "\x0c"])
def test_line_ends_tabs_and_marks(tmp_path, newline, indent, head):
    source = f"{head}def f(x):\n{indent}y = x + 1\n\n{indent}return y\n".replace("\n", newline)
    path = tmp_path / "subject.py"
    path.write_bytes(source.encode())
    spec = importlib.util.spec_from_file_location("subject", path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    with Patch(m, {"f": [Rewrite("y = x + 1", "y = x + 2\nif y:\n    y = y + 1")]}):
        assert m.f(1) == 4
        compile(inspect.getsource(m.f).lstrip("\x0c"), "again", "exec")
        assert inspect.getsource(m.f).endswith(f"{indent}return y\n")
    assert m.f(1) == 2


def test_a_pattern_may_hold_unusual_characters(module):
    m = module('def f(x):\n    s = "a\x0cb\u2028c"\n    y = x + 1\n    return y, s\n')
    edits = [Rewrite('s = "a\x0cb\u2028c"\ny = x + 1', 's = "d\x0ce\u2028f"\ny = x + 2')]
    with Patch(m, {"f": edits}):
        assert m.f(1) == (3, "d\x0ce\u2028f")
        assert len(linecache.getlines(m.__file__)) == 4
        assert inspect.getsource(m.f).endswith("y = x + 2\n    return (y, s)\n") or "y = x + 2" in inspect.getsource(
            m.f
        )


PROGRAM = """
import sys
from mishax_lite import Patch, Rewrite

def f(x):
    return x + 1

with Patch(sys.modules["__main__"], {"f": [Rewrite("x + 1", "x + 100")]}):
    print(f(1))
print(f(1))
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder with PROGRAM as a file, a package, a folder and an archive."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("program.py", "no_ending", "package/__init__.py", "package/__main__.py", "folder/__main__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if "__init__" in name else PROGRAM)
    with zipfile.ZipFile(tmp_path / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    return tmp_path


@pytest.mark.parametrize("name", ["program", "package"])
def test_functions_of_a_module_that_runs_by_dash_m(programs, capsys, name):
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out.split() == ["101", "2"]


@pytest.mark.parametrize("name", ["program.py", "no_ending", "folder", "archive.pyz"])
def test_functions_of_a_script(programs, capsys, name):
    runpy.run_path(str(programs / name), run_name="__main__")
    assert capsys.readouterr().out.split() == ["101", "2"]


@pytest.mark.parametrize(
    "arguments", [["-m", "program"], ["program.py"], ["-m", "pdb", "-c", "continue", "-c", "quit", "program.py"]]
)
def test_functions_of_a_script_in_a_process_of_its_own(programs, arguments):
    env = {**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    process = subprocess.run(command, cwd=programs, env=env, capture_output=True, text=True, check=False)
    printed = [line for line in process.stdout.splitlines() if line.isdigit()]
    assert printed[:2] == ["101", "2"], process.stdout + process.stderr


def test_a_module_without_a_loader(tmp_path):
    source = PROGRAM.split("with Patch")[0]
    (tmp_path / "program.py").write_text(source)
    m = types.ModuleType("program")
    m.__file__ = str(tmp_path / "program.py")
    exec(compile(source, m.__file__, "exec"), vars(m))
    with Patch(m, {"f": [Rewrite("x + 1", "x + 100")]}):
        assert m.f(1) == 101
    assert m.f(1) == 2


def test_a_module_of_the_standard_library_that_is_frozen_into_python():
    assert posixpath.basename.__code__.co_filename == "<frozen posixpath>"
    with Patch(posixpath, {"basename": [Rewrite("return p[i:]", "return p[i:] + '!'")]}):
        assert os.path.basename("a/b") == "b!"
    assert os.path.basename("a/b") == "b"


HOOKED = """
def f(x):
    y = x + 1
    return y

class Block:
    def method(self, x):
        assert x, "x is needed"
        return x + 1
"""


def import_with(tmp_path, transform):
    """Imports HOOKED as an import hook does that changes the syntax tree."""

    class Loader(importlib.machinery.SourceFileLoader):
        def source_to_code(self, data, path, *, _optimization=-1):
            tree = ast.fix_missing_locations(transform(ast.parse(data)))
            return compile(tree, path, "exec", dont_inherit=True, optimize=_optimization)

        def set_data(self, path, data, **_):
            pass

    (tmp_path / "hooked.py").write_text(HOOKED)
    spec = importlib.util.spec_from_loader("hooked", Loader("hooked", str(tmp_path / "hooked.py")))
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


def test_an_import_hook_that_decorates_functions(tmp_path):
    """As jaxtyping's does: the functions are unchanged, on lines that may differ."""

    def transform(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                decorator = ast.parse("(lambda f: (lambda *a: f(*a)))", mode="eval").body
                node.decorator_list.append(ast.copy_location(decorator, tree.body[0]))
        return tree

    m = import_with(tmp_path, transform)
    edits = [Rewrite("x + 1", "x + 100")]
    with Patch(m, {"f": edits, "Block.method": edits}):
        assert (m.f(1), m.Block().method(1)) == (101, 101)
    assert (m.f(1), m.Block().method(1)) == (2, 2)


def test_an_import_hook_that_changes_functions_is_named_in_the_refusal(tmp_path):
    def transform(tree):
        tree.body[0].body.insert(0, ast.parse("x = x + 0").body[0])
        return tree

    m = import_with(tmp_path, transform)
    edits = [Rewrite("x + 1", "x + 100")]
    with pytest.raises(PatchError, match=r"another tool .* changed the code"):
        Patch(m, {"f": edits, "Block.method": edits}).install()
    assert m.f(1) == 2
    with Patch(m, {"Block.method": edits}):  # which the hook left alone
        assert m.Block().method(1) == 101


# This module is one of pytest's own: the assert statements below are rewritten.
def asserting(x):
    y = x + 1
    assert y < 50, "too much"
    return y


def test_functions_of_a_test_module_that_pytest_rewrote():
    m = sys.modules[__name__]
    assert type(m.__loader__).__module__ == "_pytest.assertion.rewrite"
    with Patch(m, {"asserting": [Rewrite("y = x + 1", "y = x + 2\nassert y != 4")]}):
        assert asserting(1) == 3
        with pytest.raises(AssertionError, match="assert 4 != 4"):
            asserting(2)
        with pytest.raises(AssertionError, match="too much\nassert 52 < 50"):
            asserting(50)
    assert asserting(2) == 3


TEST_MODULE = """
import sys
from mishax_lite import Patch, Rewrite

def f(x):
    y = x + 1
    assert y != 5, "five"
    return y

def test_patch():
    with Patch(sys.modules[__name__], {"f": [Rewrite("x + 1", "x + 2")]}):
        assert f(1) == 3
        try:
            f(3)
        except AssertionError as error:
            assert EXPECTED in str(error), error
        else:
            raise ValueError("no assertion")
    assert f(1) == 2
"""


@pytest.mark.parametrize("arguments", [["--import-mode=prepend"], ["--import-mode=importlib"], ["--assert=plain"]])
def test_a_test_module_in_a_run_of_pytest(tmp_path, arguments):
    expected = "five" if "--assert=plain" in arguments else "five\nassert 5 != 5"
    (tmp_path / "test_it.py").write_text(TEST_MODULE.replace("EXPECTED", repr(expected)))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = {**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", *arguments, "test_it.py"]
    for _ in range(2 if "prepend" in arguments[0] else 1):  # the second run has the code from pytest's cache
        process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr
