"""Lets edits of a model in bfloat16 or float16 compute in float32: their results are rounded to the site's dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from mishax_lite import Edits
from mishax_lite.promotion import common_dtype


def narrowed(edits: Edits) -> Edits:
    """Returns edits whose results are cast to their sites' dtypes where the results are of a wider float.

    Another shape, an integer, or a float that is not wider stays an error.

    Args:
        edits: edits that are bound to their text (`Edits.bind`).

    Example:
        >>> steer = mishax_lite.Edits.of({"x": lambda value, site: value + jnp.float32(1)})
        >>> steer = mishax_lite.casting.narrowed(steer)
        >>> steer.functions("x")[0](jnp.zeros(3, jnp.bfloat16), None).dtype
        dtype(bfloat16)
    """
    return edits.then(_cast)


def _cast(new: Any, value: jax.Array) -> Any:
    return jnp.asarray(new, value.dtype) if _is_wider(new, value) else new


def _is_wider(new: Any, value: jax.Array) -> bool:
    """Returns whether both are floats, and the dtype of `new` has every number of the dtype of `value`."""
    dtypes = [x.dtype for x in (new, value) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]
    return len(dtypes) == 2 and dtypes[0] != dtypes[1] and common_dtype(*dtypes) == dtypes[0]
