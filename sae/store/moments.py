"""Sums over rows in float64, from one reading."""

import dataclasses

import numpy as np

_BLOCK = 128  # rows at a time: their float64 copy stays in the processor's cache


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over rows.

    Attributes:
        squares: float64 [rows], the squared norm of each row.
        total: float64 [A], the sum of the rows.
    """

    squares: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> "Moments":
        """Returns the sums over rows x [rows, A]."""
        squares, total = np.empty(len(x)), np.zeros(x.shape[1])
        for start in range(0, len(x), _BLOCK):
            block = x[start : start + _BLOCK].astype(np.float64)
            total += block.sum(axis=0)
            np.einsum("ij,ij->i", block, block, out=squares[start : start + _BLOCK])
        return cls(squares, total)

    def median_norm(self) -> float:
        """Returns the median norm; 0 for no rows."""
        return float(np.sqrt(np.median(self.squares))) if len(self.squares) else 0.0

    def finite(self) -> bool:
        """Returns whether all rows are finite."""
        return bool(np.isfinite(self.squares).all())

    def statistics(self, x: np.ndarray, keep: np.ndarray) -> dict:
        """Returns the mean [A], the mean squared norm and the median norm of the rows with the indices `keep`; zeros
        for no rows."""
        dropped = np.ones(len(x), bool)
        dropped[keep] = False
        total = self.total - x[dropped].astype(np.float64).sum(axis=0)
        kept = Moments(self.squares[keep], total)
        count = max(1, len(keep))
        return {
            "mean": (total / count).tolist(),
            "mean_squared_norm": float(kept.squares.sum()) / count,
            "median_norm": kept.median_norm(),
        }
