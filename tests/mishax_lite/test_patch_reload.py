"""Patches of modules that are loaded again: `importlib.reload`, IPython's autoreload, a cell that runs again."""

import __future__

import ast
import importlib
import inspect
import linecache
import os
import re
import sys
import textwrap
import types

import pytest

from mishax_lite import Patch, PatchError, Rewrite

SOURCE = """
def f(x):
    return x + 1

class Block:
    def __call__(self, x):
        return x + 1

    def closure(self):
        def inner(x):
            return x + 1
        return inner
"""
NEW = "\n\n" + re.sub(r"( +)return x \+ 1", r"\1z = 1\n\1return x + 1 + z", SOURCE)
EDITS = {member: [Rewrite("x + 1", "x + 100")] for member in ("f", "Block.__call__", "Block.closure.inner")}


@pytest.fixture
def subject(module, tmp_path, monkeypatch):
    """A module that can be loaded again, from source given as a string."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two sources of one second and size have the same pyc
    monkeypatch.syspath_prepend(tmp_path)
    return module(SOURCE)


def write(m, source):
    with open(m.__file__, "w", encoding="utf-8") as file:
        file.write(source)
    linecache.checkcache(m.__file__)


def values(m):
    return m.f(1), m.Block()(1), m.Block().closure()(1)


@pytest.mark.parametrize(("source", "bare"), [(SOURCE, 2), (NEW, 3)])
def test_a_reload_takes_a_patch_off_and_install_puts_it_in_again(subject, source, bare):
    patch = Patch(subject, EDITS)
    patch.install()
    old = subject.f, subject.Block(), subject.Block().closure()
    assert values(subject) == (101,) * 3 and patch.installed
    write(subject, source)
    importlib.reload(subject)
    assert values(subject) == (bare,) * 3 and not patch.installed
    patch.install()
    assert values(subject) == (99 + bare,) * 3 and patch.installed
    patch.uninstall()
    assert values(subject) == (bare,) * 3 and not patch.installed
    assert [function(1) for function in old] == [2] * 3  # held by others from before the reload


def test_a_reload_within_the_context(subject):
    held = subject.f
    with Patch(subject, EDITS) as patch:
        importlib.reload(subject)
        assert held(1) == 101 and subject.f(1) == 2
    assert held(1) == subject.f(1) == 2 and not patch.installed


def test_the_code_object_that_the_reload_made_is_put_back(subject):
    patch = Patch(subject, EDITS)
    patch.install()
    held, first = subject.f, inspect.unwrap(subject.f)
    importlib.reload(subject)
    code = subject.f.__code__
    patch.install()
    made_meanwhile = subject.Block().closure()
    assert held(1) == 101  # its source is the same
    patch.uninstall()
    assert subject.f.__code__ is code and made_meanwhile(1) == 2
    assert first(1) == 2


def test_a_patch_after_a_reload_with_new_source(subject):
    held = subject.f
    write(subject, NEW)
    importlib.reload(subject)  # before anything was patched: nobody has the source of `held`
    with Patch(subject, EDITS):
        assert values(subject) == (102,) * 3 and held(1) == 2
    assert values(subject) == (3,) * 3


def test_pins_and_findings_are_of_the_source_that_was_loaded(subject):
    patch = Patch(subject, {"f": [Rewrite("x + 1", "x + 2")]})
    first = patch.check().findings[0]
    write(subject, NEW)
    assert patch.check().findings[0] == first  # on disk only
    importlib.reload(subject)
    second = patch.check().findings[0]
    assert second.pin != first.pin and (first.lines, second.lines) == ((3,), (6,))
    write(subject, SOURCE.replace("x + 1", "x - 1"))
    importlib.reload(subject)
    with pytest.raises(PatchError, match="stale"):
        patch.install()
    assert values(subject) == (0,) * 3


@pytest.mark.parametrize("on_disk", [NEW, "def f(:\n", SOURCE.replace("x + 1", "x + 3"), None])
def test_a_file_that_changes_without_a_reload_changes_nothing(subject, on_disk):
    patch, other = Patch(subject, EDITS), Patch(subject, {"f": [Rewrite("return $v", "return -$v")]})
    patch.install()
    if on_disk is None:
        os.remove(subject.__file__)
    else:
        write(subject, on_disk)
    with other:
        assert patch.installed and values(subject) == (-101, 101, 101)
        assert "-(x + 100)" in inspect.getsource(subject.f)
    patch.uninstall()
    assert values(subject) == (2,) * 3


def test_a_file_that_is_no_python_any_more_is_said_to_have_changed(subject):
    write(subject, "def f(:\n")
    with pytest.raises(ValueError, match=r"source of module .* does not compile .*afresh"):
        Patch(subject, EDITS).check()


def test_a_reload_that_fails_leaves_the_patch_in(subject):
    patch = Patch(subject, EDITS)
    patch.install()
    write(subject, "def f(:\n")
    with pytest.raises(SyntaxError):
        importlib.reload(subject)
    assert patch.installed and values(subject) == (101,) * 3
    write(subject, NEW)
    assert patch.installed
    importlib.reload(subject)
    assert not patch.installed and values(subject) == (3,) * 3
    patch.uninstall()
    with patch:
        assert values(subject) == (102,) * 3


def test_sources_may_come_and_go(subject):
    patch, held = Patch(subject, EDITS), []
    for source, bare in ((NEW, 3), (SOURCE, 2), (NEW, 3), (SOURCE, 2)):
        patch.install()
        held.append((subject.f, subject.f(1) - 99))
        write(subject, source)
        importlib.reload(subject)
        assert values(subject) == (bare,) * 3 and not patch.installed
    patch.uninstall()
    assert all(function(1) == bare for function, bare in held)


def test_other_patches_are_off_after_a_reload_until_they_are_installed_again(subject):
    first, second = Patch(subject, EDITS), Patch(subject, {"f": [Rewrite("return $v", "return -$v")]})
    first.install()
    second.install()
    importlib.reload(subject)
    second.install()
    assert (first.installed, second.installed, subject.f(1)) == (False, True, -2)
    first.install()
    assert subject.f(1) == -101
    second.uninstall()
    first.uninstall()
    assert values(subject) == (2,) * 3


def test_a_module_that_its_loader_executes_again(subject):
    """As tools do that do not go by `importlib.reload`: the module's spec stays the same."""
    patch = Patch(subject, EDITS)
    patch.install()
    write(subject, NEW)
    subject.__spec__.loader.exec_module(subject)
    assert not patch.installed and values(subject) == (3,) * 3
    with patch:
        assert values(subject) == (102,) * 3
    assert values(subject) == (3,) * 3


