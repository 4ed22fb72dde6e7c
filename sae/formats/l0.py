"""The L0 that an autoencoder's file claims: the one that publishers measured, or aimed at."""

import json
import re
from typing import Any

from sae.families import recorded_aim
from sae.released import Released

_FOLDER = re.compile(r"average_l0_(\d+)")


def claimed_l0(autoencoder: Released) -> float | None:
    """Returns the mean number of active latents that an autoencoder's file claims; None where it claims none.

    It is k for a TopK, the number in the name of a Gemma Scope folder (over the publisher's text), or the target in a
    Gemma Scope 2 config or in the record of a run of this library.

    Args:
        autoencoder: the autoencoder, whose arrays may be `jax.ShapeDtypeStruct`s.

    Example:
        >>> import numpy as np, sae
        >>> W = np.zeros((4, 4), np.float32)
        >>> claimed_l0(sae.TopK(W, W[0], W, W[0], k=3))
        3.0
    """
    if "k" in autoencoder.numbers:
        # pyrefly: ignore[missing-attribute]  one of its numbers
        return float(autoencoder.k)
    if autoencoder.info is None:
        return None
    facts = json.loads(autoencoder.info.training)
    if (l0 := l0_of_folder(str(_inside(facts, "gemma_scope", "folder")))) is not None:
        return l0
    if (l0 := _number(_inside(facts, "gemma_scope_2", "config", "l0"))) is not None:
        return l0
    return _number(recorded_aim({"run": _inside(facts, "run")}))


def l0_of_folder(folder: str) -> float | None:
    """Returns the L0 in the name of a Gemma Scope folder; None where it has none.

    Example:
        >>> l0_of_folder("layer_20/width_16k/average_l0_71")
        71.0
    """
    match = re.search(_FOLDER, folder)
    return float(match[1]) if match else None


def _inside(facts: Any, *names: str) -> Any:
    for name in names:
        facts = facts.get(name) if isinstance(facts, dict) else None
    return facts


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value > 0 else None
