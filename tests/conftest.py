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
    from tests.gemma import golden

    return golden.load(golden.GEMMA_2)


@pytest.fixture(scope="session")
def golden_3():
    """The same of tests/data/gemma3_golden: QK-norm, one key/value head, two RoPE bases, stretched global positions."""
    from tests.gemma import golden

    return golden.load(golden.GEMMA_3)


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
