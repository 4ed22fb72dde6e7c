"""Documents from tables: Parquet files, and the Arrow files of datasets that Hugging Face `datasets` saved to disk.

The folder that `Dataset.save_to_disk` writes holds `state.json`, whose `_data_files` name Arrow IPC stream files beside
it; the one of a DatasetDict holds `dataset_dict.json`, {"splits": [...]}, and such a folder for every split
(`arrow_dataset.py` and `dataset_dict.py` of `datasets`). So pyarrow alone reads them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sae.text.documents import Document, from_record

ROWS = 256  # turned into Python objects at a time


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` saved it."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def read_parquet(path: Path) -> Iterator[Document]:
    """The documents of a Parquet file, blank ones among them; see `iter_documents`."""
    pyarrow = _pyarrow(path)

    def batches():
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(pyarrow, path, file.schema_arrow)
            yield from file.iter_batches(batch_size=ROWS, columns=columns)

    yield from _rows(pyarrow, path, "Parquet", batches(), path.stem, 0)


def read_dataset(folder: Path) -> Iterator[Document]:
    """The documents of a saved dataset, blank ones among them; see `iter_documents`."""
    pyarrow = _pyarrow(folder)
    name, folder, row = folder.name, _split(folder), 0
    for file in _data_files(folder):
        # A row's number counts through all files, as it does in `datasets`.
        for document in _rows(pyarrow, file, "an Arrow stream", _stream(pyarrow, file), name, row):
            row += 1
            yield document


def _stream(pyarrow, file: Path) -> Iterator:
    # Mapped: the text stays on disk until its batch is read.
    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
        columns = _columns(pyarrow, file, stream.schema)
        for batch in stream:
            batch = batch.select(columns)
            yield from (batch.slice(start, ROWS) for start in range(0, len(batch), ROWS))


def _rows(pyarrow, path: Path, kind: str, batches: Iterator, name: str, row: int) -> Iterator[Document]:
    try:
        for batch in batches:
            for record in batch.to_pylist():
                # A null is an empty document, which is left out.
                if "text" in record:
                    record["text"] = record["text"] or ""
                else:
                    record["messages"] = record["messages"] or []
                yield from_record(record, where=f"{path}, row {row}", name=name, number=row)
                row += 1
    except OSError as error:
        raise ValueError(f"cannot read the text {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} after row {row}") from None
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not {kind}: {str(error).splitlines()[0]}") from None


def _columns(pyarrow, path: Path, schema) -> list[str]:
    """The columns to read. "messages" only where there is no "text"."""
    types = pyarrow.types

    def is_text(type_):
        return types.is_string(type_) or types.is_large_string(type_)

    def is_chat(type_):
        if not (types.is_list(type_) or types.is_large_list(type_)) or not types.is_struct(type_.value_type):
            return False
        fields = {field.name: field.type for field in type_.value_type}
        return all(key in fields and is_text(fields[key]) for key in ("role", "content"))

    body = "text" if "text" in schema.names else "messages"
    fits = is_text if body == "text" else is_chat
    if body not in schema.names or not fits(schema.field(body).type):
        got = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ValueError(
            f'{path}: expected a column "text" of strings, or "messages" of lists of {{"role", "content"}}, got {got}'
        )
    return [body, *(name for name in ("id", "source") if name in schema.names)]


def _split(folder: Path) -> Path:
    """Where the Arrow files are: the folder itself, or that of its one split, or of `train`."""
    index = folder / "dataset_dict.json"
    if not index.exists():
        return folder
    splits = _json(index, "splits")
    if "train" in splits:
        return folder / "train"
    if len(splits) == 1:
        return folder / splits[0]
    raise ValueError(
        f"{folder} has the splits {', '.join(map(str, splits)) or '(none)'}, and none is `train`: name the folder "
        "of one of them"
    )


def _data_files(folder: Path) -> list[Path]:
    files = _json(folder / "state.json", "_data_files")
    try:
        return [folder / file["filename"] for file in files]
    except (KeyError, TypeError):
        raise ValueError(f"{folder / 'state.json'}: expected a filename in each of _data_files, got {files}") from None


def _json(path: Path, key: str) -> list:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; is the dataset saved in full?") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); is the dataset saved in full?") from None
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise ValueError(f'{path}: expected an object with a list "{key}", as `save_to_disk` writes it')
    return value[key]


def _pyarrow(path: Path):
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"reading {path} takes pyarrow: pip install 'mishax-lite[parquet]'") from None
    return pyarrow
