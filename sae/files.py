"""Small files on disk: replaced whole, and JSON with errors that name the file."""

import json
import os
from pathlib import Path


def read_json(path: Path):
    """Raises ValueError, naming the file, when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
