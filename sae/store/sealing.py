"""JSON files that end in a checksum (xxh3_128) of all bytes before it."""

import json

from sae.store import arrays

FIELD = "checksum"
_MARK = f'"{FIELD}": "'


def seal(values: dict, indent: int | None = None) -> bytes:
    """Returns the bytes of a JSON object with its checksum as the last field."""
    body, _, end = json.dumps(values | {FIELD: ""}, indent=indent).rpartition(_MARK)
    return f"{body}{_MARK}{arrays.checksum(body.encode())}{end}\n".encode()


def check(name: str, contents: bytes) -> None:
    """Raises ValueError, naming the file, for a wrong checksum."""
    body, _, end = contents.rpartition(_MARK.encode())
    if not end.startswith(f'{arrays.checksum(body)}"'.encode()) or end.partition(b'"')[2].split() != [b"}"]:
        raise ValueError(f"{name} is damaged: its checksum differs, so something in it was changed")
