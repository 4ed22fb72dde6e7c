"""Finds checkpoints of the Hugging Face hub in its cache on this machine, and fetches missing ones (extra `hub`)."""

import json
import re
from pathlib import Path
from typing import Any

from gemma.checkpoints.huggingface import INDEX, SINGLE

_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?(@[\w./-]+)?", re.ASCII)
# Files that this package does not read are not fetched, above all no pickles; and only the one GGUF file to load.
_NOT_WANTED = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.dat", "*.imatrix"),
    *("*.gguf", "original/*"),
)
# Files that are fetched with a GGUF file: configuration, tokenizer, chat templates, and the ends of texts.
_BESIDE = (
    *("config.json", "tokenizer*", "added_tokens.json", "special_tokens_map.json", "generation_config.json"),
    *("chat_template*", "additional_chat_templates/*"),
)


def is_id(source: str) -> bool:
    """Returns whether a text can be an id of the hub: `owner/name`, `owner/name/file.gguf`, maybe with `@revision`."""
    return _ID.fullmatch(source) is not None


def snapshot(source: str) -> Path:
    """Returns the folder of a checkpoint in the hub's cache (`HF_HOME`, `HF_HUB_CACHE`), or its one GGUF file.

    A missing or incomplete checkpoint is fetched.

    Args:
        source: an id of the hub.

    Raises:
        ValueError: without the package `huggingface_hub`; if the hub has no such model, wants its licence accepted, or
            cannot be reached; and for a repository with several GGUF files and no other weights.
    """
    name, _, revision = source.partition("@")
    owner, repository, *inside = name.split("/", 2)
    file = inside[0] if inside else None
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ValueError(
            f"{source!r} is no folder here, and looking for it on the hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from None
    wanted: dict[str, Any] = {"repo_id": f"{owner}/{repository}", "revision": revision or None}
    most = wanted | {"ignore_patterns": list(_NOT_WANTED)}
    folder = None
    try:
        folder = Path(huggingface_hub.snapshot_download(**most, local_files_only=True))
        if place := _whole(folder, file):
            return place
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise ValueError(f"{source!r} is no folder here and no id of the hub: {_line(error)}") from error
    try:
        if file is None:
            folder = Path(huggingface_hub.snapshot_download(**most))
            if _weights(folder):
                return folder
            file = _one_gguf(source, huggingface_hub.HfApi().list_repo_files(**wanted))
            if file is None:
                return folder
        place = Path(huggingface_hub.snapshot_download(**wanted, allow_patterns=[file, *_BESIDE])) / file
        if not place.exists():
            _one_gguf(source, huggingface_hub.HfApi().list_repo_files(**wanted), missing=file)
        return place
    except _NotOneError:
        raise
    except Exception as error:  # of the hub's, of its http library, of the disk
        parts = sorted(one.name for one in folder.iterdir()) if folder is not None else []
        cache = f"the hub's cache has no weights of {source!r}, only {', '.join(parts)}"
        if not parts:
            cache = f"{source!r} is not in the hub's cache"
        raise ValueError(f"{cache}, and {_why(error, errors, wanted['repo_id'])}") from error


def _weights(folder: Path) -> bool:
    """Returns whether a folder has weights that this package reads."""
    return any(folder.glob("*.safetensors")) or (folder / INDEX).exists() or not any(folder.iterdir())


class _NotOneError(ValueError):
    """The error of an id that does not say which file of a repository is meant."""


def _one_gguf(source: str, files: list[str], missing: str | None = None) -> str | None:
    """Returns the one GGUF file of a repository; None if it has none.

    Args:
        source: the id, for messages.
        files: the files of the repository.
        missing: the file that the id names and the repository lacks, or None.

    Raises:
        ValueError: if the repository has several GGUF files, or `missing` is set.
    """
    ggufs = sorted(file for file in files if file.endswith(".gguf") and not _sees(file))
    shown = ", ".join(ggufs[:12]) + (f" and {len(ggufs) - 12} more" if len(ggufs) > 12 else "")
    if missing is not None:
        raise _NotOneError(f"{source!r}: the repository has no {missing}; its GGUF files are: {shown or 'none'}")
    if len(ggufs) > 1:
        name, _, revision = source.partition("@")
        example = f"{name}/{ggufs[0]}" + ("@" + revision if revision else "")
        raise _NotOneError(f"{source!r} has several GGUF files, give the id of one of them, like {example!r}: {shown}")
    return ggufs[0] if ggufs else None


def _sees(file: str) -> bool:
    """Returns whether a GGUF file is the part of a model that sees images."""
    return file.rsplit("/", 1)[-1].startswith("mmproj")


def _whole(folder: Path, file: str | None) -> Path | None:
    """Returns the checkpoint in a snapshot if it has all its weights, else None.

    An earlier download may have fetched other files, or may have been cut short.
    """
    if file is not None:
        return folder / file if (folder / file).exists() else None
    if (folder / "adapter_config.json").exists():
        return folder if (folder / "adapter_model.safetensors").exists() else None
    if (folder / SINGLE).exists():
        return folder if (folder / "config.json").exists() else None
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        shards = set()
    except (ValueError, KeyError, AttributeError):
        return folder  # damaged: loading says how
    if shards and all((folder / shard).exists() for shard in shards):
        return folder
    # A repository of GGUF files, one of which was fetched by name.
    ggufs = [] if shards else [one for one in folder.glob("*.gguf") if not _sees(one.name)]
    return ggufs[0] if len(ggufs) == 1 and not any(folder.glob("*.safetensors")) else None


def _why(error: Exception, errors: Any, name: str) -> str:
    """Returns what went wrong, and what to do about it."""
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        return f"the hub gives it to those who accepted its licence: accept it at {page}, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or shows it only to some: check the id, or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {name} has no such revision"
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return (
            "the hub cannot be reached, or HF_HUB_OFFLINE is set: try again, "
            f"or run `hf download {name}` where there is a network and copy its cache here"
        )
    return f"fetching it failed ({_line(error)}): try again, or give the folder of a copy"


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
