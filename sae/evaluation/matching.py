"""Checks that a model and a text are those of an autoencoder's training, by what its `Info` records.

All of it happens before a forward pass. Old files record less, and Gemma Scope's files nothing: then nothing is refused
that is not known to differ, and a `RecordWarning` says what is assumed.
"""

import json
import warnings
from collections.abc import Mapping

from mishax_lite.hashing import parameter_hash
from sae.autoencoder import Info
from sae.counted import Counted, Sinks
from sae.language_model import LanguageModel
from sae.parameters import parameters_dtype
from sae.records import Record
from sae.text import Sequences


class RecordWarning(UserWarning):
    """A record is missing, or the text is not that of training; the message says what follows."""


def check_model(info: Info | None, model: LanguageModel, subject: str = "this autoencoder") -> None:
    """Raises ValueError, naming both models, for an autoencoder that was trained on another model.

    Fingerprints decide, whatever the names. Where none is recorded, the hash of the parameters decides, which earlier
    versions recorded; where that is missing too, the name decides.

    Args:
      info: of the autoencoder.
      model: the language model. Its parameters are hashed once (about a second for each gigabyte).
      subject: the error's name for the autoencoder.

    Warns:
      RecordWarning: where the names are the same and the parameters cannot be compared, since no record of them exists,
        or since their dtype is not that of training.
    """
    if info is None:
        return
    record, name = record_of(info) or Record(), model.name
    fingerprint = record.model_fingerprint or record.model_sha256
    if fingerprint is None:
        if info.model != name:
            raise ValueError(f"{subject} was trained on {info.model}, the model given is {name}")
        problem = "does not record the parameters of its model"
        assumed = "they cannot be compared with those of the model given, which has the same name"
        warnings.warn(f"{subject} {problem}, {name}: {assumed}", RecordWarning, stacklevel=4)
        return
    given = parameter_hash(model.params) if record.model_fingerprint is None else model.fingerprint
    if fingerprint == given:
        return
    dtype = parameters_dtype(model)
    if info.model == name and record.parameters_dtype not in (None, dtype):
        warnings.warn(
            f"{subject} was trained on {info.model} with {record.parameters_dtype} parameters, the model given has "
            f"{dtype} ones: whether they are otherwise the same cannot be told",
            RecordWarning,
            stacklevel=4,
        )
        return
    raise ValueError(
        f"{subject} was trained on a {info.model} with parameters {fingerprint[:12]}…, the model given is a {name} "
        f"with parameters {given[:12]}…: load the one it was trained on. (To measure it on another model all the same, "
        "take its record away, `dataclasses.replace(autoencoder, info=None)`, and name the site)"
    )


def record_of(info: Info | None) -> Record | None:
    """Returns the record of an `Info`, also of one that an earlier version wrote without the field; None elsewhere."""
    if info is None or info.record is not None:
        return None if info is None else info.record
    store = _training(info).get("store", {})
    if "model_sha256" not in store:
        return None
    return Record(corpus_sha256=store.get("corpus_sha256"), model_sha256=store["model_sha256"])


def counted_of(info: Info | None, model: LanguageModel, subject: str = "this autoencoder") -> Counted:
    """Returns which tokens an autoencoder's training counted.

    Args:
      info: of the autoencoder, also one that an earlier version wrote without the field.
      model: with its tokenizer. Where nothing is recorded, its special ids do not count.
      subject: the warning's name for the autoencoder.

    Warns:
      RecordWarning: where nothing is recorded. It says which tokens count then.
    """
    if info is not None and info.counted is not None:
        return info.counted
    left_out = {} if info is None else _training(info).get("left_out", {})
    ids, limits = left_out.get("token_ids", model.tokenizer.special_ids), left_out.get("sink_norms")
    # pyrefly: ignore[bad-argument-type]  not None here
    counted = Counted(tuple(ids), sinks=Sinks(limits=limits) if limits else None)
    if not left_out:
        problem = "does not record which tokens its training counted"
    elif limits:
        problem = "records norms of sinks that are somewhat smaller than training's, as earlier versions did"
    else:
        problem = "does not record whether its training left tokens of the text out (only_model_turns, say)"
    warnings.warn(f"{subject} {problem}: {counted} count here", RecordWarning, stacklevel=4)
    return counted


def differences(info: Info | None, text: Sequences) -> list[str]:
    """Returns in words how a text differs from the text of training, as far as both are on record.

    Args:
      info: of the autoencoder.
      text: the sequences.
    """
    record = record_of(info)
    if record is None or record.origin is None or text.origin is None:
        return []
    theirs, given, words = record.origin, text.origin, []
    if None not in (theirs.documents_sha256, given.documents_sha256):
        if theirs.documents_sha256 != given.documents_sha256:
            words.append(f"the text is of {given.corpus}, training's of {theirs.corpus}")
    elif theirs.corpus != given.corpus and None not in (theirs.corpus, given.corpus):
        words.append(f"the text is of {given.corpus}, training's of {theirs.corpus}")
    if theirs.length != given.length:
        words.append(f"sequences have {given.length} tokens, training's {theirs.length}")
    if theirs.packed != given.packed:
        words.append(f"documents are {'' if given.packed else 'not '}packed, training's were the other way")
    return words


def say_differences(info: Info | None, text: Sequences, subject: str = "this autoencoder") -> None:
    """Warns, in one line, of a text that is not that of training.

    Args:
      info: of the autoencoder.
      text: the sequences.
      subject: the warning's name for the autoencoder.

    Warns:
      RecordWarning: see `differences`.
    """
    if words := differences(info, text):
        warnings.warn(f"{subject} is measured on another text than its own: {'; '.join(words)}", RecordWarning, 4)


def _training(info: Info) -> Mapping:
    try:
        facts = json.loads(info.training)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
