"""`manifest.json` describes a store; and the places of a store's files.

store/manifest.json          this file's Manifest
store/documents.json         (id, source) of every document, by index
store/segment_00000/         rows in shuffled order
    layer_3.resid_post/      zarr v3 array [rows, A]; a codec may have more arrays, such as layer_3.resid_post.scale/
    token/ position/ document/   zarr v3 arrays [rows], int32
    segment.json             the segment exists when this file does; see `facts.py`
store/writers/               files of harvests that are under way; see `claims.py` and `attempts.py`

In a bucket, a segment's arrays lie one folder deeper, which `segment.json` names; see `attempts.py`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import operator
import re
import types
import typing
from collections.abc import Iterable

from sae import showing
from sae.counted import Counted
from sae.fields import check_fields
from sae.store import former, sealing
from sae.store.codec import codec, names
from sae.store.places import Place
from sae.text.origin import Origin

FORMAT = 4
READABLE = (*former.FORMATS, FORMAT)
SEEDS = 1 << 32
ROW_FIELDS = ("token", "position", "document")
_READ = ("corpus", "only_model_turns", "packed")  # fields of an `Origin` that decide the sequences
NOTES = ("origin", "parameters_dtype")  # fields that decide no row


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that decides the rows of a store. Two stores with equal manifests hold equal rows.

    Attributes:
        model: the model's name.
        model_fingerprint: `model.fingerprint`; None in a store of format 2 or 3, which has other hashes.
        tokenizer_sha256: `Tokenizer.sha256`.
        sites: {site: shape of one token's activation}, (D,) or (N, H), …; a row holds its axes joined.
        dtype: the dtype (the codec) of the stored activations.
        corpus_sha256: `Sequences.fingerprint`: the token sequences, and the tokens that they leave out.
        sequences: the number of the sequences.
        length: T, tokens of a sequence, BOS included.
        sequences_per_segment: the number of sequences of a segment.
        seed: decides the sequences of each segment, and the order of its rows.
        counted: which tokens have a row. Each segment has limits of its own for sinks (`segment.json`).
        units: "raw": as the model computes them.
        format: the format of the store.
        activation_dtype: the dtype in which the model computed the activations.
        documents_sha256: sha256 of documents.json; None in a store of format 2.
        origin: how the text was cut, and its source, where they are known.
        parameters_dtype: the dtype of the model's parameters, on which their hash depends. None in old stores.
        former: in a store of format 2 or 3: the fields that decide its rows, as in its manifest.json; else None.
    """

    model: str
    model_fingerprint: str | None
    tokenizer_sha256: str
    sites: dict[str, tuple[int, ...]]
    dtype: str
    corpus_sha256: str
    sequences: int
    length: int
    sequences_per_segment: int
    seed: int
    counted: Counted
    units: str = "raw"
    format: int = FORMAT
    activation_dtype: str = "float32"
    documents_sha256: str | None = None
    origin: Origin | None = dataclasses.field(default=None, compare=False)
    parameters_dtype: str | None = dataclasses.field(default=None, compare=False)
    former: dict | None = None

    def __post_init__(self):
        check_fields(self, ("sequences", "length", "sequences_per_segment", "seed"))
        for site, shape in self.sites.items():
            if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
                raise ValueError(f"{site}'s shape is one or more sizes above 0, got {shape}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(
                f"a harvest's seed is from 0 to {SEEDS - 1}, since shuffling takes 32 bits; got {self.seed}"
            )
        if self.dtype not in names():
            raise ValueError(f"a store's dtype is one of {', '.join(names())}; got {self.dtype!r}")

    def __repr__(self) -> str:
        sequences, segments = showing.count(self.sequences, "sequence"), showing.count(self.segments, "segment")
        return f"Manifest({self.label}, {self.dtype}, {sequences} of {self.length:,} tokens in {segments})"

    @property
    def label(self) -> str:
        """The sites and the model in words: `layer_3/mlp_out, layer_3/resid_post of gemma2-tiny`."""
        return f"{showing.joined(tuple(self.sites))} of {self.model}"

    def identity(self) -> dict:
        """Returns the fields that decide the rows, for JSON; without the notes."""
        if self.former is not None:
            return self.former
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in (*NOTES, "former")}

    def fingerprint(self) -> str:
        """Returns a sha256 over `identity`; every segment carries it."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def segments(self) -> int:
        """The number of segments of the whole store."""
        return -(-self.sequences // self.sequences_per_segment)


def segment_name(index: int) -> str:
    """Returns the name of a segment's folder."""
    return f"segment_{index:05d}"


