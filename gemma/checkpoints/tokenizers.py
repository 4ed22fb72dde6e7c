"""Finds the tokenizer of a checkpoint, and the tokens at which its texts end."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gemma.checkpoints import gguf
from gemma.checkpoints.gguffiles import Contents
from gemma.checkpoints.sources import Files
from gemma.configs import Config
from gemma.tokenizer import Tokenizer, files

if TYPE_CHECKING:
    from gemma.model import Model

# How many more ordinary pieces than rows of the model a tokenizer may have: a fine-tune may add tokens and leave the
# embedding unchanged. Marks do not count; see `Tokenizer.misfit`.
_FEW_PIECES = 64


def read(sources: Files, contents: Contents | None, config: Config) -> tuple[Tokenizer | None, str | None]:
    """Reads the tokenizer of a checkpoint.

    The tokenizer in a GGUF file goes first; if it is missing or cannot be read, the one beside the file is read. One
    that cannot be read does not stop the weights from loading, as nobody can take it out of the file.

    Args:
        sources: the checkpoint's files.
        contents: the header of a GGUF file, or None.
        config: the model's configuration.

    Returns:
        The tokenizer or None, and the reason why an existing tokenizer cannot be read, or None.

    Raises:
        ValueError: for a `tokenizer.json` or `tokenizer.model` that is damaged, or that gives a text ids that the model
            lacks.
    """
    reason = None
    if contents is not None:
        try:
            tokenizer = gguf.tokenizer(contents)
            if tokenizer is not None:
                _check_size(tokenizer, contents.file, config)
                return tokenizer, None
        except ValueError as error:
            reason = f"{error}; put its tokenizer.model or tokenizer.json beside it"
    path = _beside(sources)
    if path is None:
        return None, reason
    try:
        tokenizer = files.read(path)
    except files.MissingPackageError as error:
        return None, str(error)
    if contents is not None:
        tokenizer = _with_templates(tokenizer, gguf.templates(contents))
    _check_size(tokenizer, path, config)
    return tokenizer, None


def _beside(sources: Files) -> Path | None:
    """Returns the first folder's tokenizer; of two in one folder, the one that transformers reads."""
    for folder in sources.folders:
        for name in (files.JSON, files.MODEL):
            if (folder / name).is_file():
                return folder / name
    return None


def _with_templates(tokenizer: Tokenizer, templates: dict[str, str]) -> Tokenizer:
    """Returns a tokenizer with the chat templates of a GGUF file, unless it has its own."""
    if tokenizer.settings.templates or not templates:
        return tokenizer
    return tokenizer.with_settings(dataclasses.replace(tokenizer.settings, templates=templates))


def _check_size(tokenizer: Tokenizer, where: Path, config: Config) -> None:
    """Raises ValueError for a tokenizer of another model.

    A few pieces without a row do no harm, as `apply` and `generate` refuse their ids.
    """
    misfit = tokenizer.misfit(config.vocab_size)
    if misfit and len(tokenizer) > config.vocab_size + _FEW_PIECES:
        raise ValueError(f"{where} has {misfit}")


def end_tokens(sources: Files, contents: Contents | None, tokenizer: Tokenizer | None) -> tuple[int, ...] | None:
    """Returns the ids at which texts end, or None if no file names any.

    They are those of generation_config.json; else the usual ones and those that config.json or a GGUF file names.

    Args:
        sources: the checkpoint's files.
        contents: the header of a GGUF file, or None.
        tokenizer: the checkpoint's tokenizer, or None.

    Raises:
        ValueError: for a damaged generation_config.json.
    """
    for folder in sources.folders:
        ids = files.end_tokens(folder / files.GENERATION)
        if ids is not None:
            return ids
    if contents is not None:
        keys = ("eos", "eot", "eom")  # llama.cpp's names for the ends of a text, a turn and a message
        ids = [contents.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
        ids = [int(id_) for id_ in ids if id_ is not None]
    elif sources.config is not None:
        ids = files.end_tokens(sources.config) or ()
    else:
        ids = ()
    usual = files.usual_end_tokens(tokenizer)
    return tuple(dict.fromkeys((*usual, *ids))) if set(ids) - set(usual) else None


def ends(model: "Model") -> tuple[int, ...]:
    """Returns the ids at which a model's texts end."""
    usual = files.usual_end_tokens(model.tokenizer)
    return usual if model.end_tokens is None else model.end_tokens


def write(model: "Model", folder: Path, *, transformers: bool) -> None:
    """Writes the tokenizer and the ids at which texts end.

    Args:
        model: the model.
        folder: the folder, which exists.
        transformers: whether to write the further files that `AutoTokenizer` of transformers needs.
    """
    if model.tokenizer is not None:
        files.write(model.tokenizer, folder, transformers=transformers)
    if transformers or model.end_tokens is not None:
        files.write_end_tokens(folder, model.tokenizer, ends(model))
