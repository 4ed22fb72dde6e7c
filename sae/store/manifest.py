"""What a store says of itself, in `manifest.json`; and where its files are.

store/manifest.json          this file's Manifest
store/documents.json         (id, source) of every document, by number
store/segment_00000/         rows in shuffled order
    layer_3.resid_post/      zarr v3 array [rows, A]; for int8 its rows' scales are in layer_3.resid_post.scale/
    token/ position/ document/   zarr v3 arrays [rows], int32
    segment.json             written last: the segment is there when this is. Its manifest's fingerprint, row counts,
                             statistics of every site in float64, checksum (xxh3_128) of every array
"""

import dataclasses
import hashlib
import json
import re

from sae.store import arrays
from sae.store.places import Place

FORMAT = 2
ROW_FIELDS = ("token", "position", "document")
DTYPES = tuple(arrays.STORED)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything that decides what the rows are. Two stores with equal manifests hold equal rows.

    Attributes:
      model: its name. model_sha256: over its parameters. config_sha256: over its shape and constants.
      tokenizer_sha256: of its SentencePiece model.
      sites: name -> shape of one token's activation, (D,) or (N, H), …; a row holds its axes joined.
      units: "raw": as the model computes them.
      dtype: of the stored activations.
      corpus_sha256: of the token sequences. sequences, length: their number and their tokens each, BOS included.
      sequences_per_segment, seed: which sequences a segment holds, and in which order its rows are.
      dropped_tokens: ids whose rows are left out (BOS, EOS, padding).
      sink_factor: rows are left out whose norm at one of sink_sites is over this multiple of the segment's median
        there; None keeps them.
    """

    model: str
    model_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    sites: dict[str, tuple[int, ...]]
    dtype: str
    corpus_sha256: str
    sequences: int
    length: int
    sequences_per_segment: int
    seed: int
    dropped_tokens: tuple[int, ...]
    sink_factor: float | None = None
    sink_sites: tuple[str, ...] = ()
    units: str = "raw"
    format: int = FORMAT

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"a store's dtype is one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if self.sink_factor is not None and not self.sink_factor > 1:
            raise ValueError(f"sink_factor is a multiple of the median norm, more than 1; got {self.sink_factor}")

    def fingerprint(self) -> str:
        """sha256 over all of it; every segment carries it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def segments(self) -> int:
        """How many segments the whole store has."""
        return -(-self.sequences // self.sequences_per_segment)


def segment_name(index: int) -> str:
    return f"segment_{index:05d}"


def commit_name(index: int) -> str:
    """The file that makes a segment be there."""
    return f"{segment_name(index)}/segment.json"


def array_name(index: int, name: str) -> str:
    """Where a site's array is, or a row field's."""
    return f"{segment_name(index)}/{name.replace('/', '.')}"


def committed(store: Place) -> list[int]:
    """The segments that are there."""
    if store.folder is not None:
        found = (path.parent.name for path in store.folder.glob("segment_*/segment.json"))
    else:
        found = (name.partition("/")[0] for name in store.names("segment_") if name.endswith("/segment.json"))
    return sorted(int(name.removeprefix("segment_")) for name in found if re.fullmatch(r"segment_\d+", name))


def segment_facts(store: Place, index: int, manifest: Manifest) -> dict:
    """A segment's `segment.json`.

    Raises:
      ValueError: when the segment was written for another manifest.
    """
    facts = store.read_json(commit_name(index))
    if facts.get("manifest") != manifest.fingerprint():
        raise ValueError(
            f"{store}/{segment_name(index)} was not written for this store's manifest.json: delete it and harvest again"
        )
    return facts


def read(store: Place) -> Manifest:
    """Raises ValueError when there is no store, or one that this version cannot read."""
    try:
        values = store.read_json("manifest.json")
    except FileNotFoundError:
        raise ValueError(f"{store} is no activation store: it has no manifest.json") from None
    if values.get("format") != FORMAT:
        raise ValueError(f"{store} has store format {values.get('format')!r}; this version reads {FORMAT}")
    values["sites"] = {site: tuple(shape) for site, shape in values["sites"].items()}
    for name in ("dropped_tokens", "sink_sites"):
        values[name] = tuple(values[name])
    return Manifest(**values)


def write(store: Place, manifest: Manifest, documents: tuple[tuple[str, str], ...]) -> None:
    """Begins a store, or checks that the one that is there has the same manifest.

    Raises:
      ValueError: naming every field that differs from the store's own; the store is left as it is.
    """
    if store.read("manifest.json") is None:
        store.write("documents.json", json.dumps(documents))
        if store.create("manifest.json", json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"):
            return
    check(store, manifest)


def check(store: Place, manifest: Manifest) -> None:
    """Raises ValueError, naming every field that differs, unless a store is the manifest's."""
    there, asked = dataclasses.asdict(read(store)), dataclasses.asdict(manifest)
    changed = [
        f"{key}: the store has {there[key]}, asked for {asked[key]}" for key in asked if there[key] != asked[key]
    ]
    if changed:
        raise ValueError(
            f"{store} holds other activations:\n  " + "\n  ".join(changed) + "\n"
            "Name another folder, or delete this one. Nothing was changed."
        )
