"""Sets the flags' defaults to what autoencoders record of their model and text, so that they are measured on these.
A flag that contradicts the record is an error. --held_out names another text, and the launch says so.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

import sae
from sae.autoencoder import Info
from sae.evaluation import kept
from sae.evaluation.matching import RecordWarning, counted_of, record_of
from sae.explorer.pages import About
from sae.files import local_path
from sae.formats.files import outline
from sae.text import Origin, Sequences, Tally, iter_documents, survey
from sae.text.origin import SHIPPED

from . import autoencoders, common, reading

UNKNOWN = "text of which it is not on record whether training saw it"
HELD_OUT = "held-out text"
TRAINED = "the text that was trained on"
_CUT = ("length", "packed", "only_model_turns")  # flags, and fields of an `Origin`
FLAGS = ("model", "corpus", "held_out", *_CUT)  # flags whose defaults the record sets


def settle(folders: Sequence[Path]) -> bool:
    """Gives flags that the user has not set the values of the record, before model and text are read.

    It prints a line where the text is another one, or is not on record.

    Args:
      folders: of the autoencoders.

    Returns:
      Whether --corpus names the text that was harvested, so that held-out documents can be told from it.

    Raises:
      ValueError: for autoencoders that differ in their model or text, or a flag that contradicts them; it names both.
    """
    infos = {folder: info for folder in folders if (info := outline(folder).info) is not None}
    # These are printed here, once for all autoencoders.
    warnings.filterwarnings("ignore", "this autoencoder (does not record|records|is measured)", RecordWarning)
    if is_set("sink_factor"):
        raise ValueError("--sink_factor is for the harvest: metrics leave out the sinks that training left out")
    if not infos:
        print(f"no autoencoder here records its model, its text or which tokens count: {_text()}, without special ids")
        return is_set("corpus")
    for words in _MODEL:
        _one({folder: info for folder, info in infos.items() if words(info)}, "models", words)
    origins = {folder: record.origin for folder, info in infos.items() if (record := record_of(info)) and record.origin}
    first = next(iter(origins.items()), None)
    _default("model", (first and first[1].model) or next(iter(infos.values())).model)
    at_hand = is_set("corpus") if first is None else _settle_text(*first, origins)
    if named := [folder for folder, info in infos.items() if _name(info)]:
        print(f"{_several(named)}: the model's parameters are not on record, so its name alone is compared")
    missing = [folder for folder in folders if folder not in origins]
    if missing:
        print(f"{_several(missing)}: which text training read is not on record; metrics are over {_text()}")
    return at_hand


def _several(folders: Sequence[Path]) -> str:
    return f"{folders[0]}{f' and {len(folders) - 1} more' if len(folders) > 1 else ''}"


def check(folders: Sequence[Path], model: sae.LanguageModel) -> None:
    """Raises ValueError, naming the folder and both sides, for an autoencoder that does not belong to a model."""
    kept.check_folders(folders, model, functools.partial(autoencoders.outline, model=model))


def about(folders: Sequence[Path], model: sae.LanguageModel, text: Sequences, at_hand: bool) -> About:
    """Returns what metrics and pages say of their text: whether training saw it, as far as that is on record, and which
    of its tokens do not count.

    Args:
      folders: of the autoencoders; after `settle`.
      model: the autoencoders' model.
      text: the text of the metrics.
      at_hand: what `settle` returned.
    """
    infos = [autoencoders.outline(folder, model).info for folder in folders]
    records = [record_of(info) for info in infos]
    fingerprint = text.fingerprint()
    if any(record is not None and record.corpus_sha256 == fingerprint for record in records):
        words = TRAINED
    elif at_hand and all(record and record.origin and record.origin.corpus is not None for record in records):
        words = HELD_OUT
    else:
        words = UNKNOWN
    origins = [record.origin if record else None for record in records]
    omissions = dict.fromkeys(
        counted_of(info, model).omissions(origin is not None and origin.only_model_turns)
        for info, origin in zip(infos, origins, strict=True)
    )
    return About(words, ", or of others: ".join(omissions))


def is_set(flag: str) -> bool:
    """Returns whether the user has set a flag."""
    return flag in flags.FLAGS and not flags.FLAGS[flag].using_default_value


def _default(flag: str, value: object) -> None:
    if not is_set(flag):
        flags.FLAGS.set_default(flag, value)


def _settle_text(folder: Path, origin: Origin, origins: dict[Path, Origin]) -> bool:
    """Does for the text what `settle` does; returns what it returns."""
    elsewhere = is_set("held_out") and common.HELD_OUT.value != origin.held_out
    words = []
    for name in _CUT:
        if not is_set(name):
            # pyrefly: ignore[bad-argument-type]  values of any kind
            _one(origins, f"--{name}", lambda o, name=name: getattr(o, name))
            _default(name, getattr(origin, name))
        elif flags.FLAGS[name].value != getattr(origin, name):
            said = f"--{name}={flags.FLAGS[name].value}"
            if not elsewhere or name == "only_model_turns":
                raise ValueError(
                    f"{said} contradicts {folder}, which was trained with --{name}={getattr(origin, name)}: leave it "
                    + ("out" if name == "only_model_turns" else "out, or name another text to measure on by --held_out")
                )
            words.append(f"{said}, training had {getattr(origin, name)}")
    # pyrefly: ignore[bad-argument-type]  values of any kind
    _one(origins, "texts", lambda o: o.documents_sha256 or o.corpus)
    if origin.corpus is None:
        print(f"{folder}: no launch harvested it, so its text is not on record; metrics are over {_text()}")
        return is_set("corpus")
    if not is_set("corpus") and origin.corpus != SHIPPED:
        _default("corpus", origin.corpus)
    _default("held_out", origin.held_out)
    at_hand = is_set("corpus") or origin.corpus == SHIPPED or local_path(origin.corpus).exists()
    if at_hand and (problem := _other_corpus(folder, origin)):
        if is_set("corpus") or not elsewhere:
            raise ValueError(problem)
        at_hand = False
    elif not at_hand and not elsewhere:
        raise ValueError(
            f"{origin.corpus}, the text that {folder} was trained on, is missing: name where it is with --corpus, or "
            "another text to measure on with --held_out"
        )
    if elsewhere:
        words.insert(0, f"another text than training's, {origin.corpus}")
        if not at_hand:
            words.append("that text is missing here, so documents that both have are not left out")
        print(f"measured on {common.HELD_OUT.value}: {'; '.join(words)}")
    # pyrefly: ignore[bad-argument-type]  not None here
    elif origin.held_out_sha256 is not None and _digest(common.held_out_path()) != origin.held_out_sha256:
        print(
            f"{common.held_out_path()} has other documents than when {folder} was trained: metrics are over those that "
            "it has now, and cannot be compared with earlier metrics"
        )
    return at_hand


def _other_corpus(folder: Path, origin: Origin) -> str | None:
    """Returns what is wrong with the text of --corpus, where it is not the text that was harvested; None elsewhere.

    The documents decide, and not the path.
    """
    path = common.corpus_path()
    if origin.documents_sha256 is None:
        same = not is_set("corpus") or common.CORPUS.value == origin.corpus
    else:
        same = _digest(path) == origin.documents_sha256
    if same:
        return None
    if not is_set("corpus"):
        return (
            f"{path} is the text that {folder} was trained on by its name alone: it has other documents now. Name "
            "where the earlier text is with --corpus, or another text to measure on with --held_out"
        )
    return (
        f"--corpus={path} is another text than {origin.corpus}, on which {folder} was trained: leave it out, or "
        f"measure on another text with --held_out={path}"
    )


def _digest(path: str | Path) -> str:
    """Returns the SHA-256 of the documents of a text, read as the flags say. It prints nothing: later readers do."""
    return survey(iter_documents(path, skip_bad=reading.SKIP_BAD.value, tally=Tally())).digest()


def _fingerprint(info: Info) -> str | None:
    """Returns the model in words, by its fingerprint; None without one. Models with one fingerprint are the same."""
    record = record_of(info)
    # pyrefly: ignore[bad-return]  not None here
    return record and record.model_fingerprint and f"the model {record.model_fingerprint[:12]}…"


def _parameters(info: Info) -> str | None:
    """Returns the same by the hash that earlier versions recorded."""
    record = record_of(info)
    # pyrefly: ignore[bad-return]  not None here
    return record and record.model_sha256 and f"{info.model} with parameters {record.model_sha256[:12]}…"


def _name(info: Info) -> str | None:
    """Returns the model's name, where nothing else of the model is recorded."""
    return None if _fingerprint(info) or _parameters(info) else info.model


_MODEL = (_fingerprint, _parameters, _name)


def _one(values: dict[Path, object], what: str, of: Callable) -> None:
    """Raises ValueError, naming two folders, for values of which `of` gives different results."""
    kinds: dict[object, Path] = {}
    for folder, value in values.items():
        kinds.setdefault(of(value), folder)
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise ValueError(
            f"these autoencoders were trained on different {what}: {first} on {one}, {second} on {other}. Name the "
            "folder of one kind with --saes_dir"
        )


def _text() -> str:
    held_out = common.HELD_OUT.value or (f"a tenth of {common.CORPUS.value}" if common.CORPUS.value else "shipped text")
    return f"{held_out}, in sequences of {common.LENGTH.value} tokens"
