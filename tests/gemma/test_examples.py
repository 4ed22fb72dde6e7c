"""The examples of functions that are no public names of a package give what they say."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from gemma.tokenizer import chat_methods
from mishax_lite import applying, casting, compiling, hashing, whole_files

FUNCTIONS = [
    name for name, value in vars(gemma.sites).items() if inspect.getmodule(value) is gemma.sites and name[0] != "_"
]
MODULES = (applying, casting, chat_methods, compiling, hashing, whole_files)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_sites_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(gemma.sites, name))


@pytest.mark.parametrize("module", [gemma.sites, *MODULES], ids=lambda module: module.__name__)
def test_examples_give_what_they_say(module, tiny):
    names = {"gemma": gemma, "jax": jax, "jnp": jnp, "mishax_lite": mishax_lite, "model": tiny, "np": np}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert result.attempted and not result.failed
