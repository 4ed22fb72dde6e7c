"""Writing a store, segment by segment. A segment is there when its `segment.json` is, which is written last."""

import json

import numpy as np

from sae.store import arrays, claims
from sae.store import manifest as manifests
from sae.store.claims import Claim
from sae.store.manifest import ROW_FIELDS, Manifest, array_name, commit_name, segment_facts, segment_name
from sae.store.moments import Moments
from sae.store.places import Place


def missing_segments(store: Place, manifest: Manifest) -> list[int]:
    """The segments that are still to be written.

    Raises:
      ValueError: when one that is there belongs to another store.
    """
    there = set(manifests.committed(store))
    for index in there:
        segment_facts(store, index, manifest)
    claims.clear(store, there)
    return [i for i in range(manifest.segments) if i not in there]


def check_space(store: Place, manifest: Manifest, segments: int, rows: int) -> None:
    """Refuses, before any work, what the disk cannot hold: so many segments of a text with so many rows in all.

    Raises:
      ValueError: with the bytes needed and the bytes free.
    """
    rows = -(-rows // manifest.segments)
    needed = segments * sum(arrays.stored_bytes(rows, size) for size in _arrays(manifest))
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
      store: where.
      claim: of the segment; it is released at the end, whatever that is.
      activations: site -> [rows, A] float32.
      rows: `token`, `position` and `document` of every row, [rows].
      manifest: the store's; its seed and the segment's number decide the order.

    Raises:
      OSError: when the disk is full, or the segment was written by somebody else. What had been written of it is
        removed; committed ones are untouched.
      ValueError: for activations that are not finite; nothing is written.
    """
    try:
        moments = {site: Moments.of(x) for site, x in activations.items()}
        for site, sums in moments.items():
            if not sums.finite():
                raise ValueError(
                    f"{site} in {segment_name(claim.index)} has activations that are infinite or not numbers: nothing "
                    "of it was written"
                )
        keep = kept_rows(moments, manifest)
        order = row_order(manifest, claim.index, keep)
        facts = {
            "manifest": manifest.fingerprint(),
            "rows": len(order),
            "sinks": len(rows["token"]) - len(order),
            "sites": {site: sums.statistics(activations[site], keep) for site, sums in moments.items()},
            "checksums": {},
        }
        try:
            _write_all(store, claim, activations, rows, order, facts, manifest.dtype)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            raise _failure(store, claim.index, error) from error
    finally:
        claim.release()


def kept_rows(moments: dict[str, Moments], manifest: Manifest) -> np.ndarray:
    """The numbers of the rows that are no sinks. A row is one by its norm at any of the manifest's sink_sites, against
    the median over these rows."""
    keep = np.ones(len(next(iter(moments.values())).squares), bool)
    for site in manifest.sink_sites:
        sums = moments[site]
        keep &= sums.squares <= (manifest.sink_factor * sums.median_norm()) ** 2
    return np.flatnonzero(keep)


def row_order(manifest: Manifest, index: int, keep: np.ndarray) -> np.ndarray:
    """The kept rows' numbers in the order in which the segment has them."""
    return keep[np.random.default_rng([manifest.seed, index]).permutation(len(keep))]


def _write_all(store, claim, activations, rows, order, facts, dtype) -> None:
    name = segment_name(claim.index)
    store.remove(name)  # what a writer that was killed left of it
    for site, x in activations.items() if len(order) else ():
        checksums, lost = _write_array(store, array_name(claim.index, site), x, order, dtype)
        facts["checksums"] |= checksums
        facts["sites"][site]["rounding"] = lost / len(order)
    for field in ROW_FIELDS if len(order) else ():
        facts["checksums"] |= _write_array(store, array_name(claim.index, field), rows[field], order, None)[0]
    claim.renew()
    if not store.create(commit_name(claim.index), json.dumps(facts)):
        raise OSError("another writer has committed it meanwhile")


def _write_array(
    store: Place, name: str, values: np.ndarray, order: np.ndarray, dtype: str | None
) -> tuple[dict[str, str], float]:
    """Writes values[order], a site's as `dtype`, a field's as int32. Returns {array's name: checksum}, and the squared
    norm, over all rows, of what rounding to the dtype lost."""
    encode = (lambda x: arrays.encode(x, dtype)) if dtype else (lambda x: {"": x.astype("<i4", copy=False)})
    writers = {
        suffix: arrays.Writer(store, name + suffix, len(order), part.shape[1:], part.dtype)
        for suffix, part in encode(values[:1]).items()
    }
    lost = 0.0
    # mode="clip" is three times as fast as the default: it moves whole rows.
    for piece in arrays.pieces(len(order), writers[""].shard_rows):
        x = np.take(values, order[piece], axis=0, mode="clip")
        parts = encode(x)
        for suffix, part in parts.items():
            writers[suffix].write(part)
        lost += arrays.lost(x, parts) if dtype else 0.0
    checksums = {f"{name.partition('/')[2]}{suffix}": writer.close() for suffix, writer in writers.items()}
    return checksums, lost


def _failure(store: Place, index: int, error: Exception) -> OSError:
    """The error to raise, once what was written of a segment that is not committed is removed."""
    if index not in manifests.committed(store):
        store.remove(segment_name(index))
    full = "No space left" in str(error) or "ENOSPC" in str(error)
    reason = "the disk is full" if full else str(error).splitlines()[0][:300]
    return OSError(
        f"writing {store}/{segment_name(index)} failed ({reason}); the segments before it are kept, run again to go on"
    )


def _arrays(manifest: Manifest) -> list[int]:
    """Bytes of a row in each array of a segment."""
    sizes = []
    for shape in manifest.sites.values():
        sizes.append(arrays.STORED[manifest.dtype].itemsize * int(np.prod(shape)))
        sizes += [4] if manifest.dtype == "int8" else []
    return sizes + [4] * len(ROW_FIELDS)
