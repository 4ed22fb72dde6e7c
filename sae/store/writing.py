"""Writes a store, segment by segment. A segment exists when its `segment.json` does, which is written last."""

import math

import numpy as np

from sae.store import arrays, attempts, claims
from sae.store import facts as facts_module
from sae.store import manifest as manifests
from sae.store.attempts import Attempt
from sae.store.claims import Claim
from sae.store.codec import codec
from sae.store.codec import lost as lost_by
from sae.store.manifest import ROW_FIELDS, Manifest, array_name, segment_name
from sae.store.moments import Moments
from sae.store.places import Place


def missing_segments(store: Place, manifest: Manifest) -> list[int]:
    """Returns the indices of the segments that are missing, and removes files that killed writers left of the others.

    Raises:
        ValueError: where a segment belongs to another store.
    """
    facts = {index: facts_module.read(store, index, manifest) for index in manifests.committed(store)}
    claims.clear(store, facts)
    attempts.clear(store, facts)
    return [i for i in range(manifest.segments) if i not in facts]


def bytes_of(manifest: Manifest, segments: int, rows: int) -> int:
    """Returns the most bytes that `segments` segments of a text with `rows` rows in all segments take."""
    rows = -(-rows // manifest.segments)
    return segments * sum(arrays.stored_bytes(rows, size) for size in _arrays(manifest))


def check_space(store: Place, manifest: Manifest, segments: int, rows: int) -> None:
    """Checks, before any work, that the disk has room for `segments` segments of a text with `rows` rows in all.

    Raises:
        ValueError: for too small a disk, with the bytes needed and the bytes free.
    """
    needed = bytes_of(manifest, segments, rows)
    free = store.free_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"the store needs up to {needed / 1e9:.2f} GB and {store} has {free / 1e9:.2f} GB free: "
            "free some, name another folder, or take fewer tokens or sites"
        )


def write_segment(
    store: Place,
    claim: Claim,
    activations: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    manifest: Manifest,
) -> None:
    """Leaves out sinks, shuffles the rows of a segment, writes and commits it. Rows are moved a shard at a time.

    Args:
        store: the store's place.
        claim: the claim on the segment; it is released at the end, also after an error.
        activations: {site: [rows, A]} of any float dtype.
        rows: `token`, `position` and `document` of every row, [rows] each.
        manifest: the store's; its seed and the segment's index decide the order.

    Raises:
        OSError: for a full disk, or a segment that another writer has written. This attempt's files are removed from a
            disk; files of others are untouched.
        ValueError: for activations that are not finite; nothing is written.
    """
    try:
        moments = {site: Moments.of(x) for site, x in activations.items()}
        check_finite(moments, segment_name(claim.index))
        keep = kept_rows(moments, manifest)
        order = row_order(manifest, claim.index, keep)
        facts = {
            "manifest": manifest.fingerprint(),
            "segment": claim.index,
            "rows": len(order),
            "sinks": len(rows["token"]) - len(order),
            "sink_limits": sink_limits(moments, manifest),
            "sites": {site: sums.statistics(activations[site], keep) for site, sums in moments.items()},
            "checksums": {},
        }
        values = [*activations.values(), *(rows[field] for field in ROW_FIELDS)]
        label = f"{facts['manifest']} {claim.index}"
        attempt = Attempt(claim, lambda: arrays.content_checksum(label, values))
        try:
            files = _write_all(store, attempt, activations, rows, order, facts, manifest.dtype)
            attempt.commit(facts, files)
        except BaseException as error:
            attempt.abandon()
            if isinstance(error, OSError | ValueError):  # tensorstore reports a full disk as ValueError
                raise _failure(store, claim, error) from error
            raise
    finally:
        claim.release()


def sink_limits(moments: dict[str, Moments], manifest: Manifest) -> dict[str, float]:
    """Returns {site: the norm over which a row is an attention sink}: a multiple of the median over all rows, with
    sinks."""
    counted = manifest.counted
    # pyrefly: ignore[missing-attribute]  not None here
    return {site: counted.sinks.factor * moments[site].median_norm() for site in counted.sink_sites}


