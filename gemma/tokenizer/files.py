"""Reads a folder into a tokenizer, and writes it back.

Of `tokenizer.json` and `tokenizer.model` in one folder, the first is read, as by transformers: fine-tunes that add
tokens write the first and leave the second unchanged. Files that this package wrote say that the two are the same; then
the second is read, which is faster.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma.tokenizer import settings, vocabulary
from gemma.tokenizer.chat import END
from gemma.tokenizer.engines import Packaged, SentencePiece
from gemma.tokenizer.settings import Settings
from gemma.tokenizer.text import Tokenizer

JSON, MODEL, GENERATION = "tokenizer.json", "tokenizer.model", "generation_config.json"
_SAME = "tokenizer_json_sha256_made_from_tokenizer_model"  # in tokenizer_config.json


def read(path: Path) -> Tokenizer:
    """Reads the tokenizer of a file `tokenizer.json` or `tokenizer.model`, with the settings beside it.

    Args:
        path: the file.

    Raises:
        ValueError: for a damaged file, one that lacks one of Gemma's special tokens, or one that needs the missing
            package `tokenizers` (then a `MissingPackageError`).
    """
    beside = settings.read(path.parent)
    if path.suffix == ".json" and not _same(path, beside):
        tokenizer = _from_json(path, beside)
    else:
        path = path if path.suffix != ".json" else path.with_name(MODEL)
        try:
            tokenizer = Tokenizer(path.read_bytes(), beside)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be used with the files beside it: {error}") from error
    _check(path, tokenizer)
    return tokenizer


def _check(path: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless the special tokens exist, and a tokenizer.model has them where Gemma's has."""
    roles = {"BOS": tokenizer.bos, "EOS": tokenizer.eos, "padding": tokenizer.pad}
    missing = [role for role, id_ in roles.items() if id_ < 0]
    if missing:
        raise ValueError(f"{path} has no token for {' and '.join(missing)}, and tokenizer_config.json names none")
    if path.suffix != ".json":
        ids = tuple(tokenizer.find(text) for text in ("<pad>", "<eos>", "<bos>"))
        if ids != (0, 1, 2):
            raise ValueError(f"{path} has pad, eos and bos at {ids}, Gemma's are 0, 1 and 2")


class MissingPackageError(ValueError):
    """The error of a sound file that needs the package `tokenizers`."""


def _same(path: Path, beside: Settings) -> bool:
    """Returns whether `write` made a tokenizer.json from the tokenizer.model beside it."""
    if settings.CONFIG not in beside.files or not path.with_name(MODEL).is_file():
        return False
    noted = json.loads(beside.files[settings.CONFIG]).get(_SAME)
    return noted is not None and noted == _noted(path.read_bytes(), path.with_name(MODEL).read_bytes())


def _noted(json_bytes: bytes, model: bytes) -> list[str]:
    return [hashlib.sha256(contents).hexdigest() for contents in (json_bytes, model)]


def _from_json(path: Path, beside: Settings) -> Tokenizer:
    contents = path.read_bytes()
    try:
        read = vocabulary.read(contents)
    except (ValueError, TypeError, KeyError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a tokenizer of transformers: {error}") from error
    ids = {token.id for token in read.added}
    added = (*read.added, *(token for token in beside.added if token.id not in ids))
    bos = beside.tokens.get("bos_token", "<bos>")
    eos = beside.tokens.get("eos_token", "<eos>")
    files = dict(beside.files)
    if path.with_name(MODEL).is_file():
        files[MODEL] = path.with_name(MODEL).read_bytes()
    beside = dataclasses.replace(
        beside,
        files=files,
        added=added,
        add_bos=bos in read.begins if beside.add_bos is None else beside.add_bos,
        add_eos=eos in read.ends if beside.add_eos is None else beside.add_eos,
    )
    try:
        if read.model is not None:
            return Tokenizer(read.model, beside, engine=SentencePiece(read.model, added, read.bare), json=contents)
        return Tokenizer(None, beside, engine=Packaged(contents, added), json=contents)
    except ImportError:
        raise MissingPackageError(
            f"{path} is no SentencePiece tokenizer ({read.reason}), and reading it needs the package tokenizers: "
            "pip install tokenizers"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"{path} has a vocabulary that makes no tokenizer: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used with the files beside it: {error}") from error


def write(tokenizer: Tokenizer, folder: Path, *, transformers: bool) -> None:
    """Writes a tokenizer for `read`.

    The files that the tokenizer was read from are written unchanged.

    Args:
        tokenizer: the tokenizer.
        folder: the folder, which exists.
        transformers: whether to write the further files that `AutoTokenizer` of transformers needs.
    """
    files: dict[str, Any] = dict(tokenizer.settings.files)
    if tokenizer.json is not None:
        files[JSON] = tokenizer.json
    else:
        files[MODEL] = tokenizer.model_proto
    if transformers:
        files |= _for_transformers(tokenizer, files)
    elif settings.CONFIG not in files and (config := _config(tokenizer, added=True)):
        files[settings.CONFIG] = _dumped(config)
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)


