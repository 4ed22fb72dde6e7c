"""Reads documents from tables: Parquet files, and Arrow files of datasets that Hugging Face `datasets` saved to disk.

The folder of `Dataset.save_to_disk` has `state.json`, whose `_data_files` name Arrow IPC stream files beside it. The
folder of a DatasetDict has `dataset_dict.json`, {"splits": [...]}, and such a folder for every split
(`arrow_dataset.py` and `dataset_dict.py` of `datasets`). So pyarrow alone reads them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

ROWS = 256  # rows that become Python objects at a time


def is_dataset(folder: Path) -> bool:
    """Returns whether a folder is a dataset that `datasets` saved.

    Example:
        >>> is_dataset(Path("no such folder"))
        False
    """
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def is_table(path: Path) -> bool:
    """Returns whether a file is Parquet or Arrow, by its first bytes.

    Example:
        >>> is_table(Path("no such file"))
        False
    """
    return _begins(path, b"PAR1", b"ARROW1")


def file_records(path: Path) -> Iterator[tuple[int, str, dict]]:
    """Yields the rows of a Parquet or Arrow file as (number, where, record), as `sae.text.records` does.

    Raises:
        ValueError: for a file of another kind, damaged, or without a column of texts or chats.

    Example:
        >>> import pathlib, tempfile, pyarrow.parquet
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), path)
        >>> [record for _, _, record in file_records(path)]
        [{'text': 'one'}]
    """
    pyarrow = _pyarrow(path)
    if _begins(path, b"ARROW1") or (path.suffix.lower() in (".arrow", ".feather") and not _begins(path, b"PAR1")):
        yield from _rows(pyarrow, path, "an Arrow file", _arrow_file(pyarrow, path), 0)
    else:
        yield from _rows(pyarrow, path, "Parquet", _parquet(pyarrow, path), 0)


def dataset_records(folder: Path) -> Iterator[tuple[int, str, dict]]:
    """Yields the rows of a saved dataset as (number, where, record). A row's number counts through all its files, as in
    `datasets`."""
    pyarrow = _pyarrow(folder)
    folder, row = _split(folder), 0
    for file in _data_files(folder):
        for record in _rows(pyarrow, file, "an Arrow stream", _arrow_file(pyarrow, file), row):
            row += 1
            yield record


def _begins(path: Path, *magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(6).startswith(magic)
    except OSError:
        return False  # reading the file raises the error


def _parquet(pyarrow, path: Path) -> Iterator:
    # Not every writer records checksums; where they exist, damage is an error.
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        columns = _columns(pyarrow, path, file.schema_arrow)
        yield from file.iter_batches(batch_size=ROWS, columns=columns)


def _arrow_file(pyarrow, path: Path) -> Iterator:
    """Yields the batches of an Arrow file, which has an index at its end (as Feather's second version has), or of an
    Arrow stream, as `datasets` writes it."""
    # Memory-mapped: the text stays on disk until its batch is read.
    with pyarrow.memory_map(str(path)) as source:
        indexed = source.read(6) == b"ARROW1"
        source.seek(0)
        with (pyarrow.ipc.open_file if indexed else pyarrow.ipc.open_stream)(source) as reader:
            columns = _columns(pyarrow, path, reader.schema)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
            for batch in batches:
                batch = batch.select(columns)
                yield from (batch.slice(start, ROWS) for start in range(0, len(batch), ROWS))


def _rows(pyarrow, path: Path, kind: str, batches: Iterator, row: int) -> Iterator[tuple[int, str, dict]]:
    try:
        for batch in batches:
            # pyarrow follows offsets unchecked, and those of a damaged file may lead anywhere.
            batch.validate(full=True)
            for record in batch.to_pylist():
                yield row, f"{path}, row {row}", record
                row += 1
    except OSError as error:
        raise ValueError(f"cannot read the text {path}: {error.strerror or str(error).splitlines()[0]}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: the name of a column is not UTF-8") from None
    except pyarrow.ArrowException as error:
        problem = str(error).splitlines()[0]
        if "UTF8" in problem:
            raise ValueError(f"{path} is not UTF-8 from row {row} on ({problem})") from None
        raise ValueError(f"{path} is not {kind}, or damaged: {problem}") from None


def _columns(pyarrow, path: Path, schema) -> list[str]:
    """Returns the names of the columns to read."""
    fits = {"text": _is_text, "messages": _is_chat}
    bodies = [name for name in fits if name in schema.names and fits[name](pyarrow.types, schema.field(name).type)]
    wrong = [name for name in fits if name in schema.names and name not in bodies]
    # A column "text" of nulls may stand beside "messages"; one of another kind may not.
    if not bodies or ("text" in wrong and not pyarrow.types.is_null(schema.field("text").type)):
        got = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ValueError(
            f'{path}: expected a column "text" of strings, or "messages" of lists of {{"role", "content"}}, got {got}'
        )
    return [*bodies, *(name for name in ("id", "source") if name in schema.names)]


def _is_text(types, kind) -> bool:
    """Returns whether a column has strings, in any storage."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(types, kind) -> bool:
    return any(
        of(kind)
        for of in (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
        + (types.is_fixed_size_list,)
    )


def _is_chat(types, kind) -> bool:
    """Returns whether a column has lists of {"role", "content"}; a content is a string or a list of parts."""
    if not _is_list(types, kind) or not types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    if not {"role", "content"} <= set(fields) or not _is_text(types, fields["role"]):
        return False
    content = fields["content"]
    parts = _is_list(types, content) and (types.is_struct(content.value_type) or _is_text(types, content.value_type))
    return parts or _is_text(types, content) or types.is_null(content)


def _split(folder: Path) -> Path:
    """Returns the folder of the Arrow files: the folder itself, that of its only split, or that of `train`."""
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
        raise ValueError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    return pyarrow
