"""`prepare`: from files of text to the sequences to harvest and the held-out sequences in one call; large texts through
files.

It reports, a line at a time, all that is left out (blank documents, bad records), duplicates, and where tokens are
kept.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from sae import showing
from sae.files import local_path
from sae.language_model import Tokenizer
from sae.text.corpus import Corpus
from sae.text.cutting import cut
from sae.text.documents import Document
from sae.text.duplicates import Duplicates
from sae.text.opening import PACKED
from sae.text.reading import iter_documents
from sae.text.sequences import Sequences, is_text
from sae.text.tally import Tally

Say = Callable[[str], object]
Part = Literal["harvested", "held out"]
LARGE = 2**26  # for a text of this many bytes or more, tokens are kept in files
_UNPACKED = 8  # an unpacked text is taken for this many times its packed size


@dataclasses.dataclass(frozen=True)
class Form:
    """How documents become sequences: arguments of `cut`, and the folder of the tokens.

    Attributes:
        length: T, BOS included.
        packed: whether documents lie one after another.
        only_model_turns: whether all but the model's turns of chats is left out.
        skip_bad: whether to leave out and count records that are no text; otherwise the first is an error.
        folder: the folder for tokens of large texts; each text, part and form has a folder of its own in it.
        always: whether tokens of small texts go there too.
    """

    length: int
    packed: bool = False
    only_model_turns: bool = False
    skip_bad: bool = False
    folder: str | Path = "runs/text"
    always: bool = False


def prepare(
    path: str | Path,
    tokenizer: Tokenizer,
    form: Form | int,
    held_out: str | Path | None = None,
    *,
    say: Say = lambda line: None,
) -> tuple[Sequences, Sequences]:
    """Reads a text, holds a part of it out by document, and cuts both sides; no document is in both.

    Args:
        path: a file or a folder, for `iter_documents`.
        tokenizer: the model's.
        form: how documents are cut; a number is the length of the sequences.
        held_out: a file or a folder with the held-out documents; by default a tenth of the text is held out, by a hash
            of each document's text (`split`).
        say: called with lines of text: what is left out, and the numbers of documents on either side.

    Returns:
        The sequences to harvest, and the held-out sequences, with their `origin`.

    Raises:
        ValueError: as `iter_documents`, `Survey.split` and `cut` do, and where all held-out documents are in the text.

    Example:
        >>> import gemma, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "c.jsonl")
        >>> _ = file.write_text("".join('{"text": "The ships of harbour %d came home."}\\n' % i for i in range(50)))
        >>> train, held_out = prepare(file, gemma.load("gemma2-tiny").tokenizer, 16)
        >>> len(train.documents) + len(held_out.documents)
        50
    """
    form = Form(form) if isinstance(form, int) else form
    corpus = Corpus(path, held_out, read=Reader(say, form.skip_bad), say=say)
    names = {"corpus": str(path), "held_out": None if held_out is None else str(held_out)}
    parts = [sequences_of(corpus, part, tokenizer, form, names, say) for part in ("harvested", "held out")]
    # pyrefly: ignore[bad-argument-type,bad-argument-count]  two parts
    check_parts(corpus, *parts, tokenizer, str(path), say)
    return parts[0], parts[1]


def check_parts(
    corpus: Corpus, train: Sequences, held_out: Sequences, tokenizer: Tokenizer, name: str, say: Say
) -> None:
    """Reports the numbers of documents on either side.

    Raises:
        ValueError: for a single document that makes no more than one sequence.
    """
    say(f"{showing.count(len(train.documents), 'document')} to harvest, {len(held_out.documents):,} held out")
    length = train.tokens.shape[1]
    few = corpus.divided and len(train) == len(held_out) == 1
    if few and sum(is_text(part.tokens, tokenizer.special_ids).sum() for part in (train, held_out)) < length:
        raise ValueError(
            f"{name} makes a single sequence of {length} tokens, and without --held_out at least two are needed, one "
            "to harvest and one to evaluate on. Give more text or a smaller --length"
        )


def sequences_of(
    corpus: Corpus, part: Part, tokenizer: Tokenizer, form: Form, names: dict[str, str | None], say: Say
) -> Sequences:
    """Cuts one side of a text, through files where the text is large.

    Args:
        corpus: the text. Where its tokens are kept already, it is not read again.
        part: the side.
        tokenizer: the model's.
        form: how documents are cut.
        names: fields of the sequences' `Origin`: the names of the text, of its held-out documents and of the model.
        say: called with lines of text: what is left out, and where the tokens are.

    Returns:
        The sequences.
    """
    elsewhere = part == "held out" and corpus.split is None
    digest = None if corpus.path is None else corpus.survey.digest()
    # pyrefly: ignore[bad-argument-type]  not None here
    path = local_path(corpus.held_out_path if elsewhere else corpus.path)
    files, tally = _files(path), Tally()
    size = sum(size * (_UNPACKED if Path(name).suffix.lower() in PACKED else 1) for name, size, _ in files)
    kept = {}
    if form.always or size >= LARGE:
        key = hashlib.sha256(json.dumps([files, f"{part} {digest}"]).encode()).hexdigest()
        facts = [key, tokenizer.sha256, form.length, form.packed, form.only_model_turns, form.skip_bad]
        place = local_path(form.folder) / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        kept = {"folder": place, "key": key}
    sequences = cut(
        corpus.held_out() if part == "held out" else corpus.harvested(),
        tokenizer,
        form.length,
        packed=form.packed,
        only_model_turns=form.only_model_turns,
        skip_bad=form.skip_bad,
        tally=tally,
        **kept,
    )
    for line in tally.omissions:
        say(f"{path.name}, {part}: {line}")
    if kept:
        say(f"{path.name}, {part}: {sequences.tokens.nbytes / 1e9:.2f} GB of tokens in {kept['folder']}")
    surveyed = None if corpus.held_out_survey is None else corpus.held_out_survey.digest()
    about = {**names, "documents_sha256": digest, "held_out_sha256": surveyed}
    # pyrefly: ignore[bad-specialization,bad-argument-type]  not None here
    return dataclasses.replace(sequences, origin=dataclasses.replace(sequences.origin, **about))


def some(sequences: Sequences, most: int, seed: int = 0) -> Sequences:
    """Returns at most `most` of the sequences, chosen at random, in their order; all for a `most` of 0.

    Example:
        >>> ids, zero = np.asarray([[2, 5]] * 9), np.zeros(9, int)
        >>> some(Sequences(ids, zero, zero, (("d", "s"),)), 4)
        Sequences(4 of 9 sequences of 2 tokens, 1 document)
    """
    if not most or most >= len(sequences):
        return sequences
    return sequences.take(np.sort(np.random.default_rng(seed).permutation(len(sequences))[:most]))


class Reader:
    """Reads documents, and reports the first whole reading of each path: what was left out, and the duplicates.

    Args:
        say: called with lines of text.
        skip_bad: as for `iter_documents`.
    """

    def __init__(self, say: Say = print, skip_bad: bool = False):
        self._say, self._skip_bad, self._reported = say, skip_bad, set()

    def __call__(self, path: str | Path) -> Iterator[Document]:
        """Yields the documents of a file or a folder."""
        path, tally, duplicates = local_path(path), Tally(), Duplicates()
        documents = iter_documents(path, skip_bad=self._skip_bad, tally=tally)
        if path in self._reported:
            yield from documents
            return
        yield from duplicates.watch(documents)
        self._reported.add(path)
        if tally.blank or tally.omissions:
            self._say(f"{path.name}: {tally}")
        self._say(f"{path.name}: {duplicates}")


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Returns (name, bytes, time of the last change) of the files of a text, by which a change of the text is
    noticed."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()
    ]
