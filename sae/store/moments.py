"""Sums over rows in float64, in one pass."""

import dataclasses

import numpy as np

_BLOCK = 128  # rows at a time: their float64 copy stays in the processor's cache


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of rows [rows, A]: `squares` [rows], the squared norm of each; `total` [A], their sum. float64."""

    squares: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> "Moments":
        squares, total = np.empty(len(x)), np.zeros(x.shape[1])
        for start in range(0, len(x), _BLOCK):
            block = x[start : start + _BLOCK].astype(np.float64)
            total += block.sum(axis=0)
            np.einsum("ij,ij->i", block, block, out=squares[start : start + _BLOCK])
        return cls(squares, total)

    def median_norm(self) -> float:
        return float(np.sqrt(np.median(self.squares))) if len(self.squares) else 0.0

    def finite(self) -> bool:
        return bool(np.isfinite(self.squares).all())

    def statistics(self, x: np.ndarray, keep: np.ndarray) -> dict:
        """Of the rows numbered `keep`: mean [A], mean squared norm, median norm; zeros where there are none."""
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
