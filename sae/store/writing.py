"""Writing a store, segment by segment. A segment is there or it is not: it is written beside and then renamed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from sae.store import arrays
from sae.store.manifest import ROW_FIELDS, Manifest, replace_file, segment_facts, segment_folder, site_folder


def missing_segments(store: Path, manifest: Manifest) -> list[int]:
    """The segments that are still to be written.

    Raises:
      ValueError: when one that is there belongs to another store.
    """
    there = {i for i in range(manifest.segments) if segment_folder(store, i).is_dir()}
    for index in there:
        segment_facts(store, index, manifest)
    return [i for i in range(manifest.segments) if i not in there]


def check_space(store: Path, manifest: Manifest, segments: int, rows: int) -> None:
    """Refuses, before any work, what the disk cannot hold: so many segments of a text with so many rows in all.

    Raises:
      ValueError: with the bytes needed and the bytes free.
    """
    rows = -(-rows // manifest.segments)
    value_bytes = 4 if manifest.dtype == "float32" else 2
    row_bytes = [value_bytes * int(np.prod(shape)) for shape in manifest.sites.values()] + [4] * len(ROW_FIELDS)
    needed = segments * sum(arrays.stored_bytes(rows, size) for size in row_bytes)
    free = shutil.disk_usage(store).free
    if needed > free:
        raise ValueError(
            f"the store needs up to {needed / 1e9:.2f} GB and {store} has {free / 1e9:.2f} GB free: "
            "free some, name another folder, or take fewer tokens or sites"
        )


def write_segment(
    store: Path, index: int, activations: dict[str, np.ndarray], rows: dict[str, np.ndarray], manifest: Manifest
) -> None:
    """Shuffles the rows of a segment and commits it.

    Args:
      store: the store's folder.
      index: the segment's number.
      activations: site -> [rows, A].
      rows: `token`, `position` and `document` of every row, [rows].
      manifest: the store's; its seed and the index decide the order.

    Raises:
      OSError: when the disk is full. What had been written of the segment is removed; committed ones are untouched.
    """
    final = segment_folder(store, index)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    order = np.random.default_rng([manifest.seed, index]).permutation(len(rows["token"]))
    statistics = {}
    try:
        for site, values in activations.items():
            statistics[site] = _statistics(values)
            arrays.write(site_folder(partial, site), values[order].astype(_numpy_dtype(manifest.dtype), copy=False))
        for field in ROW_FIELDS:
            arrays.write(partial / field, rows[field][order].astype(np.int32))
        facts = {"manifest": manifest.fingerprint(), "rows": len(order), "sites": statistics}
        replace_file(partial / "segment.json", json.dumps(facts))
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"writing {final} failed ({_short(error)}); the segments before it are kept, run again to go on"
        ) from error
    os.replace(partial, final)


def _statistics(values: np.ndarray) -> dict:
    """Mean [A] and mean squared norm of [rows, A], summed in float64 a block at a time."""
    total, squares = np.zeros(values.shape[1]), 0.0
    for start in range(0, len(values), 8192):
        block = values[start : start + 8192].astype(np.float64)
        total += block.sum(axis=0)
        squares += float(np.square(block).sum())
    return {"mean": (total / len(values)).tolist(), "mean_squared_norm": squares / len(values)}


def _numpy_dtype(name: str) -> np.dtype:
    import ml_dtypes  # registers bfloat16 with numpy; it comes with jax

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _short(error: Exception) -> str:
    text = str(error)
    return "the disk is full" if "No space left" in text or "ENOSPC" in text else text.splitlines()[0][:200]
