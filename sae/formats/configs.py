"""The small files beside weights that say what those are: JSON objects, and the flat YAML of circuit-tracer.

They come from anybody: what is longer than any config, says one thing twice or is no object is refused by name.
"""

import json
import re
from pathlib import Path
from typing import Any

from sae.files import current

_LONGEST = 1 << 20  # bytes; the configs of the field are below ten thousand
_DEEPEST = 50


def read(file: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where there is no such file.

    Args:
        file: its path, where `sae.files.current` looks.

    Raises:
        ValueError: naming the file, when it is longer than a config, is no JSON, says one thing twice, or holds no
            object.

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
    if level:  # what keeps the config as text would not come back from there
        raise ValueError(f"{file} is damaged: it is nested more than {_DEEPEST} deep")
    return config


def lines(file: Path) -> dict[str, str] | None:
    """The lines `name: text` of a YAML file; lists and what is nested are passed over. None where there is no such
    file.

    Raises:
        ValueError: naming the file, when it is longer than a config, no text, or says one thing twice.
    """
    if (text := _text(file)) is None:
        return None
    entries = re.findall(r"^(\w+):[ \t]*[\"']?([^\"'\n#]+?)[\"']?[ \t]*(?:#.*)?$", text, re.MULTILINE)
    try:
        return once(entries)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs.

    Raises:
        ValueError: for a name that is there twice: readers differ in which they take.
    """
    result = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} is there twice")
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
