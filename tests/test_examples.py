"""Every public name has an example in its docstring, and all examples give what they say.

They run in a new folder, with names that a reader has after the first lines of a README: `np`, `jnp`, `jax`, the
packages, `model`, `sequences`, `store` and `autoencoder`.
"""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
import sae

PACKAGES = {"mishax_lite": mishax_lite, "gemma": gemma, "sae": sae}
# Modules among the public names say in their own docstrings what they have.
NAMES = [
    f"{package}.{name}"
    for package, module in PACKAGES.items()
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
]
SITE = "layer_1/resid_post"


@pytest.fixture(scope="module")
def names(tiny, tmp_path_factory, one_device):
    """The names that examples are written against."""
    sequences = sae.text.sample(tiny, 64).take(slice(0, 8))
    store = sae.harvest(tiny, sequences, SITE, tmp_path_factory.mktemp("examples") / "store", progress=False)
    run = sae.short_run(SITE, 64, 200, batch_size=64, l0_target=8)
    result = sae.train(run, store, one_device, progress=False)
    return {
        **PACKAGES,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "model": tiny,
        "sequences": sequences,  # sae.text.Sequences; `sequences.tokens` is int32 [8, 64]
        "store": store,
        "autoencoder": result.autoencoder,
    }


def doctests(name, names=None):
    """The examples of a name, those of its methods included."""
    package, _, attribute = name.partition(".")
    value = getattr(PACKAGES[package], attribute)
    return doctest.DocTestFinder().find(value, name, module=False, globs=dict(names or {}))


def has_example(name):
    """Whether a name's own docstring has an example that is not skipped."""
    docstring_test = next((test for test in doctests(name) if test.name == name), None)
    examples = [] if docstring_test is None or "Example:" not in docstring_test.docstring else docstring_test.examples
    return any(not example.options.get(doctest.SKIP) for example in examples)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # a few steps are no run
def test_a_public_name_has_an_example_that_gives_what_it_says(name, names, tmp_path, monkeypatch):
    assert has_example(name), f"{name} has no example"
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctests(name, names):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
