"""`sae.harvest`: running the model over text and storing what is at some of its sites."""

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
_COUNTED = 4096  # sequences whose text tokens are counted at a time


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
    """What a harvest with these arguments would write; nothing is computed.

    Raises:
      ValueError: for a site that the model lacks (the nearest are named), or one with no vector for each token; a seed
        that is not from 0 to 2^32 - 1, or another argument that is not possible; no sequences, or sequences that are
        not of this model's tokenizer (`sae.text.check_sequences`).
    """
    seed, shuffle_rows, shuffle_bytes = (
        manifests.whole(name, value)
        for name, value in (("seed", seed), ("shuffle_rows", shuffle_rows), ("shuffle_bytes", shuffle_bytes))
    )
    check_tokenizer(model)
    require_sequences(sequences)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites:
        raise ValueError("name one site at least, for example layer_0/resid_post")
    if shuffle_rows < 1:
        raise ValueError(f"shuffle_rows must be at least 1, got {shuffle_rows}")
    shapes = {site: tuple(token_site(model, site).shape) for site in sites}
    length = sequences.tokens.shape[1]
    if not len(sequences) or length < 2:
        raise ValueError(
            f"a harvest needs sequences of BOS and one token at least, got [S, T] = {[len(sequences), length]}: give "
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
    """Returns the rule of a harvest, complete but for the limits of sinks, which its segments find.

    Raises:
      ValueError: for sinks whose factor is missing, limits that another harvest found, sites that are not harvested, or
        a rule for the other kind of text (`Counted.for_text`).
    """
    counted = Counted.or_default(counted, model.tokenizer.special_ids).for_text(sequences.left_out is not None)
    sinks = counted.sinks
    if sinks is None:
        return counted
    if sinks.factor is None or sinks.limits is not None:
        raise ValueError(
            f"`counted` has the limits of another harvest's sinks, {sinks}, and a harvest finds its own: give "
            "Sinks(factor, sites) without limits"
        )
    if missing := [site for site in sinks.sites if site not in sites]:
        raise ValueError(f"the sites of sinks have {missing[0]!r}, which is not harvested: {', '.join(sites)}")
    # Sinks have their large norms in the residual stream; without a site of it, norms are measured at all.
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
    """Writes the activations of `sites` over `sequences` to a store, or what is missing of it.

    The sequences are put into a random order, a segment takes the next ones, and its rows are shuffled again: any run
    of rows is a mixture of the whole text. A segment depends on the arguments and its number alone, and is there whole
    or not at all, so that a harvest that was stopped, however it was, goes on to the same store, byte for byte.

    The model's dtype is the activations', and recorded: float32 and bfloat16 activations never share a store.

    Several workers, on one machine or many, divide a harvest without talking to each other: each takes its part of the
    segments. Should two have the same index, or one be suspended and another launched in its place, the store is the
    same too: one of them gets an error. Nothing is written before all arguments are checked.

    Args:
      model: with its tokenizer.
      sequences: from `sae.text.cut`.
      sites: names such as `layer_3/resid_post`, or one.
      path: a folder, gs://bucket/folder or s3://bucket/folder.
      seed: of both shufflings.
      dtype: of the stored rows: "float32", "bfloat16", "float16", "int8" (with a scale for each row), or another
        registered codec (`sae.store.codec`).
      shuffle_rows: rows that a segment has and that are shuffled together, as far as memory allows.
      shuffle_bytes: memory on the host for the rows of the two segments that are being filled and written, and for
        the work on them (384 MiB, or three quarters of it all if that is less).
      counted: which tokens have a row; by default all but the tokenizer's special ids and what the text leaves out.
        `Counted(ids, sinks=Sinks(4.0))` leaves out attention sinks too: rows whose norm is over 4 times the segment's
        median, by default at those of `sites` that are of the residual stream.
      worker: (index, count) of this process among those that divide the harvest: it writes every segment whose number
        leaves the remainder `index` when divided by `count`.
      silent_seconds: after which a process on another machine that has begun a segment, and that nothing was heard of,
        counts as gone. No two clocks need to agree.
      mesh: where given, a batch is spread over its `data` axis. Its devices are this process's own.
      progress: by default a line that says what is to come (how many sequences of how many, tokens, bytes) and a bar,
        on standard error, where that is a terminal or this is a notebook. True shows them everywhere, False nowhere. Or
        a function that is called with the batches to come, and `total` and `desc`, as tqdm is.

    Returns:
      The store, opened; while other workers' segments are missing, as a growing one.

    Raises:
      ValueError: for unknown sites, text of another tokenizer or with no token that counts, a store there with other
        contents, a disk too small for what is to come (all before anything is written), or activations that are not
        finite.
      OSError: when the disk fills up all the same, or another process writes the same segment; finished segments are
        kept.
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
            "the model's parameters are not on the mesh's devices: load the model onto them, as "
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
    """What a harvest is, and what is to come of it, in a line. `tokens` are those of all segments, sinks among them."""
    whole = showing.size(writing.bytes_of(manifest, manifest.segments, tokens))
    text = (
        f"harvest: {sequences.size}, {showing.count(tokens, 'token')} at {manifest.label}, {manifest.dtype}, "
        f"up to {whole} in {store}"
    )
    if len(missing) == manifest.segments:
        return text
    if not missing:
        return f"{text}; nothing is left to do here"
    # Segments are of one size but for the last; their tokens are estimated from the mean.
    size = manifest.sequences_per_segment
    part = sum(min(size, manifest.sequences - index * size) for index in missing)
    about = tokens * part // manifest.sequences
    return (
        f"{text}; here {len(missing):,} of {showing.count(manifest.segments, 'segment')}: {part:,} sequences, about "
        f"{about:,} tokens, {showing.size(writing.bytes_of(manifest, len(missing), tokens))}"
    )


def _write_segments(model, sequences, manifest, missing, store, silent_seconds, mesh, progress) -> None:
    """Fills segments here while a thread writes the one before."""
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
    """[S] rows that each sequence gives.

    Raises:
      ValueError: when no sequence gives any.
    """
    parts = (sequences.take(slice(start, start + _COUNTED)) for start in range(0, len(sequences), _COUNTED))
    rows = np.concatenate([manifest.counted.text(part.tokens, part.left_out).sum(axis=1) for part in parts])
    if not rows.any():
        raise ValueError(
            f"none of the tokens in {len(sequences)} sequences counts: all are special ids ("
            f"{', '.join(map(str, manifest.counted.special_ids))}) or left out by the text (`Sequences.left_out`), so "
            "there is nothing to harvest"
        )
    return rows
