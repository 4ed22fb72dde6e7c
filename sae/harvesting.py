"""`sae.harvest`: running the model over text and storing what is at some of its sites."""

import concurrent.futures
import dataclasses
import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import gemma
from sae import filling
from sae.store import claims, writing
from sae.store import manifest as manifests
from sae.store.claims import Claim
from sae.store.manifest import Manifest
from sae.store.places import Place, place
from sae.store.reading import ActivationStore
from sae.text import Sequences

SHUFFLE_ROWS = 1 << 20
SHUFFLE_BYTES = 4 << 30
_hashes: dict[tuple[int, ...], tuple[list[weakref.ref], str]] = {}
_COUNTED = 4096  # sequences whose text tokens are counted at a time


def plan(
    model: gemma.Model,
    sequences: Sequences,
    sites: Sequence[str],
    *,
    seed: int = 0,
    dtype: str = "float32",
    shuffle_rows: int = SHUFFLE_ROWS,
    shuffle_bytes: int = SHUFFLE_BYTES,
    sink_factor: float | None = None,
    sink_sites: Sequence[str] | None = None,
) -> Manifest:
    """What a harvest with these arguments would write; nothing is computed.

    Raises:
      ValueError: for a site that the model has not (the nearest are named), or one with no vector for each token.
    """
    if not sites:
        raise ValueError("name one site at least, for example layer_0/resid_post")
    if model.tokenizer is None:
        raise ValueError(f"{model.config.name} was loaded without a tokenizer, so its special tokens are unknown")
    if shuffle_rows < 1:
        raise ValueError(f"shuffle_rows must be at least 1, got {shuffle_rows}")
    shapes = {site: gemma.sites.token_shape(model.config, site) for site in sites}
    length = sequences.tokens.shape[1]
    return Manifest(
        model=model.config.name,
        model_sha256=parameter_hash(model),
        config_sha256=hashlib.sha256(json.dumps(dataclasses.asdict(model.config)).encode()).hexdigest(),
        tokenizer_sha256=model.tokenizer.sha256,
        sites=shapes,
        dtype=dtype,
        corpus_sha256=sequences.fingerprint(),
        sequences=len(sequences),
        length=length,
        sequences_per_segment=filling.sequences_in(shuffle_bytes, shuffle_rows, length, shapes),
        seed=seed,
        dropped_tokens=model.tokenizer.special_ids,
        sink_factor=sink_factor,
        sink_sites=() if sink_factor is None else _sink_sites(sites, sink_sites),
    )


