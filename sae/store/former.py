"""Manifests of store formats 2 and 3, which are read and no longer written.

They have hashes of the model's parameters and of its config in place of a fingerprint of both, and the rule of which
tokens count in four fields. Format 2 has checksums of arrays alone, and its segments do not record their index.
"""

FORMATS = (2, 3)
_FIELDS = {
    "model": str,
    "model_sha256": str,
    "config_sha256": str,
    "tokenizer_sha256": str,
    "sites": dict,
    "dtype": str,
    "corpus_sha256": str,
    "sequences": int,
    "length": int,
    "sequences_per_segment": int,
    "seed": int,
    "dropped_tokens": list,
    "sink_factor": float | int | None,
    "sink_sites": list,
    "units": str,
    "format": int,
}
# Fields since format 3: those that decide the rows, and notes.
_SINCE_3 = {"activation_dtype": str, "documents_sha256": str | None}
_NOTES = {"left_out": bool | None, "origin": dict | None, "parameters_dtype": str | None}
_REPLACED = ("model_sha256", "config_sha256", "dropped_tokens", "sink_factor", "sink_sites", "left_out")


def fields(format: int) -> dict:
    """Returns the types that the fields of a manifest of format 2 or 3 have in JSON."""
    return _FIELDS if format == 2 else _FIELDS | _SINCE_3 | _NOTES


def as_manifest(values: dict) -> dict:
    """Returns the fields of manifest.json in the current format. `former` has the fields that decide the rows, in their
    old form, since the segments' fingerprints are of those.

    Args:
        values: the fields of format 2 or 3, without the checksum.
    """
    factor = values["sink_factor"]
    sinks = None if factor is None else {"factor": factor, "sites": tuple(values["sink_sites"])}
    counted = {"special_ids": values["dropped_tokens"], "left_out": values.get("left_out"), "sinks": sinks}
    rest = {name: value for name, value in values.items() if name not in _REPLACED}
    identity = {name: value for name, value in values.items() if name not in _NOTES}
    return rest | {"model_fingerprint": None, "counted": counted, "former": identity}
