"""Reads the small config files beside weights: JSON objects, and the flat YAML of circuit-tracer.

The files are not trusted: a file that is longer than any config, has a name twice or is no object is refused by name.
"""

import json
import re
from pathlib import Path
from typing import Any

from sae.files import current

_LONGEST = 1 << 20  # bytes; the configs of other projects are below ten thousand
_DEEPEST = 50


def read(file: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None where the file is missing.

    Args:
        file: the path, which `sae.files.current` resolves.

    Raises:
        ValueError: naming the file, where it is longer than a config, is no JSON, has a name twice, or holds no object.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "cfg.json")
        >>> file.write_text('{"d_in": 4}')
        11
        >>> read(file), read(file.with_name("none.json"))
        ({'d_in': 4}, None)
    """
    if (text := _text(file)) is None:
        return None
    try:
        config = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it is not JSON, or {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it holds no object")
    level: list[Any] = [config]
    for _ in range(_DEEPEST):
        level = [one for value in level for one in _inside(value)]
    if level:  # the record keeps the config as text, which could not be read again
        raise ValueError(f"{file} is damaged: it is nested more than {_DEEPEST} deep")
    return config


def lines(file: Path) -> dict[str, str] | None:
    """Returns the lines `name: text` of a YAML file, without lists and nested values; None where the file is missing.

    Raises:
        ValueError: naming the file, where it is longer than a config, is no text, or has a name twice.
    """
    if (text := _text(file)) is None:
        return None
    entries = re.findall(r"^(\w+):[ \t]*[\"']?([^\"'\n#]+?)[\"']?[ \t]*(?:#.*)?$", text, re.MULTILINE)
    try:
        return once(entries)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a dict of pairs.

    Raises:
        ValueError: for a name that comes twice, as readers differ in the value that they take.
    """
    result = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} comes twice")
        result[name] = value
    return result


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _text(file: Path) -> str | None:
    place = current(file.parent, file.name)
    if place is None or not place.exists():
        return None
    if not place.is_file():
        raise ValueError(f"{file} is no file")
    with place.open("rb") as stream:
        content = stream.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise ValueError(f"{file} is longer than {_LONGEST:,} bytes, and no config is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: it is no text ({error})") from None
