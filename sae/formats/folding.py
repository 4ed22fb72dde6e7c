"""Folds the vectors that other projects subtract from activations into the encoder's biases, for raw activations.

In float64: sums over A numbers in float32 leave errors of 3.5e-5 in a bias where its parts cancel.
"""

from collections.abc import Mapping

import numpy as np

_NUMBERS = 1 << 24  # numbers of the encoder in float64 at a time: 128 MiB


def preactivations(vector: np.ndarray, W_enc: np.ndarray) -> np.ndarray:
    """Returns vector @ W_enc, float64 [Z].

    Args:
        vector: [A].
        W_enc: [A, Z].

    Example:
        >>> preactivations(np.float32([1, 2]), np.ones((2, 3), np.float32)).tolist()
        [3.0, 3.0, 3.0]
    """
    A, Z = W_enc.shape
    wide, step = vector.astype(np.float64), max(1, _NUMBERS // max(1, A))
    parts = [wide @ W_enc[:, start : start + step].astype(np.float64) for start in range(0, Z, step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def subtracted(bias: np.ndarray, values: Mapping[str, np.ndarray], gain: np.ndarray | float = 1.0) -> np.ndarray:
    """Returns the bias, float32 [Z], of an encoder of raw activations, in place of one that subtracts `b_dec` first.

    Args:
        bias: [Z], as in the file.
        values: `b_dec` [A] and `W_enc` [A, Z].
        gain: [Z], the factor of the encoder that has this bias; -1 for the way back into a file.

    Example:
        >>> values = {"b_dec": np.float32([1, 2]), "W_enc": np.ones((2, 3), np.float32)}
        >>> subtracted(np.zeros(3, np.float32), values).tolist()
        [-3.0, -3.0, -3.0]
    """
    return (bias - gain * preactivations(values["b_dec"], values["W_enc"])).astype(np.float32)
