"""What JAX's standard rules of promotion say of dtypes, whatever a user has set `jax_numpy_dtype_promotion` to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def common_dtype(*dtypes: Any) -> jnp.dtype:
    """Returns the dtype that dtypes promote to.

    Example:
        >>> common_dtype(jnp.bfloat16, jnp.float32)
        dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def takes(dtype: jnp.dtype, scalar: complex) -> bool:
    """Returns whether arrays of a dtype keep it when a Python scalar is added to them.

    Example:
        >>> takes(jnp.bfloat16, 1.5), takes(jnp.int32, 1.5)
        (True, False)
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(dtype, scalar) == dtype
