"""Eight CPU devices for all tests, set before JAX is imported; and what several tests use."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import numpy as np
import pytest
from jax.sharding import Mesh


@pytest.fixture(scope="session")
def golden():
    """The reference model of tests/data/gemma2_golden, as (gemma.Model, expected values by name)."""
    import gemma
    from tests.gemma import golden

    return gemma.Model(jax.tree.map(jax.numpy.asarray, golden.params()), golden.config()), golden.expected()


@pytest.fixture(scope="session")
def tiny():
    """The shipped model."""
    import gemma

    return gemma.load("gemma2-tiny")


@pytest.fixture
def meshes():
    """A function of (data, latent) to a mesh of so many devices."""

    def make(data: int, latent: int) -> Mesh:
        return Mesh(np.asarray(jax.devices()[: data * latent]).reshape(data, latent), ("data", "latent"))

    return make
