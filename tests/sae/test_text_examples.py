"""The examples in docstrings of `sae.text` give what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import sae.text

MODULES = [name for _, name, _ in pkgutil.iter_modules(sae.text.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"sae.text.{name}"))
    assert result.failed == 0


def test_every_public_function_has_one():
    for name in sae.text.__all__:
        function = getattr(sae.text, name)
        if inspect.isfunction(function):
            tests = doctest.DocTestFinder(recurse=False).find(function, name)
            assert any(test.examples for test in tests), f"sae.text.{name} has no example"
