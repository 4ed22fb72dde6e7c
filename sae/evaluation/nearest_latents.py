"""`sae.nearest`: the latent of one autoencoder that is most like each latent of another, by their decoder rows.

Similarities are computed in blocks, so that those of all pairs, 131k times 131k, are never held.

Axis letters: A dim of the activation (a crosscoder's sites joined), Z latents of either autoencoder, K neighbours that
are kept, R latents of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from mishax_lite.compiling import jit_program
from sae import showing
from sae.released import Released

BLOCK = 4096  # latents on either side of a block: 64 MiB of similarities
_TIE = 1e-6  # cosines that differ by less are equal: the sums of their products are rounded in different orders
Rows = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
    """For each latent of `a`, the latent of `b` whose decoder row points most nearly in the same direction.

    Attributes:
        index: int32 [Z of a], the nearest latent of b.
        similarity: float32 [Z of a], the cosine of the two rows; 0 where either row is 0.
        mutual: bool [Z of a], whether no latent of a is nearer to that latent of b, by more than rounding: of several
            equal latents, all are mutual or none. False where either row is 0.

    Example:
        >>> match = sae.nearest(autoencoder, autoencoder)
        >>> match.index[:3].tolist(), bool(match.mutual.all())
        ([0, 1, 2], True)
    """

    index: Int32[np.ndarray, " Z"]
    similarity: Float32[np.ndarray, " Z"]
    mutual: Bool[np.ndarray, " Z"]

    def __repr__(self) -> str:
        latents, middle = showing.count(len(self.index), "latent"), float(np.median(self.similarity))
        return f"Nearest({latents}, median similarity {middle:.3f}, {self.mutual.sum():,} mutual)"


def nearest(a: Released, b: Released, *, block: int = BLOCK) -> Nearest:
    """Matches the latents of two autoencoders by the cosine of their decoder rows.

    This compares seeds, and sizes (arXiv 2405.14860 and 2501.16615 count latents whose similarity is above 0.7).

    Args:
        a: the autoencoder whose latents are matched.
        b: the autoencoder with whose latents they are matched; of activations of the same dim.
        block: latents of either side whose similarities are in memory at a time.

    Returns:
        The nearest latent of b for each latent of a; of equally near ones, the first.

    Raises:
        ValueError: for rows of different lengths, and rows that are not finite.

    Example:
        >>> match = sae.nearest(autoencoder, autoencoder)
        >>> bool((match.index == np.arange(autoencoder.width)).all() and match.mutual.all())
        True
    """
    rows_a, rows_b = _rows(a, " in a"), _rows(b, " in b")
    if rows_a.shape[1] != rows_b.shape[1]:
        raise ValueError(
            f"the rows of W_dec have lengths {rows_a.shape[1]:,} in a and {rows_b.shape[1]:,} in b: latents of "
            "activations of one dim can be compared"
        )
    index, similarity = strongest(rows_a, rows_b, 1, block=block)
    _, greatest = strongest(rows_b, rows_a, 1, block=block)
    index, similarity = index[:, 0], similarity[:, 0]
    # pyrefly: ignore[bad-index]  with an axis, `any` of numpy is an array
    mutual = (similarity >= greatest[index, 0] - _TIE) & rows_a.any(axis=1) & rows_b.any(axis=1)[index]
    return Nearest(index, similarity, mutual)


def neighbours(autoencoder: Released, count: int, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Returns the other latents of an autoencoder that are most like each latent.

    Args:
        autoencoder: any.
        count: K, the neighbours of a latent; at most Z - 1 exist.
        block: as for `nearest`.

    Returns:
        The latents, int32 [Z, K], and their cosines, float32 [Z, K], the nearest first.

    Raises:
        ValueError: for rows that are not finite.

    Example:
        >>> neighbours(autoencoder, 3)[0].shape == (autoencoder.width, 3)
        True
    """
    rows = _rows(autoencoder)
    return strongest(rows, rows, min(count, len(rows) - 1), apart=True, block=block)


def strongest(
    rows_a: Rows, rows_b: Rows, count: int, *, apart: bool = False, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of b with the greatest cosines to each row of a: their numbers, int32 [Z, K], and the cosines.

    Args:
        rows_a: [Z, A].
        rows_b: [Z of b, A].
        count: K.
        apart: whether the row of the same number is left out.
        block: rows of either side at a time.

    Example:
        >>> strongest(np.eye(3)[:2], np.eye(3)[::-1], 1)[0].tolist()
        [[2], [1]]
    """
    sides = [_in_blocks(rows, min(block, max(len(rows_a), len(rows_b)))) for rows in (rows_a, rows_b)]
    size = sides[0].shape[1]
    others = jnp.asarray(sides[1])  # once for all blocks
    width = np.int32(len(rows_b))
    pairs = [_program(part, np.int32(i * size), others, width, K=count, apart=apart) for i, part in enumerate(sides[0])]
    index, similarity = (np.concatenate([np.asarray(pair[k]) for pair in pairs])[: len(rows_a)] for k in (0, 1))
    return index, similarity


def _strongest_of(rows, first, others, width, *, K, apart):
    """Returns what `strongest` does, for unit rows [R, A] that begin with the number `first`, among others
    [blocks, R, A] with `width` latents."""
    R = rows.shape[0]

    def add(best, block):
        number, part = block
        numbers = number * R + jnp.arange(R)
        cosines = jnp.matmul(rows, part.T, precision="highest")
        ours = first + jnp.arange(R)[:, None]
        cosines = jnp.where((numbers < width)[None] & ~(apart & (numbers[None] == ours)), cosines, -jnp.inf)
        # The best so far stand first: of equals, top_k takes the first.
        joined = jnp.concatenate([best[1], cosines], axis=1)
        indices = jnp.concatenate([best[0], jnp.broadcast_to(numbers, cosines.shape)], axis=1)
        values, places = jax.lax.top_k(joined, K)
        return (jnp.take_along_axis(indices, places, axis=1), values), None

    start = jnp.zeros((R, K), jnp.int32), jnp.full((R, K), -jnp.inf, jnp.float32)
    best, _ = jax.lax.scan(add, start, (jnp.arange(len(others), dtype=jnp.int32), others))
    return best


_program = jit_program(_strongest_of, program="other", static_argnames=("K", "apart"))


def _rows(autoencoder: Released, where: str = "") -> np.ndarray:
    """Returns decoder rows, float32 [Z, A]. Raises ValueError for a row that is not finite: it would be the nearest to
    all."""
    rows = np.asarray(autoencoder.W_dec, np.float32).reshape(autoencoder.width, -1)
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        number = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"row {number} of W_dec{where} is not finite, so it has no direction: leave such latents out")
    return rows


def _in_blocks(rows: Rows, size: int) -> np.ndarray:
    """Returns unit rows [blocks, R, A], filled up with zeros."""
    rows = np.asarray(rows, np.float32)
    filled = np.zeros((-(-len(rows) // size) * size, rows.shape[1]), np.float32)
    for start in range(0, len(rows), size):
        # In float64, where the squares of no float32 are too large or too small.
        part = rows[start : start + size].astype(np.float64)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        filled[start : start + len(part)] = part / np.where(norms > 0, norms, 1)
    return filled.reshape(-1, size, rows.shape[1])
