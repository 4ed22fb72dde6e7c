"""`segment.json`: the facts of a segment. It ends in a checksum of all bytes before.

manifest     fingerprint of the store's manifest
segment      the segment's index: a copy under another name is no segment
rows, sinks  rows of its arrays, and rows that were left out as attention sinks
sites        for every site, in float64: mean [A], mean_squared_norm, median_norm, and for a segment with rows the
             rounding error of the stored dtype (mean squared norm)
checksums    xxh3_128 of every array's values in the order of its rows, and of its zarr.json
folder       in a bucket: the folder, within the segment, of its arrays
checksum     xxh3_128 of the bytes before
"""

import math

from sae import showing
from sae.store import manifest as manifests
from sae.store import sealing
from sae.store.manifest import Manifest, array_names, commit_name, segment_name
from sae.store.places import Place

_FIELDS = {"manifest": str, "segment": int, "rows": int, "sinks": int, "sites": dict, "checksums": dict}
_OPTIONAL = {"folder": str, "sink_limits": dict}
_STATISTICS = {"mean": list, "mean_squared_norm": float | int, "median_norm": float | int}


def read(store: Place, index: int, manifest: Manifest) -> dict:
    """Returns the checked facts of a segment's `segment.json`.

    Raises:
        FileNotFoundError: where the file is missing.
        ValueError: where it is damaged, or belongs to another manifest or segment; it names the file and the field.
    """
    name = f"{store}/{commit_name(index)}"
    if not 0 <= index < manifest.segments:
        raise ValueError(
            f"{store}/{segment_name(index)} is none of this store's {showing.count(manifest.segments, 'segment')}: "
            "delete it"
        )
    text = store.read(commit_name(index))
    if text is None:
        raise FileNotFoundError(f"{name} is missing")
    facts = store.parse(commit_name(index), text)
    if not isinstance(facts, dict):
        raise ValueError(f"{name} is damaged: it holds a {type(facts).__name__}, not a JSON object")
    if facts.get("manifest") != manifest.fingerprint():
        raise ValueError(
            f"{store}/{segment_name(index)} was not written for this store's manifest.json: delete it and harvest again"
        )
    expected = dict(_FIELDS)
    if manifest.format < 3:
        del expected["segment"]
    else:
        expected[sealing.FIELD] = str
        sealing.check(name, text)
    expected |= {field: kind for field, kind in _OPTIONAL.items() if field in facts}
    # pyrefly: ignore[bad-argument-type]  types, or unions of them
    manifests.check_json(name, facts, expected)
    if facts.get("segment", index) != index:
        raise ValueError(
            f"{store}/{segment_name(index)} is a copy of segment {facts['segment']}: delete it and harvest again"
        )
    _check_sites(name, facts, manifest)
    recorded = {array for array in facts["checksums"] if not array.endswith("/zarr.json")}
    missing = set(array_names(manifest)) - recorded if facts["rows"] else set()
    if missing:
        raise ValueError(f"{name} is damaged: it has no checksum of {sorted(missing)[0]}")
    return facts


def _check_sites(name: str, facts: dict, manifest: Manifest) -> None:
    manifests.check_json(f"{name}, sites,", facts["sites"], dict.fromkeys(manifest.sites, dict))
    expected = _STATISTICS | ({"rounding": float | int} if facts["rows"] else {})
    for site, statistics in facts["sites"].items():
        # pyrefly: ignore[bad-argument-type]  types, or unions of them
        manifests.check_json(f"{name}, {site},", statistics, expected)
        if len(statistics["mean"]) != math.prod(manifest.sites[site]):
            raise ValueError(f"{name} is damaged: {site}'s mean has {len(statistics['mean'])} numbers")
