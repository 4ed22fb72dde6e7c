"""Tells models apart by a sha256 over the names and values of a tree of arrays, and over a configuration."""

import dataclasses
import hashlib
import json
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# By the ids of all leaves. When an array is gone, another array may get its id, so the arrays are compared too.
_hashes: dict[tuple[int, ...], tuple[list[weakref.ref], str]] = {}


def parameter_hash(params: Any) -> str:
    """Returns a sha256, in hex, over the names and values of a tree of arrays.

    JAX's arrays do not change, so those of one tree are hashed once: hashing gigabytes takes seconds.

    Args:
        params: a tree of arrays.

    Raises:
        ValueError: for leaves without concrete values, as within `jax.jit`.

    Example:
        >>> parameter_hash({"w": jnp.ones(3)}) == parameter_hash({"w": jnp.zeros(3)})
        False
    """
    leaves = jax.tree.leaves(params)
    key = tuple(map(id, leaves))
    stored = _hashes.get(key)
    if stored is not None and all(ref() is leaf for ref, leaf in zip(stored[0], leaves, strict=True)):
        return stored[1]
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise ValueError(
                f"a fingerprint is over the parameters' values, and {jax.tree_util.keystr(path)} has none here: take "
                "it outside of jax.jit and other transformations, from a loaded model"
            )
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(
            np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
        )  # no copy of an embedding of gigabytes
    for other in [other for other, (refs, _) in _hashes.items() if any(ref() is None for ref in refs)]:
        del _hashes[other]
    if all(isinstance(leaf, jax.Array) for leaf in leaves):  # numpy's arrays may change
        _hashes[key] = ([weakref.ref(leaf) for leaf in leaves], digest.hexdigest())
    return digest.hexdigest()


def fingerprint(params: Any, config: Any = None) -> str:
    """Returns a sha256, in hex, over the names and values of parameters, and over a configuration.

    It is the value that `sae.LanguageModel.fingerprint` must have. Values are hashed once for each tree of arrays.

    Args:
        params: a tree of arrays.
        config: a dataclass, a dict, a string or another value of JSON; it may contain dtypes. None if the parameters
            and their names say everything.

    Raises:
        ValueError: for a configuration with values of other kinds, and within `jax.jit`, where values are not concrete.

    Example:
        >>> from mishax_lite.hashing import fingerprint
        >>> fingerprint({"w": jnp.ones(3)}, {"heads": 4}) == fingerprint({"w": jnp.ones(3)}, {"heads": 2})
        False
    """
    constants = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    text = f"{parameter_hash(params)} {json.dumps(constants, sort_keys=True, default=_dtype_name)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _dtype_name(value: Any) -> str:
    """Returns the name of a dtype, since JSON has none."""
    try:
        return jnp.dtype(value).name
    except TypeError:
        raise ValueError(
            f"the configuration of a fingerprint contains {value!r:.60}, of the type {type(value).__name__}: give a "
            "dataclass or a dict of numbers, strings, dtypes and lists of these"
        ) from None
