"""Codecs that keep rows in a float dtype, unchanged or rounded."""

from collections.abc import Mapping
from typing import ClassVar

import ml_dtypes
import numpy as np

from sae.store.codec import Codec, codecs, take


class Floats(Codec):
    """Rows in one float dtype."""

    dtype: ClassVar[np.dtype]

    def parts(self, dim: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Returns one array."""
        return {"": (self.dtype, (dim,))}

    def encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds to the nearest."""
        return {"": x.astype(self.dtype, copy=False)}

    def decode(self, stored: Mapping[str, np.ndarray], out: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Widens to float32."""
        take(stored[""], out, rows)

    def exact(self, dtype: np.dtype) -> bool:
        """Returns whether a dtype is no wider than the stored one."""
        return np.can_cast(dtype, self.dtype)


@codecs.register("float32")
class Float32(Floats):
    """Float32 rows, which stay unchanged."""

    about = "four bytes a number, nothing is lost"
    dtype = np.dtype("<f4")


@codecs.register("bfloat16")
class BFloat16(Floats):
    """Half the bytes of float32; without loss for models whose activations are bfloat16."""

    about = "two bytes a number, 8 bits of it significant"
    dtype = np.dtype(ml_dtypes.bfloat16)


@codecs.register("float16")
class Float16(Floats):
    """Half the bytes of float32, an eighth of bfloat16's rounding, and no number above 65504."""

    about = "two bytes a number, 11 bits of it significant; activations are at most 65504"
    dtype = np.dtype("<f2")

    def encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds to the nearest.

        Raises:
            ValueError: for activations beyond float16's range.
        """
        with np.errstate(over="ignore"):
            rounded = x.astype(self.dtype, copy=False)
        if rounded is not x and (beyond := int((np.isinf(rounded) & np.isfinite(x)).sum())):
            raise ValueError(f"float16 has no number above 65504, got {beyond:,} beyond it: choose bfloat16")
        return {"": rounded}
