"""Stores sequences while they are cut: in memory, or in the files of a folder, which later runs use again.

text.json        the contents of the folder, and the sha256 of each file; written last: a folder without it is half made
tokens.npy       [S, T] int32
document.npy     [S] int32
offset.npy       [S] int32
left_out.npy     [S, T] bool, where tokens are left out
documents.jsonl  [id, source] in each line
hashes.npy       [documents] uint64, of their texts; folders of earlier versions lack it
lock             held by the process that makes the folder
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from sae.files import replace_file
from sae.text.sequences import Sequences
from sae.text.tally import Tally

_DTYPES = {"tokens": "<i4", "document": "<i4", "offset": "<i4", "left_out": "|b1"}
_HASHES = "hashes.npy"


class Block(NamedTuple):
    """Consecutive sequences.

    Attributes:
        tokens: int32 [R, T].
        document: int32 [R].
        offset: int32 [R].
        left_out: bool [R, T], or None.
    """

    tokens: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    left_out: np.ndarray | None


def in_memory(
    blocks: Iterable[Block], names: list[tuple[str, str]], hashes: list[int], tokenizer_sha256: str | None = None
) -> Sequences:
    """Returns the sequences of all blocks. `names` and `hashes` grow while the blocks are read, and are then
    complete."""
    tokens, document, offset, left_out = zip(*blocks, strict=True)
    return Sequences(
        np.concatenate(tokens),
        np.concatenate(document),
        np.concatenate(offset),
        tuple(names),
        None if left_out[0] is None else np.concatenate(left_out),
        tokenizer_sha256,
        hashes=np.asarray(hashes, np.uint64),
    )


def in_folder(
    folder: Path,
    facts: dict,
    blocks: Iterable[Block],
    names: list[tuple[str, str]],
    hashes: list[int],
    refused: Tally,
) -> Sequences:
    """Returns the sequences of all blocks from a folder, which is made where it is missing; see `cut`.

    Args:
        folder: the folder.
        facts: all that decides the contents of the folder, for JSON.
        blocks: the sequences.
        names: (id, source) of the documents; complete when the blocks are read.
        hashes: hashes of the documents' texts; complete when the blocks are read.
        refused: counts documents that cannot be cut, which the folder records; complete when this returns.

    Raises:
        ValueError: for a folder with other facts, or a damaged folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The system releases the lock at any end of the process.
    with FileLock(folder / "lock"):
        if not (folder / "text.json").exists():
            try:
                _write(folder, facts, blocks, names, hashes, refused)
            except BaseException:  # a full disk, Ctrl-C: half-made files are of no use
                for name in (*(f"{name}.npy" for name in _DTYPES), _HASHES, "documents.jsonl"):
                    (folder / name).unlink(missing_ok=True)
                raise
    return _open(folder, facts, refused)


def _open(folder: Path, facts: dict, refused: Tally) -> Sequences:
    try:
        record = json.loads((folder / "text.json").read_bytes())
        differs = [
            f"{key}: the folder has {record.get(key)!r}, asked for {value!r}"
            for key, value in facts.items()
            if record.get(key) != value
        ]
        if not differs:
            # Folders of earlier versions have no checksums.
            for name, recorded in record.get("sha256", {}).items():
                if (now := _sha256(folder / name)) != recorded:
                    raise ValueError(f"{name} has the sha256 {now[:12]}…, {recorded[:12]}… was recorded")
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in record["arrays"]
            }
            lines = (folder / "documents.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            names = tuple((id_, source) for id_, source in map(json.loads, lines))
            counts = {"sequences": sorted({len(array) for array in arrays.values()}), "documents": len(names)}
            if counts != {"sequences": [record["sequences"]], "documents": record["documents"]}:
                raise ValueError(f"text.json and the files disagree: {counts}")
            refused.bad, refused.first_bad = record.get("bad", 0), record.get("first_bad", "")
            if _HASHES in record.get("sha256", {}):
                arrays["hashes"] = np.load(folder / _HASHES, allow_pickle=False)
            return Sequences(documents=names, tokenizer_sha256=record.get("tokenizer_sha256"), **arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it, or name another folder") from error
    raise ValueError(
        f"{folder} holds other sequences: {'; '.join(differs)}. Name another folder, or delete this one; nothing was "
        "changed"
    )


def _write(
    folder: Path,
    facts: dict,
    blocks: Iterable[Block],
    names: list[tuple[str, str]],
    hashes: list[int],
    refused: Tally,
) -> None:
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        widths: dict[str, tuple[int, ...]] = {}
        documents_file = stack.enter_context(open(folder / "documents.jsonl", "wb"))
        sequences = documents = 0
        for block in blocks:
            for name, array in block._asdict().items():
                if array is None:
                    continue
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.npy", "wb"))
                    _header(files[name], name, 0, array.shape[1:])
                    widths[name] = array.shape[1:]
                files[name].write(array.astype(_DTYPES[name], copy=False).tobytes())
            sequences += len(block.tokens)
            documents = _write_names(documents_file, names, documents)
        documents = _write_names(documents_file, names, documents)
        for name, file in files.items():
            # The header has room for any number of rows, so it can be overwritten in place.
            file.seek(0)
            _header(file, name, sequences, widths[name])
        hashes_file = stack.enter_context(open(folder / _HASHES, "wb"))
        np.save(hashes_file, np.asarray(hashes, "<u8"))
        for file in (documents_file, hashes_file, *files.values()):
            file.flush()
            os.fsync(file.fileno())
    # `refused` is complete, as all blocks are read.
    sums = {name: _sha256(folder / name) for name in ("documents.jsonl", _HASHES, *(f"{name}.npy" for name in files))}
    bad = {"bad": refused.bad, "first_bad": refused.first_bad} if refused.bad else {}
    record = {**facts, **bad, "sequences": sequences, "documents": documents, "arrays": list(files)}
    record["sha256"] = sums
    replace_file(folder / "text.json", json.dumps(record, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_names(file: BinaryIO, names: list[tuple[str, str]], written: int) -> int:
    file.writelines(json.dumps(name).encode() + b"\n" for name in names[written:])
    return len(names)


def _header(file: BinaryIO, name: str, rows: int, width: tuple[int, ...]) -> None:
    facts = {"descr": _DTYPES[name], "fortran_order": False, "shape": (rows, *width)}
    np.lib.format.write_array_header_1_0(file, facts)