def check_finite(moments: dict[str, Moments], where: str) -> None:
    """Raises ValueError, naming the site and where, for activations that are not finite."""
    for site, sums in moments.items():
        if not sums.finite():
            raise ValueError(
                f"{site} in {where} has activations that are infinite or not numbers, and is not used. float16 has no "
                "number above 65504: load the model in bfloat16 or float32"
            )


def kept_rows(moments: dict[str, Moments], manifest: Manifest) -> np.ndarray:
    """Returns the indices of the rows that are no sinks. The norm at any of the sinks' sites makes a row a sink."""
    keep = np.ones(len(next(iter(moments.values())).squares), bool)
    for site, limit in sink_limits(moments, manifest).items():
        keep &= moments[site].squares <= limit**2
    return np.flatnonzero(keep)


def row_order(manifest: Manifest, index: int, keep: np.ndarray) -> np.ndarray:
    """Returns the kept rows' indices in the order of the segment."""
    return keep[np.random.default_rng([manifest.seed, index]).permutation(len(keep))]


def _write_all(store, attempt, activations, rows, order, facts, dtype) -> list[str]:
    """Writes all arrays, completes `facts`, and returns the names of all files."""
    files = []
    for site, x in activations.items() if len(order) else ():
        checksums, lost = _write_array(store, attempt.folder, array_name(site), x, order, dtype, files)
        facts["checksums"] |= checksums
        facts["sites"][site]["rounding"] = lost / len(order)
    for field in ROW_FIELDS if len(order) else ():
        facts["checksums"] |= _write_array(store, attempt.folder, field, rows[field], order, None, files)[0]
    return files


def _write_array(
    store: Place, folder: str, name: str, values: np.ndarray, order: np.ndarray, dtype: str | None, files: list[str]
) -> tuple[dict[str, str], float]:
    """Writes values[order], a site's as `dtype`, a field's as int32, and adds to `files`. Returns {name of array or
    file: checksum}, and the squared norm, over all rows, of the rounding error."""
    stored = codec(dtype) if dtype else None
    encode = stored.encode if stored else (lambda x: {"": x.astype("<i4", copy=False)})
    writers = {
        name + suffix: arrays.Writer(store, f"{folder}/{name}{suffix}", len(order), part.shape[1:], part.dtype)
        for suffix, part in encode(values[:1]).items()
    }
    lost = 0.0
    # mode="clip" is three times as fast as the default: it moves whole rows.
    for piece in arrays.pieces(len(order), writers[name].shard_rows):
        x = np.take(values, order[piece], axis=0, mode="clip")
        parts = encode(x)
        for suffix, part in parts.items():
            writers[name + suffix].write(part)
        lost += lost_by(stored, x, parts) if stored else 0.0
    checksums = {}
    for array, writer in writers.items():
        checksums[array] = writer.close()
        checksums[f"{array}/zarr.json"] = arrays.checksum(store.read(f"{folder}/{array}/zarr.json") or b"")
        files += [f"{array}/{file}" for file in writer.files]
    return checksums, lost


def _failure(store: Place, claim: Claim, error: Exception) -> OSError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    if "No space left" in str(error) or "ENOSPC" in str(error):
        reason = "the disk is full"
    elif not claim.lasts() and "another writer" not in reason:
        reason = f"another writer has taken it over: {reason}"
    return OSError(
        f"writing {store}/{segment_name(claim.index)} failed ({reason}). The segments before it are kept: run the "
        "harvest again to go on"
    )


def _arrays(manifest: Manifest) -> list[int]:
    """Returns the bytes of a row in each array of a segment."""
    stored = codec(manifest.dtype)
    parts = [part for shape in manifest.sites.values() for part in stored.parts(math.prod(shape)).values()]
    return [dtype.itemsize * math.prod(row) for dtype, row in parts] + [4] * len(ROW_FIELDS)
