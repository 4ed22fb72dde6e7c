"""What a store says of itself, in `manifest.json`; and where its files are.

store/manifest.json       this file's Manifest
store/documents.json      (id, source) of every document, by number
store/segment_00000/      rows in shuffled order; there once, and only when, all of it has been written
    segment.json          the manifest's fingerprint, row count; mean and mean squared norm of every site, in float64
    layer_3.resid_post/   zarr v3 array [rows, A]
    token/ position/ document/   zarr v3 arrays [rows], int32
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

FORMAT = 1
ROW_FIELDS = ("token", "position", "document")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything that decides what the rows are. Two stores with equal manifests hold equal rows.

    Attributes:
      model: its name. model_sha256: over its parameters. tokenizer_sha256: of its SentencePiece model.
      sites: name -> shape of one token's activation, (D,) or (N, H), …; a row holds its axes joined.
      units: "raw": as the model computes them.
      dtype: of the stored activations.
      corpus_sha256: of the token sequences. sequences, length: their number and their tokens each, BOS included.
      sequences_per_segment, seed: which sequences a segment holds, and in which order its rows are.
      dropped_tokens: ids whose rows are left out (BOS, EOS, padding).
    """

    model: str
    model_sha256: str
    tokenizer_sha256: str
    sites: dict[str, tuple[int, ...]]
    dtype: str
    corpus_sha256: str
    sequences: int
    length: int
    sequences_per_segment: int
    seed: int
    dropped_tokens: tuple[int, ...]
    units: str = "raw"
    format: int = FORMAT

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"a store's dtype is one of {', '.join(DTYPES)}; got {self.dtype!r}")

    def fingerprint(self) -> str:
        """sha256 over all of it; every segment carries it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def segments(self) -> int:
        """How many segments the whole store has."""
        return -(-self.sequences // self.sequences_per_segment)


def segment_folder(store: Path, index: int) -> Path:
    return store / f"segment_{index:05d}"


def segment_facts(store: Path, index: int, manifest: Manifest) -> dict:
    """A segment's `segment.json`.

    Raises:
      ValueError: when the segment was written for another manifest.
    """
    folder = segment_folder(store, index)
    facts = read_json(folder / "segment.json")
    if facts.get("manifest") != manifest.fingerprint():
        raise ValueError(f"{folder} was not written for this store's manifest.json: delete it and harvest again")
    return facts


def site_folder(segment: Path, site: str) -> Path:
    return segment / site.replace("/", ".")


def read(store: Path) -> Manifest:
    """Raises ValueError when there is no store, or one that this version cannot read."""
    try:
        values = read_json(store / "manifest.json")
    except FileNotFoundError:
        raise ValueError(f"{store} is no activation store: it has no manifest.json") from None
    if values.get("format") != FORMAT:
        raise ValueError(f"{store} has store format {values.get('format')!r}; this version reads {FORMAT}")
    values["sites"] = {site: tuple(shape) for site, shape in values["sites"].items()}
    values["dropped_tokens"] = tuple(values["dropped_tokens"])
    return Manifest(**values)


def read_json(path: Path):
    """Raises ValueError, naming the file, when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def write(store: Path, manifest: Manifest, documents: tuple[tuple[str, str], ...]) -> None:
    """Begins a store, or checks that the one that is there has the same manifest.

    Raises:
      ValueError: naming every field that differs from the store's own; the store is left as it is.
    """
    if (store / "manifest.json").exists():
        there = dataclasses.asdict(read(store))
        asked = dataclasses.asdict(manifest)
        changed = [
            f"{key}: the store has {there[key]}, asked for {asked[key]}" for key in asked if there[key] != asked[key]
        ]
        if changed:
            raise ValueError(
                f"{store} holds other activations:\n  " + "\n  ".join(changed) + "\n"
                "Name another folder, or delete this one. Nothing was changed."
            )
        return
    store.mkdir(parents=True, exist_ok=True)
    replace_file(store / "documents.json", json.dumps(documents))
    replace_file(store / "manifest.json", json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