def commit_name(index: int) -> str:
    """Returns the name of the file by which a segment exists."""
    return f"{segment_name(index)}/segment.json"


def array_name(site: str) -> str:
    """Returns the name of the folder, within a segment, of the array of a site or a row field."""
    return site.replace("/", ".")


def array_names(manifest: Manifest) -> list[str]:
    """Returns the names of all arrays of a segment with rows."""
    stored = codec(manifest.dtype)
    parts = [
        array_name(site) + suffix for site, shape in manifest.sites.items() for suffix in stored.parts(math.prod(shape))
    ]
    return parts + list(ROW_FIELDS)


def committed(store: Place) -> list[int]:
    """Returns the indices of the segments that exist."""
    if store.folder is not None:
        folders = (path.parent.name for path in store.folder.glob("segment_*/segment.json"))
    else:
        folders = (name.partition("/")[0] for name in store.names("segment_") if name.endswith("/segment.json"))
    return sorted(int(name.removeprefix("segment_")) for name in folders if re.fullmatch(r"segment_\d+", name))


def documents_sha256(documents: Iterable[tuple[str, str]]) -> str:
    """Returns the sha256 of the documents.json with these documents."""
    return hashlib.sha256(_documents_json(documents)).hexdigest()


def _documents_json(documents: Iterable[tuple[str, str]]) -> bytes:
    return json.dumps(list(documents)).encode()


def read_documents(store: Place, manifest: Manifest) -> list[tuple[str, str]]:
    """Returns (id, source) of every document.

    Raises:
        FileNotFoundError, ValueError: where documents.json is missing, or does not belong to the manifest.
    """
    contents = store.read("documents.json")
    if contents is None:
        raise FileNotFoundError(f"{store}/documents.json is missing: run the harvest again, which writes it")
    if manifest.documents_sha256 not in (None, hashlib.sha256(contents).hexdigest()):
        raise ValueError(
            f"{store}/documents.json does not belong to manifest.json: its checksum differs. Run the harvest again, "
            "which writes it anew"
        )
    return [tuple(pair) for pair in store.read_json("documents.json")]


