"""Running the model over text and storing what is at some of its sites.

Only what is asked for is computed: the layers are unrolled, and jit drops all that no captured site depends on.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import gemma
import mishax_lite
from gemma.compiling import jit_forward
from gemma.sharding import batch_sharding
from sae.store import manifest as manifests
from sae.store import writing
from sae.store.manifest import Manifest
from sae.store.reading import ActivationStore
from sae.text import Sequences, batch_at, is_text

BATCH = 16


def forward(model: gemma.Model) -> Callable[..., jax.Array]:
    """`model.apply` as harvesting and evaluation use it: fused attention is faster, and lacks only sites that belong to
    pairs of tokens."""
    return functools.partial(model.apply, attention="fused")


def captured_at(model: gemma.Model, tokens: jax.Array, sites: tuple[str, ...]) -> dict[str, jax.Array]:
    """{site: [B, T, A]} of tokens [B, T]; the axes of a token's activation (heads, say) are joined to A."""
    _, captured = mishax_lite.capture(forward(model), list(sites))(tokens)
    return {site: captured[site].reshape(*tokens.shape, -1) for site in sites}


activations_at = jit_forward(captured_at, static_argnames="sites")  # the same, compiled


def plan(
    model: gemma.Model,
    sequences: Sequences,
    sites: Sequence[str],
    *,
    seed: int = 0,
    dtype: str = "float32",
    sequences_per_segment: int = 512,
) -> Manifest:
    """What a harvest would write; nothing is computed.

    Raises:
      ValueError: for a site that the model has not (the nearest are named), or one with no vector for each token.
    """
    if not sites:
        raise ValueError("name one site at least, for example layer_0/resid_post")
    if model.tokenizer is None:
        raise ValueError(f"{model.config.name} was loaded without a tokenizer, so its special tokens are unknown")
    if sequences_per_segment < 1:
        raise ValueError(f"sequences_per_segment must be at least 1, got {sequences_per_segment}")
    return Manifest(
        model=model.config.name,
        model_sha256=parameter_hash(model),
        tokenizer_sha256=model.tokenizer.sha256,
        sites={site: gemma.sites.token_shape(model.config, site) for site in sites},
        dtype=dtype,
        corpus_sha256=sequences.fingerprint(),
        sequences=len(sequences),
        length=sequences.tokens.shape[1],
        sequences_per_segment=sequences_per_segment,
        seed=seed,
        dropped_tokens=model.tokenizer.special_ids,
    )


def parameter_hash(model: gemma.Model) -> str:
    """sha256 over the parameters, names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def harvest(
    model: gemma.Model,
    sequences: Sequences,
    sites: Sequence[str],
    path: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    sequences_per_segment: int = 512,
    mesh: Mesh | None = None,
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> ActivationStore:
    """Writes the activations of `sites` over `sequences` to a store, or what is missing of it.

    The sequences are put into a random order, a segment takes the next ones, and its rows are shuffled again: any run
    of rows is a mixture of the whole text. A segment depends on the arguments and its number alone, so a harvest that
    was stopped goes on to the same store.

    Args:
      model: with its tokenizer.
      sequences: from `sae.text.cut`.
      sites: names such as `layer_3/resid_post`.
      path: the store's folder.
      seed: of both shufflings.
      dtype: of the stored rows, "float32" or "bfloat16".
      sequences_per_segment: memory grows with it, as does how well rows are shuffled.
      mesh: where given, a batch is spread over its `data` axis.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.

    Returns:
      The store, opened.

    Raises:
      ValueError: for unknown sites, a store there with other contents, or a disk too small for what is to come.
      OSError: when the disk fills up all the same; finished segments are kept.
    """
    path = Path(path)
    manifest = plan(
        model, sequences, sites, seed=seed, dtype=dtype, sequences_per_segment=sequences_per_segment
    )  # before anything is written
    manifests.write(path, manifest, sequences.documents)
    missing = writing.missing_segments(path, manifest)
    rows = int(is_text(sequences.tokens, manifest.dropped_tokens).sum())
    writing.check_space(path, manifest, len(missing), rows)
    order = np.random.default_rng(seed).permutation(len(sequences))
    place = jnp.asarray if mesh is None else functools.partial(jax.device_put, device=batch_sharding(mesh))
    batch = BATCH if mesh is None else _round_up(BATCH, mesh.shape["data"])
    steps = [
        (segment, part, start)
        for segment in missing
        for part in [sequences.take(order[segment * sequences_per_segment :][:sequences_per_segment])]
        for start in range(0, len(part), batch)
    ]
    parts: list[dict[str, np.ndarray]] = []
    for segment, part, start in progress(steps, total=len(steps), desc="harvest"):
        tokens = batch_at(part.tokens, start, batch, model.tokenizer.pad)
        captured = activations_at(model, place(tokens), tuple(sites))
        count = min(batch, len(part) - start)
        parts.append(_text_rows(part, start, count, captured, manifest.dropped_tokens))
        if start + batch >= len(part):
            joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
            rows = {field: joined.pop(field) for field in manifests.ROW_FIELDS}
            writing.write_segment(path, segment, joined, rows, manifest)
            parts.clear()
    return ActivationStore.open(path)


def _text_rows(
    part: Sequences, start: int, count: int, captured: dict, dropped: Sequence[int]
) -> dict[str, np.ndarray]:
    """The rows of one batch: activations, token ids, positions in the sequence and documents of its text tokens."""
    tokens = part.tokens[start : start + count]
    keep = is_text(tokens, dropped)
    sequence, position = np.nonzero(keep)
    rows = {site: np.asarray(values)[:count][keep].astype(np.float32, copy=False) for site, values in captured.items()}
    return {
        **rows,
        "token": tokens[keep],
        "position": position.astype(np.int32),
        "document": part.document[start : start + count][sequence],
    }


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
