"""`SHA256SUMS`: the sha256 of every other file of a release, in the form that `sha256sum -c` reads."""

import hashlib
import re
from pathlib import Path

from sae import showing
from sae.files import replace_file

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write(folder: Path) -> dict[str, str]:
    """Writes the file, and returns the sha256 of each other file of the folder by its path."""
    sums = {name: digest(folder / name) for name in files(folder)}
    replace_file(folder / NAME, "".join(f"{value}  {name}\n" for name, value in sums.items()))
    return sums


def read(file: Path) -> dict[str, str]:
    """Returns the sha256 of each file by its path.

    Args:
        file: a `SHA256SUMS`.

    Raises:
        ValueError: naming the file, for a line that is none of such a file.
    """
    sums = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if (match := _LINE.fullmatch(line)) is None:
            raise ValueError(f"{file} is damaged: line {number} is no sha256 with the name of a file: release again")
        sums[match[2]] = match[1]
    return sums


def files(folder: Path) -> list[str]:
    """Returns the paths of the files in a folder, all but `SHA256SUMS`, in the order of their names."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(path for path in paths if path != NAME)


def digest(file: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def problem(folder: Path, sums: dict[str, str]) -> str | None:
    """Returns how the files of a folder differ from their checksums, in words; None where they do not."""
    held = set(files(folder))
    kinds = {
        "missing": sorted(sums.keys() - held),
        "not listed": sorted(held - sums.keys()),
        "changed": [name for name in sums if name in held and digest(folder / name) != sums[name]],
    }
    words = [
        f"{showing.some(names)} {'is' if len(names) == 1 else 'are'} {kind}" for kind, names in kinds.items() if names
    ]
    return "; ".join(words) or None
