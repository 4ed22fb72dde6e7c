"""`modules`: what it refuses; the models that it takes have files of their own beside this one."""

import jax.numpy as jnp
import pytest

from mishax_lite import modules


def test_anything_else_is_refused():
    for model in (lambda x: x, jnp.ones(3), [1], dict):
        with pytest.raises(ValueError, match="expected a module of Flax linen, Flax nnx or Equinox; got"):
            modules(model)
    with pytest.raises(ValueError, match="the pattern must be a string; got list"):
        modules(lambda x: x, ["a"])
