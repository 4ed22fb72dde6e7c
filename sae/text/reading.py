"""Reads documents from files: plain text, JSON, tables of many kinds, saved datasets, and folders of such files."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from sae.files import local_path
from sae.text import arrow
from sae.text.documents import Document, from_record
from sae.text.opening import PACKED, Stream, check_regular, decode, open_text
from sae.text.records import Records, holds_records, json_records, table_records
from sae.text.tally import SKIP_BAD, BadRecord, Tally, TextWarning

_JSON, _TABLES = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}
_ARROW = (".parquet", ".arrow", ".feather")
SUFFIXES = (*_JSON, *_TABLES, *_ARROW, ".txt")  # the files of a folder that are read, in any case and packed or not
_PIECE = 2**22  # bytes of a document that is a piece of a large plain text
_LARGE = 2**24  # a plain text of fewer bytes is one document


def read_documents(path: str | Path, *, skip_bad: bool = False, tally: Tally | None = None) -> list[Document]:
    """Returns all documents of a file or a folder, in memory; the arguments are those of `iter_documents`.

    Args:
        path: as for `iter_documents`.
        skip_bad: as for `iter_documents`.
        tally: as for `iter_documents`.

    Raises:
        ValueError: as `iter_documents` does.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
        >>> [document.text for document in read_documents(path)]
        ['one', 'two']
    """
    return list(iter_documents(path, skip_bad=skip_bad, tally=tally))


def iter_documents(path: str | Path, *, skip_bad: bool = False, tally: Tally | None = None) -> Iterator[Document]:
    """Yields documents one after another: no more than some hundred are in memory at a time. Blank ones are left out.

    A file's name, in upper or lower case, decides its kind; where the name has no known ending, its content decides:
      `.jsonl`, `.ndjson`, `.json`: objects with a string "text", and optional "id" and "source": one in each line, an
        array of objects, or an object with a list of them.
      `.csv`, `.tsv`: a table whose first line names the columns, "text" among them.
      `.parquet`, `.arrow`, `.feather`: a table with a column "text".
      a folder that Hugging Face `datasets` saved with `save_to_disk`: a table with the same columns. For a DatasetDict
        its only split, or `train`.
      another folder: its files of these kinds and `.txt`, by name; folders in it are not searched.
      any other file: plain text, which is one document. A text of more than 16 MiB becomes documents of about 4 MiB,
        which end at a blank line, or at least at a line or a word.

    A file may be packed by gzip, zstd, bzip2 or xz (`a.jsonl.gz`). It is in UTF-8, or in UTF-16 with a byte order mark.

    Where "text" is missing or empty, "messages" is read: a list of {"role", "content"}, which makes the document a
    chat. A content is a string, or a list of parts: parts of text are joined, others are counted.

    Args:
        path: a file or a folder.
        skip_bad: whether to leave out and count records that are no documents (broken JSON, no text, wrong types).
            Otherwise the first of them is an error.
        tally: a tally that grows with the documents and with all that is left out. Without one, a `TextWarning` at the
            end says what was left out.

    Raises (while reading, not by the call):
        ValueError: for a file that is missing, damaged, not UTF-8, of another kind than its name says, or without any
            text, and where pyarrow is needed and missing. It names the file, and the line or the row.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text('text\\none\\ntwo,three\\n')
        >>> tally = Tally()
        >>> [document.text for document in iter_documents(path, skip_bad=True, tally=tally)]
        ['one']
        >>> tally.documents, tally.bad
        (1, 1)
    """
    path, counts = local_path(path), Tally() if tally is None else tally
    before = counts.documents
    for document in _folder(path, skip_bad, counts) if path.is_dir() else _file(path, skip_bad, counts):
        if document.blank:
            counts.blank += 1
        else:
            counts.documents += 1
            yield document
    if counts.documents == before:
        bad = counts.omissions[:1] if counts.bad else []
        raise ValueError("; ".join([f"{path} is empty: it holds no text", *bad]))
    if tally is None and counts.omissions:
        warnings.warn(f"{path}: {'; '.join(counts.omissions)}", TextWarning, stacklevel=2)


def _folder(path: Path, skip_bad: bool, tally: Tally) -> Iterator[Document]:
    if arrow.is_dataset(path):
        yield from _documents(arrow.dataset_records(path), path.name, skip_bad, tally)
        return
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if _suffix(entry) in SUFFIXES and not entry.is_dir()]
    tally.unread += [entry.name for entry in entries if entry not in files]
    if not files:
        raise ValueError(
            f"{path} is a folder without {', '.join(sorted(SUFFIXES))} files, and no dataset that `save_to_disk` made: "
            "name a file, or the folder with the files"
        )
    for file in files:
        yield from _file(file, skip_bad, tally)


def _suffix(path: Path) -> str:
    """Returns the ending of a file's name that tells its kind, in lower case: ".jsonl" for "A.JSONL.gz"."""
    return Path(_unpacked_name(path)).suffix.lower()


def _unpacked_name(path: Path) -> str:
    return path.stem if path.suffix.lower() in PACKED else path.name


def _file(path: Path, skip_bad: bool, tally: Tally) -> Iterator[Document]:
    check_regular(path)
    name, suffix = Path(_unpacked_name(path)).stem, _suffix(path)
    if suffix in _ARROW or arrow.is_table(path):
        if path.suffix.lower() in PACKED:
            raise ValueError(f"{path} is a packed table: unpack it first")
        yield from _documents(arrow.file_records(path), name, skip_bad, tally)
        return
    with open_text(path) as stream:
        if suffix in _JSON:
            yield from _documents(json_records(path, stream), name, skip_bad, tally)
        elif suffix in _TABLES:
            yield from _documents(table_records(path, stream, _TABLES[suffix]), name, skip_bad, tally)
        elif not holds_records(stream):
            yield from _plain(path, name, stream)
        elif suffix:
            raise ValueError(f"{path} has the name of a plain text and is JSON: rename it to .jsonl or .json")
        else:
            yield from _documents(json_records(path, stream), name, skip_bad, tally)


def _documents(records: Records, name: str, skip_bad: bool, tally: Tally) -> Iterator[Document]:
    for number, where, record in records:
        try:
            if isinstance(record, BadRecord):
                raise record
            document = from_record(record, where=where, name=name, number=number, tally=tally)
        except BadRecord as error:
            if not skip_bad:
                raise ValueError(f"{error}. {SKIP_BAD}") from None
            tally.leave_out(error)
        else:
            yield document


def _plain(path: Path, name: str, stream: Stream) -> Iterator[Document]:
    """Yields one document, or the pieces of a large text."""
    id_, start = _unpacked_name(path), stream.start
    content = stream.file.read(_LARGE)
    if len(content) < _LARGE:
        yield Document(id_, name, decode(path, content, start), where=str(path))
        return
    number = 0
    while content:
        content += stream.file.read(max(0, 2 * _PIECE - len(content)))
        end = _end(content, _PIECE) if len(content) > _PIECE else len(content)
        yield Document(f"{id_}:{number}", name, decode(path, content[:end], start), where=str(path))
        start, content, number = start + end, content[end:], number + 1


def _end(content: bytes, near: int) -> int:
    """Returns the end of a piece of bytes: after the last blank line, line or word before `near`, or between two
    characters."""
    for gap in (b"\n\n", b"\n", b" "):
        end = content.rfind(gap, near // 2, near)
        if end >= 0:
            return end + len(gap)
    # The further bytes of a character are 10xxxxxx.
    return next((near - back for back in range(4) if content[near - back] & 0xC0 != 0x80), near)
