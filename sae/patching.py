"""`sae.patch_grid`: activation patching over layers and positions in one compiled program.

A value of a clean run is put into a corrupt run at one site and one token, and a score of the logits says how much of
the clean behaviour comes back (causal tracing, arXiv 2202.05262; denoising in arXiv 2404.15255).

Axis letters: L sites, P positions, B patches that are computed together, T tokens, V vocabulary.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, Float32, Integer

from mishax_lite.compiling import jit_forward
from sae import showing
from sae.language_model import LanguageModel, check_tokenizer, lean, require_model
from sae.sites import matching

TOKENS = 2048  # in the patches that are computed together
LOGITS = 2**27  # numbers in the logits of these patches at most: 512 MiB


def patch_grid(
    model: LanguageModel,
    clean: str | Sequence[int] | Integer[jax.Array | np.ndarray, "..."],
    corrupt: str | Sequence[int] | Integer[jax.Array | np.ndarray, "..."],
    score: Callable[[Float32[jax.Array, "T V"]], Float[jax.Array, "..."]],
    site: str | Sequence[str],
    positions: int | Sequence[int] | None = None,
) -> Float32[np.ndarray, "L P ..."]:
    """Scores the corrupt run with one value of the clean run in it, for every site and position.

    Each of the L times P patches is one sequence of a batch, and the site and the position are numbers within the
    program: it is compiled once for a model, a length, a score and sites. The clean values take one more sequence.

    Args:
        model: its fastest form (`lean`) computes the clean values and the scores.
        clean: a text, or the ids of one sequence, [T] or [1, T].
        corrupt: another text, or ids, with as many tokens.
        score: a function of the logits float32 [T, V] of one sequence. It may be a `jax.tree_util.Partial`, whose
            arrays are arguments of the program. A function that is new on each call is compiled on each call.
        site: a kind of site, such as "resid_post", for all layers; a name, a pattern, or several of these. Each needs a
            value for each token.
        positions: where to patch, counted from 0; by default at every token.

    Returns:
        float32 [L, P], followed by the axes of the score where it is no scalar. The sites are in the order of the
        forward pass within each item of `site`, the positions as given.

    Raises:
        ValueError: for texts of different numbers of tokens, a text without a tokenizer, several sequences, positions
            that the text lacks, and sites that do not exist or have a value for every pair of tokens.

    Example:
        >>> sea, king = (model.tokenizer.encode(word)[1] for word in ("sea", "king"))
        >>> grid = sae.patch_grid(
        ...     model, "And the sea", "And the king", lambda logits: logits[-1, sea] - logits[-1, king], "resid_post"
        ... )
        >>> grid.shape  # 6 layers, 4 tokens
        (6, 4)
    """
    require_model(model)
    clean_ids, corrupt_ids = _ids(model, clean, "clean"), _ids(model, corrupt, "corrupt")
    T = clean_ids.shape[1]
    if corrupt_ids.shape[1] != T:
        raise ValueError(
            f"clean has {showing.count(T, 'token')} and corrupt {corrupt_ids.shape[1]:,}: a value is patched between "
            "equal positions, so give two texts of equally many tokens"
        )
    places = _positions(positions, T)
    sites = _sites(model, site)
    rows, columns = (each.reshape(-1) for each in np.meshgrid(np.arange(len(sites)), places, indexing="ij"))
    size = together(len(rows), T, model.vocab_size)
    # The last batch is filled up with its last patch.
    filled = [np.pad(each, (0, -len(each) % size), mode="edge").reshape(-1, size) for each in (rows, columns)]
    score = score if isinstance(score, Partial) else Partial(score)
    scores = np.asarray(_grid(model, clean_ids, corrupt_ids, *map(np.int32, filled), score, sites=tuple(sites)))
    scores = scores.reshape(-1, *scores.shape[2:])[: len(rows)]
    return scores.reshape(len(sites), len(places), *scores.shape[1:])


def together(patches: int, length: int, vocab_size: int) -> int:
    """Returns how many patches to compute at a time, so that memory is bounded and the last batch is nearly full.

    Args:
        patches: the number of patches.
        length: T.
        vocab_size: V.

    Example:
        >>> together(162, 9, 262_144)  # 18 layers, 9 positions: 3 batches
        54
    """
    most = max(1, min(TOKENS // length, LOGITS // (length * vocab_size)))
    batches = -(-patches // most)
    return -(-patches // batches)


@jit_forward(static_argnames="sites")
def _grid(model, clean, corrupt, rows, columns, score, *, sites):
    """Returns scores [batches, B, ...] of patches: `rows` has the sites' indices, `columns` the positions, [batches, B]
    each."""
    model = lean(model)
    _, values = model.apply(clean, capture=sites)

    def patched(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, column = batch
        here = jnp.arange(clean.shape[1])[None] == column[:, None]

        def put(number: int) -> Callable[[jax.Array, Any], jax.Array]:
            def edit(value: jax.Array, _: Any) -> jax.Array:
                mask = (here & (row == number)[:, None]).reshape(*here.shape, *[1] * (value.ndim - 2))
                return jnp.where(mask, values[sites[number]].astype(value.dtype), value)

            return edit

        tokens = jnp.broadcast_to(corrupt, (len(row), corrupt.shape[1]))
        logits = model.apply(tokens, edits={name: put(number) for number, name in enumerate(sites)})
        return jax.vmap(score)(logits).astype(jnp.float32)

    return jax.lax.map(patched, (rows, columns))


def _ids(model: LanguageModel, text: Any, name: str) -> np.ndarray:
    """Returns a text, or the ids of one sequence, as int32 [1, T]."""
    if isinstance(text, str):
        check_tokenizer(model)
        return np.asarray([model.tokenizer.encode(text)], np.int32)
    ids = np.asarray(text)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} is a text or the ids of one sequence, [T] or [1, T]; got {showing.kind(text)}")
    if ids.min() < 0 or ids.max() >= model.vocab_size:
        raise ValueError(f"{name}: ids are from 0 to {model.vocab_size - 1}, got {ids.min()} to {ids.max()}")
    return ids.astype(np.int32)


def _positions(positions: int | Sequence[int] | None, T: int) -> np.ndarray:
    if positions is None:
        return np.arange(T)
    try:
        numbers = [operator.index(position) for position in np.atleast_1d(np.asarray(positions)).tolist()]
    except TypeError:
        numbers = []
    if not numbers or not all(0 <= number < T for number in numbers):
        raise ValueError(f"positions are one or more of 0 to {T - 1}, the tokens of the texts; got {positions!r:.60}")
    return np.asarray(numbers)


def _sites(model: LanguageModel, site: str | Sequence[str]) -> list[str]:
    """Returns the names of sites, in the order of the forward pass within each item of `site`."""
    names: list[str] = []
    for wanted in [site] if isinstance(site, str) else site:
        of_kind = [name for name, record in model.sites.items() if record.kind == wanted]
        names += matching(model, of_kind or [wanted])
    return list(dict.fromkeys(names))
