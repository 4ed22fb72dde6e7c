"""Text to token sequences: documents read from files, cut into sequences that each begin with BOS.

Axis letters: S sequences, T tokens of a sequence.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gemma import Tokenizer


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, with a name of its own and the name of the collection that it is from."""

    id: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Tokens ready for the model, and where they are from.

    Attributes:
      tokens: [S, T] int32; BOS, then tokens of one document, then padding.
      document: [S] int32, which of `documents` a sequence is from.
      offset: [S] int32, how many tokens of that document come before the sequence's first one.
      documents: (id, source) of every document.
    """

    tokens: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    documents: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray | slice) -> "Sequences":
        """Some of the sequences."""
        return dataclasses.replace(
            self, tokens=self.tokens[rows], document=self.document[rows], offset=self.offset[rows]
        )

    def fingerprint(self) -> str:
        """sha256 over the tokens and the names of their documents: two corpora with the same are the same."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.document, self.offset):
            digest.update(np.ascontiguousarray(array, "<i4").tobytes())
        digest.update(json.dumps(self.documents).encode())
        return digest.hexdigest()


def read_documents(path: str | Path) -> list[Document]:
    """Reads a `.jsonl` file (an object with "text" in every line; "id" and "source" if it likes), a `.parquet` file (a
    column "text"; "id" and "source" likewise) or a plain text file, which is one document.

    Raises:
      ValueError: for a file that is missing, not UTF-8, not JSON lines or Parquet where it should be, without any
        text, or Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _with_text(path, _parquet(path))
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; convert it first"
        ) from None
    documents = _json_lines(path, text) if path.suffix == ".jsonl" else [Document(path.name, path.stem, text)]
    return _with_text(path, documents)


def _with_text(path: Path, documents: list[Document]) -> list[Document]:
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ValueError(f"{path} is empty: it holds no text")
    return documents


def _parquet(path: Path) -> list[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"reading {path} takes pyarrow: pip install 'mishax-lite[parquet]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in ("text", "id", "source") if name in file.schema_arrow.names]
        text = file.schema_arrow.field("text").type if "text" in columns else None
        if text is None or not (pyarrow.types.is_string(text) or pyarrow.types.is_large_string(text)):
            got = ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
            raise ValueError(f'{path}: expected a column "text" of strings, got {got}')
        records = [record for batch in file.iter_batches(columns=columns) for record in batch.to_pylist()]
    except OSError as error:
        raise ValueError(f"cannot read the text {path}: {error.strerror or error}") from None
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from None
    return [
        Document(str(record.get("id", f"{path.stem}:{k}")), str(record.get("source", path.stem)), record["text"] or "")
        for k, record in enumerate(records)
    ]


def _json_lines(path: Path, text: str) -> list[Document]:
    documents = []
    # Not splitlines(): a JSON string may hold characters such as U+2028 that it would split at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f'{path}, line {number}: expected an object with a string "text", got {line[:60]!r}')
        try:
            record["text"].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{path}, line {number}: a lone surrogate, which is no text, in {line[:60]!r}") from None
        name = str(record.get("id", f"{path.stem}:{number}"))
        documents.append(Document(name, str(record.get("source", path.stem)), record["text"]))
    return documents


def cut(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Sequences:
    """Cuts documents into sequences of `length` tokens, BOS included; the last one of each document is padded.

    Raises:
      ValueError: for a length under 2, or documents without a single token.
    """
    if length < 2:
        raise ValueError(f"a sequence needs BOS and one token at least, got length {length}")
    body = length - 1
    rows, owners, offsets, names = [], [], [], []
    for number, document in enumerate(documents):
        ids = tokenizer.encode(document.text, add_bos=False)
        names.append((document.id, document.source))
        for start in range(0, len(ids), body):
            piece = ids[start : start + body]
            rows.append([tokenizer.bos, *piece, *[tokenizer.pad] * (body - len(piece))])
            owners.append(number)
            offsets.append(start)
    if not rows:
        raise ValueError("the documents hold no token at all: there is nothing to cut into sequences")
    return Sequences(
        np.asarray(rows, np.int32), np.asarray(owners, np.int32), np.asarray(offsets, np.int32), tuple(names)
    )


def batch_at(tokens: np.ndarray, start: int, size: int, pad: int) -> np.ndarray:
    """The sequences from `start` on as [size, T] int32. The last batch is filled up with padding, so that one compiled
    program serves all; what fills it is no text."""
    batch = np.full((size, tokens.shape[1]), pad, np.int32)
    batch[: len(tokens) - start] = tokens[start : start + size]
    return batch


def is_text(tokens: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """Which tokens are text: a mask in the tokens' shape, False at BOS, EOS and padding. Training and evaluation leave
    those out by this one rule."""
    return ~np.isin(tokens, special_ids)
