"""The small files beside a vocabulary: tokenizer_config.json, added_tokens.json, special_tokens_map.json, templates."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemma.tokenizer.added import AddedToken, from_fields

CONFIG, ADDED, SPECIAL, TEMPLATE = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TEMPLATES = "additional_chat_templates"
_LIST_OF_TOKENS = ("additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that stand beside a vocabulary.

    Attributes:
        tokens: by role (`bos_token`, `eos_token`, `pad_token` and others) the token's text, or its id if a GGUF file
            has that.
        added: tokens that the vocabulary may lack.
        add_bos: whether a text gets BOS; None if no file says so.
        add_eos: whether a text gets EOS; None if no file says so.
        marks_are_text: whether marks that a text spells out are text (`split_special_tokens`).
        templates: the chat templates by name; the usual one is "default".
        files: the contents of the files that this was read from, by name, to be written again.
    """

    tokens: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    marks_are_text: bool = False
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def read(folder: Path) -> Settings:
    """Reads the settings in a folder; those that are missing have their defaults.

    Raises:
        ValueError: with the name of a damaged file.
    """
    paths = {name: folder / name for name in (CONFIG, ADDED, SPECIAL, TEMPLATE)}
    files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    templates = sorted((folder / _TEMPLATES).glob("*.jinja"))
    files |= {f"{_TEMPLATES}/{path.name}": path.read_bytes() for path in templates}
    config, added, special = (_of(folder / name, files, name) for name in (CONFIG, ADDED, SPECIAL))
    tokens = {role: text for role, text in _tokens(special | config).items() if text}
    return Settings(
        tokens=tokens,
        added=_parsed(folder / CONFIG, lambda: _added(config, added)),
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
        marks_are_text=bool(config.get("split_special_tokens", False)),
        templates=_parsed(folder / CONFIG, lambda: _templates(config, files)),
        files=files,
    )


def _of(path: Path, files: Mapping[str, bytes], name: str) -> dict:
    """Returns a file's dict; an empty one if the file is missing."""
    value = _parsed(path, lambda: json.loads(files.get(name, b"{}")))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _parsed(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _flag(config: Mapping, name: str) -> bool | None:
    return None if config.get(name) is None else bool(config[name])


def _tokens(config: Mapping) -> dict[str, str | None]:
    """Returns the texts of `bos_token` and the like, which are texts or objects with a `content`."""
    text = lambda value: value.get("content") if isinstance(value, dict) else value  # noqa: E731
    tokens = {role: text(value) for role, value in config.items() if role.endswith("_token") and "add_" not in role}
    return {role: value for role, value in tokens.items() if isinstance(value, str)}


def _added(config: Mapping, added: Mapping) -> tuple[AddedToken, ...]:
    """Returns the tokens of `added_tokens_decoder`, which describes them best, and those of added_tokens.json alone."""
    described = config.get("added_tokens_decoder") or {}
    tokens = {int(id_): from_fields(fields, int(id_)) for id_, fields in described.items()}
    special = set(_tokens(config).values())
    for name in _LIST_OF_TOKENS:
        values = config.get(name) or ()
        values = values.values() if isinstance(values, dict) else values
        special |= {value.get("content") if isinstance(value, dict) else value for value in values}
    for content, id_ in added.items():
        token = tokens.setdefault(int(id_), AddedToken(content, int(id_), content in special, content not in special))
        if token.content != content:
            raise ValueError(f"the id {id_} is {token.content!r} in {CONFIG}, and {content!r} in {ADDED}")
    return tuple(tokens[id_] for id_ in sorted(tokens))


def _templates(config: Mapping, files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the chat templates by name. A separate file goes before tokenizer_config.json, as in transformers."""
    value = config.get("chat_template") or {}
    if isinstance(value, str):
        value = {"default": value}
    elif isinstance(value, list):
        value = {one["name"]: one["template"] for one in value}
    for name, contents in files.items():
        if name.startswith(_TEMPLATES):
            value = value | {Path(name).stem: contents.decode("utf-8")}
    if TEMPLATE in files:
        value = value | {"default": files[TEMPLATE].decode("utf-8")}
    return value
