"""What autoencoders record of their model and their text becomes the flags' defaults, so that they are measured on what
they were trained on. A flag that contradicts the record is an error; another text is asked for by --held_out, and said.
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


def settle(folders: Sequence[Path]) -> bool:
    """Gives the flags that the user has not set the values of the record, before model and text are read. Prints a line
    where the text is another one, or not on record.

    Args:
      folders: the autoencoders'.

    Returns:
      Whether --corpus names the text that was harvested, so that held-out documents can be told from it.

    Raises:
      ValueError: naming both, where autoencoders differ in their model or text, or a flag contradicts them.
    """
    infos = {folder: info for folder in folders if (info := outline(folder).info) is not None}
    # What is printed here once for all.
    warnings.filterwarnings("ignore", "this autoencoder (does not record|records|is measured)", RecordWarning)
    if given("sink_factor"):
        raise ValueError("--sink_factor is for the harvest: figures leave out the sinks that training left out")
    if not infos:
        print(f"no autoencoder here records its model, its text or which tokens count: {_text()}, without special ids")
        return given("corpus")
    for words in _MODEL:
        _one({folder: info for folder, info in infos.items() if words(info)}, "models", words)
    origins = {folder: record.origin for folder, info in infos.items() if (record := record_of(info)) and record.origin}
    first = next(iter(origins.items()), None)
    _default("model", (first and first[1].model) or next(iter(infos.values())).model)
    at_hand = given("corpus") if first is None else _settle_text(*first, origins)
    if named := [folder for folder, info in infos.items() if _name(info)]:
        print(f"{_several(named)}: the model's parameters are not on record, so its name alone is compared")
    missing = [folder for folder in folders if folder not in origins]
    if missing:
        print(f"{_several(missing)}: which text training read is not on record; figures are over {_text()}")
    return at_hand


def _several(folders: Sequence[Path]) -> str:
    return f"{folders[0]}{f' and {len(folders) - 1} more' if len(folders) > 1 else ''}"


def check(folders: Sequence[Path], model: sae.LanguageModel) -> None:
    """Raises ValueError, naming the folder and both sides, for an autoencoder that does not belong to a model."""
    kept.check_folders(folders, model, functools.partial(autoencoders.outline, model=model))


def about(folders: Sequence[Path], model: sae.LanguageModel, text: Sequences, at_hand: bool) -> About:
    """What figures and pages say of their text: whether training saw it, as far as that is on record, and what of it
    does not count.

    Args:
      folders: the autoencoders'; after `settle`.
      model: theirs.
      text: what they are measured on.
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


def given(flag: str) -> bool:
    """Whether the user has set a flag."""
    return flag in flags.FLAGS and not flags.FLAGS[flag].using_default_value


def _default(flag: str, value: object) -> None:
    if not given(flag):
        flags.FLAGS.set_default(flag, value)


def _settle_text(folder: Path, origin: Origin, origins: dict[Path, Origin]) -> bool:
    """As `settle`, the text's part."""
    elsewhere = given("held_out") and common.HELD_OUT.value != origin.held_out
    words = []
    for name in _CUT:
        if not given(name):
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
        print(f"{folder}: no launch harvested it, so its text is not on record; figures are over {_text()}")
        return given("corpus")
    if not given("corpus") and origin.corpus != SHIPPED:
        _default("corpus", origin.corpus)
    _default("held_out", origin.held_out)
    at_hand = given("corpus") or origin.corpus == SHIPPED or local_path(origin.corpus).exists()
    if at_hand and (problem := _other_corpus(folder, origin)):
        if given("corpus") or not elsewhere:
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
            f"{common.held_out_path()} has other documents than when {folder} was trained: figures are over those that "
            "it has now, and do not compare with figures of then"
        )
    return at_hand


def _other_corpus(folder: Path, origin: Origin) -> str | None:
    """What is wrong with the text that --corpus, or its default, names, where it is not the one that was harvested.
    Wherever it is now: the text is what counts."""
    path = common.corpus_path()
    if origin.documents_sha256 is None:
        same = not given("corpus") or common.CORPUS.value == origin.corpus
    else:
        same = _digest(path) == origin.documents_sha256
    if same:
        return None
    if not given("corpus"):
        return (
            f"{path} is the text that {folder} was trained on by its name alone: it has other documents now. Name "
            "where the text of then is with --corpus, or another text to measure on with --held_out"
        )
    return (
        f"--corpus={path} is another text than {origin.corpus}, on which {folder} was trained: leave it out, or "
        f"measure on another text with --held_out={path}"
    )


def _digest(path: str | Path) -> str:
    """sha256 over the documents of a text, read as the flags say and without a word: whoever uses them says more."""
    return survey(iter_documents(path, skip_bad=reading.SKIP_BAD.value, tally=Tally())).digest()


def _fingerprint(info: Info) -> str | None:
    """The model in words, if a fingerprint of it is recorded: two with the same are one, whatever their names."""
    record = record_of(info)
    # pyrefly: ignore[bad-return]  not None here
    return record and record.model_fingerprint and f"the model {record.model_fingerprint[:12]}…"


def _parameters(info: Info) -> str | None:
    """The same by the hash of earlier versions."""
    record = record_of(info)
    # pyrefly: ignore[bad-return]  not None here
    return record and record.model_sha256 and f"{info.model} with parameters {record.model_sha256[:12]}…"


def _name(info: Info) -> str | None:
    """The same by the name, if it is all that is recorded."""
    return None if _fingerprint(info) or _parameters(info) else info.model


_MODEL = (_fingerprint, _parameters, _name)


def _one(values: dict[Path, object], what: str, of: Callable) -> None:
    """Raises ValueError, naming two folders, unless all have the same."""
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