def write_end_tokens(folder: Path, tokenizer: Tokenizer | None, ids: Sequence[int]) -> None:
    """Writes generation_config.json, with which `generate` of transformers stops where `gemma.generate` stops."""
    pad, bos = (0, 2) if tokenizer is None else (tokenizer.pad, tokenizer.bos)
    ends = ids[0] if len(ids) == 1 else list(ids)
    values = {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": pad}
    (folder / GENERATION).write_bytes(_dumped(values))


def end_tokens(path: Path) -> tuple[int, ...] | None:
    """Returns the ids at which a model ends its text by a JSON file; None if the file is missing or names none.

    Args:
        path: a generation_config.json or config.json.

    Raises:
        ValueError: with the file's name, if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        return None if ids is None else tuple(map(int, ids if isinstance(ids, list) else [ids]))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def usual_end_tokens(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Returns the ids at which a text ends by default: EOS, and the end of a turn if that is a token."""
    if tokenizer is None:
        return (1,)  # EOS in every Gemma
    ids = (tokenizer.eos, tokenizer.find("<eos>"), tokenizer.find(END))
    return tuple(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def _config(tokenizer: Tokenizer, added: bool) -> dict:
    """Returns the content of tokenizer_config.json that stands in no other file."""
    beside, config = tokenizer.settings, {}
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    for (role, id_), usual in zip(ids.items(), (2, 1, 0), strict=True):
        if id_ != usual or not added:
            config[role] = tokenizer.raw_piece(id_)
    if added and beside.added:
        config["added_tokens_decoder"] = {
            str(token.id): {key: value for key, value in dataclasses.asdict(token).items() if key != "id"}
            for token in beside.added
        }
    if beside.add_bos is not None:
        config["add_bos_token"] = beside.add_bos
    if beside.add_eos is not None:
        config["add_eos_token"] = beside.add_eos
    if beside.templates:
        named = [{"name": name, "template": text} for name, text in beside.templates.items()]
        config["chat_template"] = beside.templates["default"] if beside.templates.keys() == {"default"} else named
    return config


def _for_transformers(tokenizer: Tokenizer, files: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the contents of tokenizer.json and tokenizer_config.json, as far as the files lack them."""
    contents = {}
    if JSON not in files:
        texts = [tokenizer.raw_piece(id_) for id_ in range(len(tokenizer))]
        begins = [(tokenizer.raw_piece(tokenizer.bos), tokenizer.bos)] if tokenizer.adds_bos else []
        engine: Any = tokenizer.engine  # SentencePiece's, as there is no tokenizer.json
        contents[JSON] = vocabulary.write(texts, tokenizer.added_tokens, engine.unknown, begins, engine.merged)
    if settings.CONFIG not in files:
        config = {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": tokenizer.adds_bos,
            "add_eos_token": bool(tokenizer.settings.add_eos),
            # pyrefly: ignore[missing-attribute]  SentencePiece's engine, where there is no tokenizer.json
            "unk_token": tokenizer.engine.unknown if tokenizer.json is None else "<unk>",
            # transformers adds a mask token unless this says otherwise.
            "mask_token": "<mask>" if tokenizer.find("<mask>") is not None else None,
            "clean_up_tokenization_spaces": False,
            **_config(tokenizer, added=False),
        }
        if JSON in contents:
            # pyrefly: ignore[bad-argument-type]  there is one where there is no tokenizer.json
            config[_SAME] = _noted(contents[JSON], tokenizer.model_proto)
        contents[settings.CONFIG] = _dumped(config)
    return contents


def _dumped(values: dict) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
