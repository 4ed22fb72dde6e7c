"""The compiler options of a whole forward pass."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma import compiling


@pytest.fixture
def fresh():
    compiling.forward_options.cache_clear()
    yield
    compiling.forward_options.cache_clear()


def test_the_compiled_function_computes_the_same():
    x = jax.random.normal(jax.random.key(0), (64, 32))
    compiled = compiling.jit_forward(lambda x, power: jnp.sum((x @ x.T) ** power), static_argnames="power")
    np.testing.assert_allclose(compiled(x, power=2), compiled.__wrapped__(x, power=2), rtol=1e-5)


def test_options_that_this_xla_does_not_know_are_left_out(fresh, monkeypatch):
    monkeypatch.setattr(compiling, "_CPU", {"xla_no_such_option": "1"})
    assert compiling.forward_options() == {}
    assert compiling.jit_forward(lambda x: x + 1)(1) == 2


def test_other_backends_keep_their_defaults(fresh, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiling.forward_options() == {}


def test_decorating_starts_no_backend():
    code = (
        "from gemma.compiling import jit_forward; jit_forward(len); "
        "from jax._src import xla_bridge; raise SystemExit(bool(xla_bridge._backends))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
