"""The codec that keeps rows as whole numbers of eight bits, with a scale for each row."""

from collections.abc import Mapping

import numpy as np

from sae.store.codec import Codec, codecs

SCALE = ".scale"  # an array beside the rows', float32 [rows]


@codecs.register("int8")
class Int8(Codec):
    """Rows as whole numbers times a scale: a row's largest absolute value over 127."""

    about = "one byte a number, and four for a row's scale"

    def parts(self, dim: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Returns the whole numbers, and the scales."""
        return {"": (np.dtype("i1"), (dim,)), SCALE: (np.dtype("<f4"), ())}

    def encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds to the nearest whole number of the row's scale."""
        x = x.astype(np.float32, copy=False)
        scale = np.abs(x).max(axis=1) / np.float32(127)
        whole = np.rint(x / np.where(scale > 0, scale, 1)[:, None])
        return {"": whole.astype(np.int8), SCALE: scale.astype(np.float32)}

    def decode(self, stored: Mapping[str, np.ndarray], out: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Multiplies by the scales."""
        values, scale = stored[""], stored[SCALE]
        if rows is not None:
            # mode="clip" moves whole rows.
            values, scale = np.take(values, rows, axis=0, mode="clip"), scale[rows]
        np.multiply(values, scale[:, None], out=out)
