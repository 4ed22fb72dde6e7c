"""Data, recipe and provenance in a model card: what autoencoders have on record, equal things said once."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae import showing
from sae.families import recorded_fields
from sae.releasing.contents import Entry
from sae.releasing.layouts import Placed
from sae.releasing.tables import code, markdown
from sae.text.origin import SHIPPED

NOT_ON_RECORD = "not on record"


def _origin(entry: Entry) -> Any:
    return None if entry.info.record is None else entry.info.record.origin


def _of_record(name: str) -> Callable[[Entry], Any]:
    return lambda entry: getattr(entry.info.record, name, None)


def _of_origin(name: str) -> Callable[[Entry], Any]:
    return lambda entry: getattr(_origin(entry), name, None)


def text_fingerprint(entry: Entry) -> str | None:
    """Returns the fingerprint of the token sequences that were harvested; None where it is not on record."""
    return _of_record("corpus_sha256")(entry)


# What a card has a place for, with where it is on record; None where it is not.
EXPECTED: Mapping[str, Callable[[Entry], Any]] = {
    "the recipe": lambda entry: recorded_fields(entry.training) or None,
    "the text": _of_origin("corpus"),
    "which tokens count": lambda entry: entry.info.counted,
    "the model's fingerprint": _of_record("model_fingerprint"),
    "the tokenizer's fingerprint": _of_record("tokenizer_sha256"),
    "the fingerprint of the text": text_fingerprint,
}


def data(placed: Sequence[Placed]) -> list[str]:
    """Returns what is on record of the text that the autoencoders read, a table for each text."""
    return [_section(group, _text_of(group[0].entry), placed) for group in _grouped(placed, _text_of)]


def _text_of(entry: Entry) -> dict[str, str]:
    origin, counted = _origin(entry), entry.info.counted
    corpus = None if origin is None else origin.corpus
    if corpus is not None:  # of a path its last part, since the rest is of the machine that it lay on
        corpus = "the text that is shipped with gemma2-tiny" if corpus == SHIPPED else Path(corpus).name
    rows = {
        "text": corpus,
        "sha256 of its documents": _of_origin("documents_sha256")(entry),
        "fingerprint of the token sequences": text_fingerprint(entry),
        "tokens of a sequence, BOS included": _of_origin("length")(entry),
        "documents laid one after another": _of_origin("packed")(entry),
        "only the model's turns of chats": _of_origin("only_model_turns")(entry),
        "tokens that training read": entry.training.get("tokens"),
        "token ids that do not count": None if counted is None else ", ".join(map(str, counted.special_ids)) or "none",
        "attention sinks": None if counted is None else str(counted.sinks or "counted as all tokens"),
    }
    return {name: _words(value) for name, value in rows.items()}


def recipe(placed: Sequence[Placed]) -> list[str]:
    """Returns the fields of the runs: those that all have in common once, the others by autoencoder."""
    fields = {one.path: _fields(one.entry) for one in placed}
    names = list(dict.fromkeys(name for values in fields.values() for name in values))
    if not names:
        return [f"The runs are {NOT_ON_RECORD}."]
    common = [name for name in names if len({values.get(name) for values in fields.values()}) == 1]
    different = [name for name in names if name not in common]
    first = next(iter(fields.values()))
    parts = [markdown(["field of the run", "value"], [[code(name), first[name]] for name in common])] if common else []
    if different:
        rows = [[code(path), *(each.get(name, NOT_ON_RECORD) for name in different)] for path, each in fields.items()]
        parts.append(markdown(["path", *map(code, different)], rows))
    return parts


def _fields(entry: Entry) -> dict[str, str]:
    skipped = ("site", "site_out", "width")  # which the table of metrics has
    return {name: _words(value) for name, value in recorded_fields(entry.training).items() if name not in skipped}


def provenance(placed: Sequence[Placed]) -> list[str]:
    """Returns the fingerprints of model and tokenizer."""
    return [_section(group, _model_of(group[0].entry), placed) for group in _grouped(placed, _model_of)]


def _model_of(entry: Entry) -> dict[str, str]:
    rows = {
        "model": entry.info.model,
        "fingerprint of its parameters and config": _of_record("model_fingerprint")(entry),
        "dtype of its parameters": _of_record("parameters_dtype")(entry),
        "dtype of its activations": _activations(entry),
        "fingerprint of its tokenizer": _of_record("tokenizer_sha256")(entry),
    }
    return {name: _words(value) for name, value in rows.items()}


def _activations(entry: Entry) -> str | None:
    store = entry.training.get("store")
    return store.get("activation_dtype") if isinstance(store, Mapping) else None


def _grouped(placed: Sequence[Placed], of: Callable[[Entry], dict[str, str]]) -> list[list[Placed]]:
    groups: dict[str, list[Placed]] = {}
    for one in placed:
        groups.setdefault(json.dumps(of(one.entry)), []).append(one)
    return list(groups.values())


def _section(group: Sequence[Placed], rows: Mapping[str, str], placed: Sequence[Placed]) -> str:
    """A table, under the names of its autoencoders where others have another."""
    table = markdown(["", "value"], list(rows.items()))
    if len(group) == len(placed):
        return table
    listed = ", ".join(code(one.path) for one in group)
    return f"Of {showing.count(len(group), 'autoencoder')} ({listed}):\n\n{table}"


def _words(value: Any) -> str:
    if value is None:
        return NOT_ON_RECORD
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