def in_place(m, source, alone):
    """What IPython's autoreload does: old functions get new code, compiled with the module or (`alone`) by itself."""
    tree = ast.parse(source)
    for node in tree.body:
        target = vars(m)[node.name]
        pairs = [(target, node)] if isinstance(node, ast.FunctionDef) else []
        pairs += [(vars(target)[n.name], n) for n in getattr(node, "body", []) if node.name == "Block"]
        for function, definition in pairs:
            if alone:
                text = ast.unparse(definition)
                if node.name == "Block":
                    text = f"class __autoreload_class__:\n{textwrap.indent(text, '    ')}"
                code = compile(ast.parse(text), m.__file__, "exec", dont_inherit=True)
            else:
                code = compile(tree, m.__file__, "exec", dont_inherit=True)
            variables = dict(vars(m))
            exec(code, variables)
            scope = variables.get("__autoreload_class__" if alone else node.name) if node.name == "Block" else None
            function.__code__ = (getattr(scope, definition.name) if scope else variables[definition.name]).__code__


@pytest.mark.parametrize("alone", [False, True])
def test_functions_that_get_new_code_in_place(subject, alone):
    patch = Patch(subject, EDITS)
    patch.install()
    held = subject.f
    for source, bare in ((NEW, 3), (NEW.replace("z = 1", "z = 7"), 9)):
        write(subject, source)
        in_place(subject, source, alone)
        assert values(subject) == (bare,) * 3 and not patch.installed
        patch.install()
        assert subject.f is held and values(subject) == (99 + bare,) * 3
        patch.uninstall()
        assert values(subject) == (bare,) * 3
        patch.install()


