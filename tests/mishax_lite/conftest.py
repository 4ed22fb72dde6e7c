"""Modules written on the spot, to be patched."""

import importlib.util
import itertools
import sys
import textwrap

import pytest

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path):
    """A function from source to a module that is imported from a file with it, under a name of its own."""
    names = []

    def make(source, name=None):
        name = name or f"mishax_lite_subject_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        names.append(name)
        spec.loader.exec_module(made)
        return made

    yield make
    for name in names:
        del sys.modules[name]
