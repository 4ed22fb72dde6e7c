"""Checks the parameters for `gemma.save` before it writes, and writes JSON."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gemma.checkpoints import streaming
from gemma.model import Model, param_shapes
from mishax_lite.promotion import common_dtype

_DTYPES = tuple(jnp.dtype(name) for name in ("float16", "bfloat16", "float32", "float64"))


def check_params(model: Model) -> str:
    """Returns the dtype that holds all parameters of a model.

    Raises:
        ValueError: with the name of each parameter that `load` would refuse: one that is missing, not of this model, of
            another shape, of another dtype than those of files, or has values that are NaN or infinite.
    """
    want, params = (dict[Any, Any](traverse_util.flatten_dict(t)) for t in (param_shapes(model.config), model.params))
    problems = [f"missing: {'/'.join(path)}" for path in want if path not in params]
    problems += [f"not in this model: {'/'.join(map(str, path))}" for path in params if path not in want]
    for path in want:
        if path not in params:
            continue
        name, leaf = "/".join(path), params[path]
        if isinstance(leaf, jax.core.Tracer):
            raise ValueError(f"a model cannot be saved under jit or another transformation: {name} is {leaf}")
        if not hasattr(leaf, "dtype") or leaf.dtype not in _DTYPES:
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            problems.append(f"{name}: {kind}, expected one of {', '.join(map(str, _DTYPES))}")
        elif leaf.shape != want[path].shape:
            problems.append(f"{name}: shape {leaf.shape}, expected {want[path].shape}")
        elif not _all_finite(leaf):
            problems.append(f"{name}: has values that are NaN or infinite")
    streaming.refuse(model.config.name, problems)
    # transformers loads all tensors in one dtype, which must lose no number: for float16 and bfloat16 it is float32.
    return str(common_dtype(*(leaf.dtype for leaf in params.values())))


def _all_finite(leaf: jax.Array | np.ndarray) -> bool:
    return bool(streaming.all_finite(leaf) if isinstance(leaf, jax.Array) else np.isfinite(leaf).all())


def write_json(file: Path, values: dict) -> None:
    """Writes a JSON file in this package's form."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