@pytest.mark.parametrize("mode", ["2", "2 --full"])
def test_autoreload_of_ipython(subject, mode):
    shells = pytest.importorskip(
        "IPython.core.interactiveshell", reason="IPython is not installed: pip install ipython"
    )
    version = importlib.import_module("IPython").version_info
    if "--full" in mode and version < (9,):
        pytest.skip(f"IPython {version} has one way to reload, the full one")
    shell = shells.InteractiveShell()
    run = lambda cell: shell.run_cell(cell).raise_error()  # noqa: E731
    run("%load_ext autoreload")
    run(f"%autoreload {mode}")
    run(f"import {subject.__name__}")
    patch, held = Patch(subject, EDITS), subject.f
    patch.install()
    for step, (source, bare) in enumerate([(NEW, 3), (NEW.replace("z = 1", "z = 7"), 9)], 1):
        write(subject, source)
        now = os.stat(subject.__file__).st_mtime
        os.utime(subject.__file__, (now + 10 * step, now + 10 * step))
        run("pass")
        assert values(subject) == (bare,) * 3 and held(1) == bare and not patch.installed
        patch.install()
        assert values(subject) == (99 + bare,) * 3 and held(1) == 99 + bare
        patch.uninstall()
        assert values(subject) == (bare,) * 3 and held(1) == bare
        patch.install()


@pytest.fixture
def notebook(monkeypatch):
    """A module without a file, and a function that runs a cell in it, as IPython does."""
    m = types.ModuleType("__main__")
    names = []

    def run(text, flags=0):
        name = f"<mishax_lite cell {len(names)}>"
        names.append(name)
        linecache.cache[name] = (len(text), None, [line + "\n" for line in text.split("\n")], name)
        exec(compile(text, name, "exec", flags, dont_inherit=True), vars(m))

    yield m, run
    for name in names:
        linecache.cache.pop(name, None)


def test_functions_of_a_notebook(notebook):
    m, run = notebook
    run("def decorated(g):\n    def wrapper(*args):\n        return g(*args)\n    return wrapper")
    run("x = 3\n\ndef f(x):\n    y = x + 1\n    return y\n\ng = lambda x: x + 1")
    run("@decorated\ndef h(x):\n    return x + 1")
    edits = [Rewrite("x + 1", "tap('y', x + 100)")]
    patch, other = Patch(m, {"f": edits, "g": edits}), Patch(m, {"h": edits})
    with patch, other:
        assert (m.f(1), m.g(1), m.h(1)) == (101, 101, 101) and patch.installed and other.installed
        assert "y = tap('y', x + 100)" in inspect.getsource(m.f)
    assert (m.f(1), m.g(1), m.h(1)) == (2, 2, 2) and not patch.installed
    assert "y = x + 1" in inspect.getsource(m.f)
    with pytest.raises(ValueError, match="f, h of '__main__' were typed into 2 cells; make a Patch for each"):
        Patch(m, {"f": edits, "h": edits}).check()
    with pytest.raises(ValueError, match="no function nobody"):
        Patch(m, {"nobody": edits}).check()


def test_a_cell_that_runs_again_is_a_reload(notebook):
    m, run = notebook
    run("def f(x):\n    return x + 1")
    patch = Patch(m, {"f": [Rewrite("x + 1", "x + 100")]})
    patch.install()
    held = m.f
    run("def f(x):\n    z = 1\n    return x + 1 + z")
    assert not patch.installed and (m.f(1), held(1)) == (3, 101)
    patch.install()
    assert patch.installed and m.f(1) == 102
    patch.uninstall()
    assert not patch.installed and (m.f(1), held(1)) == (3, 2)


def test_a_cell_has_the_future_features_of_the_cells_before_it(notebook):
    m, run = notebook
    run("def f(x: unknown_name):\n    return x + 1", __future__.annotations.compiler_flag)
    with Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}):
        assert m.f(1) == 3 and m.f.__annotations__ == {"x": "unknown_name"}
