"""Edits of a model in bfloat16 or float16 may compute in float32: what they return is rounded to the site's dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from mishax_lite import Edits
from mishax_lite.promotion import common_dtype


def narrowed(edits: Edits) -> Edits:
    """Returns edits whose results are cast to their sites' dtypes where they are of a wider float.

    Anything else that an edit may not return stays an error: another shape, integers, a float that is no wider.

    Args:
        edits: bound to their text (`Edits.bind`).

    Example:
        >>> steer = narrowed(Edits.of({"x": lambda value, site: value + jnp.float32(1)}))
        >>> steer.functions("x")[0](jnp.zeros(3, jnp.bfloat16), None).dtype
        dtype(bfloat16)
    """
    return edits.then(_cast)


def _cast(new: Any, value: jax.Array) -> Any:
    return jnp.asarray(new, value.dtype) if _is_wider(new, value) else new


def _is_wider(new: Any, value: jax.Array) -> bool:
    """Whether both are floats, and every number of the dtype of `value` is one of the dtype of `new`."""
    dtypes = [x.dtype for x in (new, value) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]
    return len(dtypes) == 2 and dtypes[0] != dtypes[1] and common_dtype(*dtypes) == dtypes[0]
