"""Documents from files: plain text, JSON lines, Parquet, datasets saved to disk, and folders of such files."""

import json
from collections.abc import Iterator
from pathlib import Path

from sae.text import arrow
from sae.text.documents import Document, from_record

SUFFIXES = (".jsonl", ".parquet", ".txt")  # what is read of a folder


def read_documents(path: str | Path) -> list[Document]:
    """All that `iter_documents` gives, in memory."""
    return list(iter_documents(path))


def iter_documents(path: str | Path) -> Iterator[Document]:
    """Reads documents one after another: no more than some hundred are in memory at a time. Blank ones are left out.

    What is read, by what `path` is:
      a `.jsonl` file: an object with "text" in every line; "id" and "source" if it likes.
      a `.parquet` file: a column "text"; "id" and "source" likewise.
      a folder that Hugging Face `datasets` saved with `save_to_disk`: the same columns. Of a DatasetDict its one split,
        or `train`.
      another folder: its `.txt`, `.jsonl` and `.parquet` files, by name; its own folders are not searched.
      any other file: plain text, which is one document.

    Where there is no "text", "messages" is taken: a list of {"role", "content"}, which makes the document a chat.

    Raises (while reading, not by the call):
      ValueError: for a file that is missing, not UTF-8, not JSON lines, Parquet or Arrow where it should be, without
        any text, or one that takes pyarrow, without pyarrow. It names the file, and the line or the row.
    """
    path = Path(path)
    found = False
    for document in _folder(path) if path.is_dir() else _file(path):
        if not document.blank:
            found = True
            yield document
    if not found:
        raise ValueError(f"{path} is empty: it holds no text")


def _folder(path: Path) -> Iterator[Document]:
    if arrow.is_dataset(path):
        yield from arrow.read_dataset(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise ValueError(
            f"{path} is a folder without {', '.join(SUFFIXES)} files, and no dataset that `save_to_disk` made; name a "
            "file, or the folder that holds them"
        )
    for file in files:
        yield from _file(file)


def _file(path: Path) -> Iterator[Document]:
    if path.suffix == ".parquet":
        yield from arrow.read_parquet(path)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None
        yield Document(path.name, path.stem, _decoded(path, content, 0))


def _json_lines(path: Path) -> Iterator[Document]:
    try:
        # In bytes, where a line ends at a line feed alone: a JSON string may hold U+2028, at which text would be split.
        with open(path, "rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                text = _decoded(path, line, start)
                start += len(line)
                if not text.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON ({error.msg})") from None
                yield from_record(record, where=where, name=path.stem, number=number)
    except OSError as error:
        raise _unreadable(path, error) from None


def _decoded(path: Path, content: bytes, start: int) -> str:
    """`content` stands at byte `start` of the file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {start + error.start}; convert it first"
        ) from None


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot read the text {path}: {error.strerror or error}")