def read(store: Place) -> Manifest:
    """Returns the manifest of a store.

    Raises:
        ValueError: where the place has no store, or one that this version cannot read.
    """
    name, contents = f"{store}/manifest.json", store.read("manifest.json")
    if contents is None:
        raise ValueError(f"{store} is no activation store: it has no manifest.json")
    values = store.parse("manifest.json", contents)
    if not isinstance(values, dict):
        raise ValueError(f"{name} is damaged: it holds a {type(values).__name__}, not a JSON object")
    if values.get("format") not in READABLE:
        *first, last = map(str, READABLE)
        readable = f"{', '.join(first)} and {last}"
        raise ValueError(f"{store} has store format {values.get('format')!r}; this version reads {readable}")
    format = values["format"]
    sealed = format >= 3
    fields = _fields() if format == FORMAT else former.fields(format)
    check_json(name, values, fields | ({sealing.FIELD: str} if sealed else {}))
    if sealed:
        sealing.check(name, contents)
        del values[sealing.FIELD]
    try:
        values = former.as_manifest(values) if format != FORMAT else values
        values["sites"] = {site: tuple(shape) for site, shape in values["sites"].items()}
        values["counted"] = Counted(**values["counted"])
        if values.get("origin") is not None:
            values["origin"] = Origin(**values["origin"])
        return Manifest(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is damaged: {error}") from None


def check_json(file: str, values: dict, expected: dict[str, type | types.UnionType]) -> None:
    """Raises ValueError unless a file's JSON object has exactly these fields, of these types."""
    for name in values:
        if name not in expected:
            raise ValueError(
                f"{file} has the field {name!r}, which this version does not know: a newer version may have written it"
            )
    for name, kind in expected.items():
        if name not in values:
            raise ValueError(f"{file} is damaged: the field {name!r} is missing")
        no_bool = bool not in (typing.get_args(kind) or (kind,))  # in Python a bool is an int
        if not isinstance(values[name], kind) or (no_bool and isinstance(values[name], bool)):
            raise ValueError(f"{file} is damaged: {name!r} is {json.dumps(values[name])[:60]}")


def _fields() -> dict[str, type | types.UnionType]:
    """Returns the types that a manifest's fields have in JSON."""
    in_json = {tuple: list, float: float | int}

    def kind(annotation) -> type | types.UnionType:
        origin = typing.get_origin(annotation)
        if origin is types.UnionType:
            return functools.reduce(operator.or_, map(kind, typing.get_args(annotation)))
        if dataclasses.is_dataclass(annotation):
            return dict
        return in_json.get(origin or annotation, origin or annotation)

    return {field.name: kind(field.type) for field in dataclasses.fields(Manifest) if field.name != "former"}


def write(store: Place, manifest: Manifest, documents: Iterable[tuple[str, str]]) -> None:
    """Begins a store, or checks that the existing one has the same manifest.

    The first writer of the manifest decides the store; all writers write the same documents.json.

    Raises:
        ValueError: for a store with another manifest, which stays unchanged; it names every field that differs.
    """
    contents = _documents_json(documents)
    if manifest.documents_sha256 != hashlib.sha256(contents).hexdigest():
        raise ValueError("these documents are not the manifest's: give the documents of the sequences")
    values = dataclasses.asdict(manifest)
    del values["former"]
    if not store.create("manifest.json", sealing.seal(values, indent=2)):
        check(store, manifest)
    if store.read("documents.json") != contents:  # missing after a killed writer, or damaged
        store.write("documents.json", contents)


def exists(store: Place) -> bool:
    """Returns whether a place has a store."""
    return store.read("manifest.json") is not None


def check(store: Place, manifest: Manifest) -> None:
    """Raises ValueError for a store with another manifest; it names every field that differs."""
    store_manifest = read(store)
    if store_manifest.format != manifest.format:
        raise ValueError(
            f"{store} has store format {store_manifest.format}, which this version reads and no longer writes: train "
            "from it, or harvest to another folder. Nothing was changed."
        )
    values = [(name, getattr(store_manifest, name), getattr(manifest, name)) for name in manifest.identity()]
    if causes := _causes(store_manifest, manifest):
        values = causes + [value for value in values if value[0] not in ("corpus_sha256", "documents_sha256")]
    changed = [
        f"{name}: the store has {value}, asked for {request}" for name, value, request in values if value != request
    ]
    if changed:
        raise ValueError(
            f"{store} holds other activations:\n  " + "\n  ".join(changed) + "\n"
            "Name another folder, or delete this one. Nothing was changed."
        )


def _causes(store_manifest: Manifest, manifest: Manifest) -> list[tuple[str, object, object]]:
    """Returns the fields by which the texts of two harvests differ, as (name, the store's value, the manifest's value).
    They say more than the hashes that differ."""
    if (
        store_manifest.corpus_sha256 == manifest.corpus_sha256
        or store_manifest.origin is None
        or manifest.origin is None
    ):
        return []
    values = [(name, getattr(store_manifest.origin, name), getattr(manifest.origin, name)) for name in _READ]
    return [value for value in values if value[1] != value[2]]


def whole(name: str, value: int) -> int:
    """Returns a Python or numpy integer as a plain int."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is a whole number, got {value!r}") from None
