"""Tells two models apart by a sha256 over parameters and configuration."""

import dataclasses
from typing import Any

from gemma.configs import Config
from mishax_lite import hashing


def fingerprint(config: Config, params: Any) -> str:
    """Returns a sha256, in hex, over the parameters and the whole configuration except its name.

    The name may be that of a folder, and a copied model is the same model. The dtype of the parameters counts, that of
    the activations does not.

    Args:
        config: the model's configuration.
        params: its parameters.

    Raises:
        ValueError: for parameters without concrete values, as within `jax.jit`.
    """
    constants = {key: value for key, value in dataclasses.asdict(config).items() if key != "name"}
    return hashing.fingerprint(params, constants)
