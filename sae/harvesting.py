"""`sae.harvest`: runs the model over text and stores the activations at some of its sites."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from sae import filling, showing
from sae.counted import Counted
from sae.language_model import LanguageModel, check_tokenizer
from sae.parameters import parameters_dtype
from sae.progress import Progress, chosen, say
from sae.sites import is_residual, token_site
from sae.store import claims, writing
from sae.store import manifest as manifests
from sae.store.manifest import Manifest
from sae.store.places import Place, place
from sae.store.reading import ActivationStore
from sae.text import Sequences, check_sequences
from sae.text.checking import require_sequences

SHUFFLE_ROWS = 1 << 20
SHUFFLE_BYTES = 4 << 30
_COUNTED = 4096  # sequences whose tokens are counted at a time


def plan(
    model: LanguageModel,
    sequences: Sequences,
    sites: str | Sequence[str],
    *,
    seed: int = 0,
    dtype: str = "float32",
    shuffle_rows: int = SHUFFLE_ROWS,
    shuffle_bytes: int = SHUFFLE_BYTES,
    counted: Counted | None = None,
) -> Manifest:
    """Returns the manifest of a harvest with these arguments (`harvest`), without computing anything.

    Raises:
        ValueError: for a site that the model lacks (it offers the nearest), or one without a vector for each token; a
            seed that is not from 0 to 2^32 - 1, or another argument out of its range; no sequences, or sequences that
            another tokenizer made (`sae.text.check_sequences`).
    """
    seed, shuffle_rows, shuffle_bytes = (
        manifests.whole(name, value)
        for name, value in (("seed", seed), ("shuffle_rows", shuffle_rows), ("shuffle_bytes", shuffle_bytes))
    )
    check_tokenizer(model)
    require_sequences(sequences)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites:
        raise ValueError("a harvest needs at least one site, such as layer_0/resid_post")
    if shuffle_rows < 1:
        raise ValueError(f"shuffle_rows must be at least 1, got {shuffle_rows}")
    shapes = {site: tuple(token_site(model, site).shape) for site in sites}
    length = sequences.tokens.shape[1]
    if not len(sequences) or length < 2:
        raise ValueError(
            f"a harvest needs sequences of at least BOS and one token, got [S, T] = {[len(sequences), length]}: give "
            "more text"
        )
    check_sequences(sequences, model)
    return Manifest(
        model=model.name,
        model_fingerprint=model.fingerprint,
        tokenizer_sha256=model.tokenizer.sha256,
        sites=shapes,
        dtype=dtype,
        activation_dtype=np.dtype(model.dtype).name,
        corpus_sha256=sequences.fingerprint(),
        sequences=len(sequences),
        length=length,
        sequences_per_segment=filling.sequences_in(shuffle_bytes, shuffle_rows, length, shapes),
        seed=seed,
        counted=_counted(counted, model, sequences, sites),
        documents_sha256=manifests.documents_sha256(sequences.documents),
        origin=sequences.origin,
        parameters_dtype=parameters_dtype(model),
    )


def _counted(counted: Counted | None, model: LanguageModel, sequences: Sequences, sites: Sequence[str]) -> Counted:
    """Returns the rule of a harvest, complete but for the limits of sinks, which its segments compute.

    Raises:
        ValueError: for sinks without a factor, limits of another harvest, sites that are not harvested, or a rule for
            the other kind of text (`Counted.for_text`).
    """
    counted = Counted.or_default(counted, model.tokenizer.special_ids).for_text(sequences.left_out is not None)
    sinks = counted.sinks
    if sinks is None:
        return counted
    if sinks.factor is None or sinks.limits is not None:
        raise ValueError(
            f"`counted` has the limits of another harvest's sinks, {sinks}, and each harvest computes its own limits: "
            "give Sinks(factor, sites) without limits"
        )
    if missing := [site for site in sinks.sites if site not in sites]:
        raise ValueError(
            f"the sites of sinks have {missing[0]!r}, which is not harvested: name some of {', '.join(sites)}"
        )
    # Sinks have their large norms in the residual stream; where none of its sites is harvested, all sites count.
    default = tuple(site for site in sites if is_residual(model.sites[site])) or tuple(sites)
    return dataclasses.replace(counted, sinks=dataclasses.replace(sinks, sites=sinks.sites or default))


def harvest(
    model: LanguageModel,
    sequences: Sequences,
    sites: str | Sequence[str],
    path: str | Path | Place,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shuffle_rows: int = SHUFFLE_ROWS,
    shuffle_bytes: int = SHUFFLE_BYTES,
    counted: Counted | None = None,
    worker: tuple[int, int] = (0, 1),
    silent_seconds: float = claims.SILENT_SECONDS,
    mesh: Mesh | None = None,
    progress: Progress | bool | None = None,
) -> ActivationStore:
    """Writes the activations of `sites` over `sequences` to a store, or the segments that it still lacks.

    The sequences are put into a random order, each segment takes the next ones, and its rows are shuffled again: any
    run of rows is a mixture of the whole text. A segment depends on the arguments and its index alone, and exists
    either whole or not at all. So a harvest that was stopped in any way goes on to the same store, byte for byte.

    The activations have the model's dtype, which is recorded: float32 and bfloat16 activations never share a store.

    Several workers, on one machine or many, divide a harvest without talking to each other: each takes its part of the
    segments. If two have the same index, or one is suspended and another launched in its place, the store is still the
    same, and one of them gets an error. Nothing is written before all arguments are checked.

    Args:
        model: with its tokenizer.
        sequences: the token sequences, from `sae.text.cut`.
        sites: names such as `layer_3/resid_post`, or one name.
        path: a folder, gs://bucket/folder or s3://bucket/folder.
        seed: seed of both shufflings.
        dtype: how rows are stored: "float32", "bfloat16", "float16", "int8" (with a scale for each row), or another
            registered codec (`sae.store.codec`).
        shuffle_rows: rows of a segment, which are shuffled together, as far as memory allows.
        shuffle_bytes: memory on the host for the rows of the two segments that are being filled and written, and for
            the work on them (384 MiB, or three quarters of this number if that is less).
        counted: which tokens have a row; by default all but the tokenizer's special ids and those that the text leaves
            out. `Counted(ids, sinks=Sinks(4.0))` leaves out attention sinks too: rows whose norm is over 4 times the
            segment's median, by default at those of `sites` that are in the residual stream.
        worker: (index, count) of this process among those that divide the harvest: it writes every segment whose index
            leaves the remainder `index` when divided by `count`.
        silent_seconds: seconds of silence after which a process on another machine that has begun a segment counts as
            gone. No two clocks need to agree.
        mesh: where given, a batch is spread over its `data` axis. Its devices are this process's own.
        progress: by default a line with the work to come (sequences, tokens, bytes) and a bar, on standard error, where
            that is a terminal or this is a notebook. True shows them everywhere, False nowhere. Or a function that is
            called as tqdm is, with the batches to come, `total` and `desc`.

    Returns:
        The open store; a growing one while other workers' segments are missing.

    Raises:
        ValueError: for unknown sites, text of another tokenizer or without a token that counts, a store at `path` with
            other contents, too small a disk (all before anything is written), or activations that are not finite.
        OSError: where the disk fills up all the same, or another process writes the same segment; finished segments are
            kept.

    Example:
        >>> store = sae.harvest(model, sequences, ["layer_0/mlp_out", "layer_1/resid_post"], "runs/store")
        >>> store
        ActivationStore(runs/store: ... tokens at layer_0/mlp_out, layer_1/resid_post of gemma2-tiny, float32)
    """
    progress = chosen(progress)
    manifest = plan(
        model,
        sequences,
        sites,
        seed=seed,
        dtype=dtype,
        shuffle_rows=shuffle_rows,
        shuffle_bytes=shuffle_bytes,
        counted=counted,
    )  # before anything is written
    if mesh is not None and jax.tree.leaves(model.params)[0].sharding.device_set != set(mesh.devices.flat):
        raise ValueError(
            "the model's parameters are not on the mesh's devices: load the model onto the mesh, as "
            "gemma.load(…, mesh=mesh) does"
        )
    index, count = (manifests.whole("worker", part) for part in worker)
    if not 0 <= index < count:
        raise ValueError(f"worker is (index, count) with an index from 0 to count - 1, got {worker}")
    if not silent_seconds > 0:
        raise ValueError(f"silent_seconds is above 0, got {silent_seconds}")
    rows = int(text_tokens(sequences, manifest).sum())
    store = place(path)
    store.check_writable()
    if manifests.exists(store):
        manifests.check(store, manifest)
    missing = [i for i in writing.missing_segments(store, manifest) if i % count == index]
    writing.check_space(store, manifest, len(missing), rows)
    manifests.write(store, manifest, sequences.documents)
    say(progress, _takes(sequences, manifest, store, rows, missing))
    _write_segments(model, sequences, manifest, missing, store, silent_seconds, mesh, progress)
    return ActivationStore.open(store, growing=count > 1)


def _takes(sequences: Sequences, manifest: Manifest, store: Place, tokens: int, missing: list[int]) -> str:
    """Returns a line with the harvest and the work to come. `tokens` is the number in all segments, with sinks."""
    whole = showing.size(writing.bytes_of(manifest, manifest.segments, tokens))
    text = (
        f"harvest: {sequences.size}, {showing.count(tokens, 'token')} at {manifest.label}, {manifest.dtype}, "
        f"up to {whole} in {store}"
    )
    if len(missing) == manifest.segments:
        return text
    if not missing:
        return f"{text}; nothing is left to do here"
    # All segments but the last have one size; their tokens are estimated from the mean.
    size = manifest.sequences_per_segment
    part = sum(min(size, manifest.sequences - index * size) for index in missing)
    about = tokens * part // manifest.sequences
    return (
        f"{text}; here {len(missing):,} of {showing.count(manifest.segments, 'segment')}: {part:,} sequences, about "
        f"{about:,} tokens, {showing.size(writing.bytes_of(manifest, len(missing), tokens))}"
    )


def _write_segments(model, sequences, manifest, missing, store, silent_seconds, mesh, progress) -> None:
    """Fills segments in this thread while another thread writes the segment before."""
    held = claims.Claims(store, silent_seconds)

    def write(filled: filling.Filled) -> None:
        try:
            writing.write_segment(store, held[filled.index], filled.activations, filled.rows, manifest)
        finally:
            filled.release()

    segments = filling.filled_segments(
        model, sequences, manifest, missing, mesh=mesh, started=held.take, progress=progress
    )
    with held, concurrent.futures.ThreadPoolExecutor(1, "segments") as pool:
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


def text_tokens(sequences: Sequences, manifest: Manifest) -> np.ndarray:
    """Returns the number of rows of each sequence, [S].

    Raises:
        ValueError: where no sequence has a row.
    """
    parts = (sequences.take(slice(start, start + _COUNTED)) for start in range(0, len(sequences), _COUNTED))
    rows = np.concatenate([manifest.counted.text(part.tokens, part.left_out).sum(axis=1) for part in parts])
    if not rows.any():
        raise ValueError(
            f"none of the tokens in {showing.count(len(sequences), 'sequence')} counts: all are special ids ("
            f"{', '.join(map(str, manifest.counted.special_ids))}) or left out by the text (`Sequences.left_out`). "
            "Give text with tokens that count"
        )
    return rows