def _sink_sites(sites: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Those chosen, or those of the residual stream, where sinks have their large norms; without any, all."""
    if chosen is None:
        return tuple(site for site in sites if "resid_" in site) or tuple(sites)
    if missing := [site for site in chosen if site not in sites]:
        raise ValueError(f"sink_sites has {missing[0]!r}, which is not harvested: {', '.join(sites)}")
    return tuple(chosen)


def parameter_hash(model: gemma.Model) -> str:
    """sha256 over the parameters, names and values. Arrays do not change: those of one model are hashed once."""
    leaves = jax.tree.leaves(model.params)
    key = tuple(map(id, leaves))
    known = _hashes.get(key)
    if known is not None and all(there() is leaf for there, leaf in zip(known[0], leaves, strict=True)):
        return known[1]
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    _hashes[key] = ([weakref.ref(leaf) for leaf in leaves], digest.hexdigest())
    return digest.hexdigest()


def harvest(
    model: gemma.Model,
    sequences: Sequences,
    sites: Sequence[str],
    path: str | Path | Place,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shuffle_rows: int = SHUFFLE_ROWS,
    shuffle_bytes: int = SHUFFLE_BYTES,
    sink_factor: float | None = None,
    sink_sites: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
    mesh: Mesh | None = None,
    progress: Callable[..., Iterable] = lambda steps, **_: steps,
) -> ActivationStore:
    """Writes the activations of `sites` over `sequences` to a store, or what is missing of it.

    The sequences are put into a random order, a segment takes the next ones, and its rows are shuffled again: any run
    of rows is a mixture of the whole text. A segment depends on the arguments and its number alone, and is there whole
    or not at all, so that a harvest that was stopped, however it was, goes on to the same store, byte for byte.

    Several processes, on one machine or many, share a harvest without talking to each other: each takes its share of
    the segments.

    Args:
      model: with its tokenizer.
      sequences: from `sae.text.cut`.
      sites: names such as `layer_3/resid_post`.
      path: a folder, gs://bucket/folder or s3://bucket/folder.
      seed: of both shufflings.
      dtype: of the stored rows, "float32", "bfloat16" or "int8" (with a scale for each row).
      shuffle_rows: rows that a segment has and that are shuffled together, as far as memory allows.
      shuffle_bytes: memory on the host for the rows of the two segments that are being filled and written, and for
        the work on them (384 MiB, or three quarters of it all if that is less).
      sink_factor: leaves out attention sinks: rows whose norm is over this multiple of the segment's median norm.
      sink_sites: where that is measured; by default at those of `sites` that are of the residual stream.
      share: (which, of how many) of the segments this process writes.
      mesh: where given, a batch is spread over its `data` axis. Its devices are this process's own.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.

    Returns:
      The store, opened; while others' shares are missing, as a growing one.

    Raises:
      ValueError: for unknown sites, a store there with other contents, a disk too small for what is to come, or
        activations that are not finite.
      OSError: when the disk fills up all the same, or another process writes the same segment; finished segments are
        kept.
    """
    manifest = plan(
        model,
        sequences,
        sites,
        seed=seed,
        dtype=dtype,
        shuffle_rows=shuffle_rows,
        shuffle_bytes=shuffle_bytes,
        sink_factor=sink_factor,
        sink_sites=sink_sites,
    )  # before anything is written
    if mesh is not None and jax.tree.leaves(model.params)[0].sharding.device_set != set(mesh.devices.flat):
        raise ValueError(
            "the model's parameters are not on the mesh's devices: gemma.load(…, mesh=mesh) puts them there"
        )
    which, of = share
    if not 0 <= which < of:
        raise ValueError(f"share is (which, of how many), which from 0 on; got {share}")
    store = place(path)
    manifests.write(store, manifest, sequences.documents)
    missing = [index for index in writing.missing_segments(store, manifest) if index % of == which]
    writing.check_space(store, manifest, len(missing), int(text_tokens(sequences, manifest).sum()))
    _write_segments(model, sequences, manifest, missing, store, mesh, progress)
    return ActivationStore.open(store, growing=of > 1)


def _write_segments(model, sequences, manifest, missing, store, mesh, progress) -> None:
    """Fills segments here while a thread writes the one before."""
    held: dict[int, Claim] = {}

    def start(index: int) -> None:
        held[index] = claims.claim(store, index)

    def write(filled: filling.Filled) -> None:
        try:
            writing.write_segment(store, held[filled.index], filled.activations, filled.rows, manifest)
        finally:
            filled.release()

    segments = filling.filled_segments(model, sequences, manifest, missing, mesh=mesh, started=start, progress=progress)
    with concurrent.futures.ThreadPoolExecutor(1, "segments") as pool, claims.heartbeat(held):
        written: concurrent.futures.Future | None = None
        try:
            for filled in segments:
                if written is not None:
                    written.result()
                written = pool.submit(write, filled)
            if written is not None:
                written.result()
        finally:
            if written is not None:
                concurrent.futures.wait([written])
            for claim in held.values():
                claim.release()


def text_tokens(sequences: Sequences, manifest: Manifest) -> np.ndarray:
    """[S] rows that each sequence gives."""
    starts = range(0, len(sequences), _COUNTED)
    parts = (sequences.take(slice(start, start + _COUNTED)).text(manifest.dropped_tokens) for start in starts)
    return np.concatenate([part.sum(axis=1) for part in parts])
