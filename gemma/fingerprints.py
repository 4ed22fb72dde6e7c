"""What tells two models apart: sha256 over parameters and configuration."""

import dataclasses
from typing import Any

from gemma.configs import Config
from mishax_lite import hashing


def fingerprint(config: Config, params: Any) -> str:
    """Returns a sha256, in hex, over the parameters and all of the configuration but its name.

    The name may come from a folder's, and a model that is copied is the same one. The dtype of the parameters counts,
    that of the activations does not.

    Raises:
        ValueError: for parameters whose values are not known, as within `jax.jit`.
    """
    constants = {key: value for key, value in dataclasses.asdict(config).items() if key != "name"}
    return hashing.fingerprint(params, constants)
