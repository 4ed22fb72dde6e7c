"""Checkpoints of the Hugging Face hub: found in its cache on this machine, else fetched to it (extra `hub`)."""

import json
import re
from pathlib import Path

from gemma.checkpoints.huggingface import INDEX, SINGLE

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
# What this package does not read is not fetched; pickles least of all.
_NOT_WANTED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*")


def is_id(source: str) -> bool:
    """Whether this can be an id of the hub: `owner/name`, or `owner/name@revision`."""
    return _ID.fullmatch(source) is not None


def snapshot(source: str) -> Path:
    """The folder of a checkpoint in the hub's cache (`HF_HOME`, `HF_HUB_CACHE`), fetched where it is not there whole.

    Raises:
      ValueError: without the package `huggingface_hub`; when the hub has no such model, asks for its licence to be
        accepted, or cannot be reached.
    """
    name, _, revision = source.partition("@")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ValueError(
            f"{source!r} is no folder here, and looking for it on the hub needs huggingface_hub: "
            "pip install 'mishax-lite[hub]'"
        ) from None
    wanted = {"repo_id": name, "revision": revision or None, "ignore_patterns": list(_NOT_WANTED)}
    try:
        folder = Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        if _whole(folder):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise ValueError(f"{source!r} is no folder here and no id of the hub: {_line(error)}") from error
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:  # of the hub's, of its http library, of the disk
        raise ValueError(f"{source!r} is not in the hub's cache, and {_why(error, errors, name)}") from error


def _whole(folder: Path) -> bool:
    """Whether a snapshot has all its weights: an earlier download may have been of other files, or cut short."""
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        shards = {SINGLE} if (folder / "config.json").exists() else set()
    except (ValueError, KeyError, AttributeError):
        return True  # damaged: loading says how
    return bool(shards) and all((folder / shard).exists() for shard in shards)


def _why(error: Exception, errors: object, name: str) -> str:
    """What went wrong, and what to do about it."""
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
