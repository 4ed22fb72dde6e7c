"""Expands the quantised tensors of a GGUF file to float32 once, and maps the numbers from a file after that.

Loading the real 270M in Q4_K_M takes 5.8 s of CPU time, of which expanding is 0.8 s; the rest is the package's check of
its file, the tokenizer, and the check of all numbers. The numbers go to one file in a folder of the caller's, tensor
after tensor in the order of their names. If the file exists, it is whole.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gemma.checkpoints.gguffiles import Contents
from gemma.checkpoints.streaming import BLOCK_BYTES, Stored
from mishax_lite.whole_files import replacing

_SUFFIX = ".float32"
_BYTES = np.dtype("<f4").itemsize
_WORKERS = min(4, os.cpu_count() or 1)


def expanded(contents: Contents, folder: Path) -> Contents:
    """Returns the same contents, with tensors that are read from a file of numbers, which is made if it is missing.

    The file belongs to one state of the GGUF file (its path, size and time) and one version of the expanding package;
    files of earlier states are removed. If the numbers need more than half of the free disk, or cannot be written, they
    are not kept.

    Args:
        contents: the contents of a GGUF file, from `gguffiles.scan`.
        folder: the folder for the file of numbers; it is made if it is missing.

    Warns:
        UserWarning: if the numbers are not kept, with the reason.
    """
    names = sorted(name for name in contents.quantised if contents.tensors[name].problem is None)
    counts = {name: math.prod(contents.tensors[name].shape) for name in names}
    offsets, end = {}, 0
    for name in names:
        offsets[name], end = end, end + _BYTES * counts[name]
    if not names:
        return contents
    file = _place(contents.file, folder)
    if not (file.is_file() and file.stat().st_size == end):
        try:
            _write(contents, offsets, end, file)
        except OSError as error:
            warnings.warn(f"the expanded numbers of {contents.file} are not kept: {error}", stacklevel=5)
            return contents
    mapped = {name: _mapped(contents.tensors[name], file, offsets[name]) for name in names}
    return dataclasses.replace(contents, tensors={**contents.tensors, **mapped})


def _place(source: Path, folder: Path) -> Path:
    """Returns the path of the file of numbers, from the source's name, path, state, and the package's version."""
    facts = source.stat()
    state = f"{facts.st_size} {facts.st_mtime_ns} {importlib.metadata.version('gguf')} 1"
    return folder / f"{_beginning(source)}{hashlib.sha256(state.encode()).hexdigest()[:16]}{_SUFFIX}"


def _beginning(source: Path) -> str:
    where = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]
    return f"{source.stem}-{where}-"


def _write(contents: Contents, offsets: dict[str, int], size: int, file: Path) -> None:
    """Expands all tensors into a file, block by block.

    Raises:
        OSError: if the disk has no room for the file, or it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if size > free / 2:
        raise OSError(f"they take {size / 1e9:.1f} GB in {file.parent}, where {free / 1e9:.1f} GB are free")
    with replacing(file, f".{os.getpid()}") as new, open(new, "wb") as target:

        def copy(job: tuple[str, int, int]) -> None:
            name, start, stop = job
            tensor = contents.tensors[name]
            rows = np.ascontiguousarray(tensor.rows(start, stop), "<f4")
            at = offsets[name] + start * _BYTES * math.prod(tensor.shape[1:])
            view = memoryview(rows.data).cast("B")
            while view:  # a signal may end a write early
                written = os.pwrite(target.fileno(), view, at)
                view, at = view[written:], at + written

        with ThreadPoolExecutor(_WORKERS) as pool:
            for _ in pool.map(copy, _jobs(contents, offsets)):
                pass
    for old in file.parent.glob(f"{_escaped(_beginning(contents.file))}*{_SUFFIX}"):
        if old != file:
            with contextlib.suppress(OSError):  # on Windows, if another process maps it
                old.unlink()


def _escaped(name: str) -> str:
    """Returns a name in which `glob` sees no patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _jobs(contents: Contents, offsets: dict[str, int]) -> list[tuple[str, int, int]]:
    """Returns (name, first row, row behind the last) of all blocks."""
    jobs = []
    for name in offsets:
        shape = contents.tensors[name].shape
        step = max(1, BLOCK_BYTES // max(1, _BYTES * math.prod(shape[1:])))
        jobs += [(name, start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    return jobs


def _mapped(stored: Stored, file: Path, offset: int) -> Stored:
    numbers = np.memmap(file, "<f4", "r", offset=offset, shape=stored.shape)
    return dataclasses.replace(stored, rows=lambda start, stop: numbers[start:stop])
