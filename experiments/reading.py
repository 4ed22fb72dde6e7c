"""How launches read text: what they say of it, what they leave out, and where they keep a large text as tokens."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import flags

from sae.files import local_path
from sae.language_model import Tokenizer
from sae.text import Document, Duplicates, Sequences, Tally, cut, iter_documents
from sae.text.opening import PACKED

SKIP_BAD = flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave out records that are no text (broken JSON, no `text`, a chat that the model's template refuses) and say how "
    "many. Otherwise the first ends the launch.",
)
TEXT_DIR = flags.DEFINE_string(
    "text_dir",
    None,
    "Folder in which text is kept as tokens, so that memory does not grow with it and the next launch need not cut it "
    "again. Default: memory for files under 64 MiB, and else runs/text.",
)
_LARGE = 2**26  # bytes of files
_UNPACKED = 8  # times its size, at most, is a packed text when it is unpacked


class Reader:
    """Reads documents as the flags say. Of each path, the first reading to the end is told about: what was left out,
    and how many documents are duplicates.

    Args:
      say: told, a line at a time.
    """

    def __init__(self, say: Callable[[str], object] = print):
        self._say, self._told = say, set()

    def __call__(self, path: str | Path) -> Iterator[Document]:
        """The documents of a file or a folder."""
        path, tally, duplicates = local_path(path), Tally(), Duplicates()
        documents = iter_documents(path, skip_bad=SKIP_BAD.value, tally=tally)
        if path in self._told:
            yield from documents
            return
        yield from duplicates.watch(documents)
        self._told.add(path)
        if tally.blank or tally.omissions:
            self._say(f"{path.name}: {tally}")
        self._say(f"{path.name}: {duplicates}")


def cut_part(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    *,
    packed: bool,
    only_model_turns: bool,
    path: str | Path,
    part: str,
    survey: str | None,
    folder: Path,
    say: Callable[[str], object] = print,
) -> Sequences:
    """Cuts documents, by way of files where the text is large.

    Args:
      documents: a part of the text at `path`; not read where it is kept as tokens already.
      tokenizer, length, packed, only_model_turns: as for `cut`.
      path: the text's file or folder.
      part: which of its documents these are, in words: "harvested", "held out".
      survey: the digest of all its documents, from which follows which of them are in the part.
      folder: where a large text's tokens go, unless `--text_dir` names another; each text, part and form of it has a
        folder of its own there.
      say: told what is left out, and where the tokens are.
    """
    files, tally = _files(local_path(path)), Tally()
    size = sum(size * (_UNPACKED if Path(name).suffix.lower() in PACKED else 1) for name, size, _ in files)
    kept = {}
    if TEXT_DIR.value is not None or size >= _LARGE:
        key = hashlib.sha256(json.dumps([files, f"{part} {survey}"]).encode()).hexdigest()
        form = [key, tokenizer.sha256, length, packed, only_model_turns, SKIP_BAD.value]
        place = local_path(TEXT_DIR.value or folder) / hashlib.sha256(json.dumps(form).encode()).hexdigest()[:16]
        kept = {"folder": place, "key": key}
    sequences = cut(
        documents,
        tokenizer,
        length,
        packed=packed,
        only_model_turns=only_model_turns,
        skip_bad=SKIP_BAD.value,
        tally=tally,
        **kept,
    )
    for line in tally.omissions:
        say(f"{Path(path).name}, {part}: {line}")
    if kept:
        say(f"{Path(path).name}, {part}: {sequences.tokens.nbytes / 1e9:.2f} GB of tokens in {kept['folder']}")
    return sequences


def _files(path: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of the last change) of the files of a text: others are another text."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()
    ]
