"""Finds autoencoders below a folder, and reads what their files say beside the arrays."""

import json
import os
import re
from pathlib import Path

from sae.files import read_json
from sae.formats import files
from sae.released import Released


def autoencoder_folders(root: Path) -> list[Path]:
    """Returns the folders of all autoencoders under a folder, also through symbolic links, in the order of sites and
    sparsities. Crosscoders, which no single site can evaluate, are left out.

    Args:
        root: the folder.

    Raises:
        ValueError: for a folder without autoencoders.

    Example:
        >>> import pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> from sae.autoencoder import JumpReLU
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for Z in (16, 2):
        ...     one = JumpReLU(jnp.ones((4, Z)), jnp.ones(Z), jnp.ones((Z, 4)), jnp.ones(4), jnp.ones(Z))
        ...     files.save(one, root / f"width_{Z}")
        >>> [folder.name for folder in autoencoder_folders(root)]
        ['width_2', 'width_16']
    """
    paths = sorted(_autoencoder_files(root), key=lambda path: _natural(path.parent))
    crosscoders = [path.parent for path in paths if _outline(path).several_sites()]
    folders = list(dict.fromkeys(path.parent for path in paths if path.parent not in crosscoders))
    if not folders and crosscoders:
        raise ValueError(
            f"{root} has only crosscoders, which read several sites and cannot be spliced in at one: "
            + ", ".join(str(folder) for folder in crosscoders)
        )
    if not folders:
        raise ValueError(f"no autoencoder under {root}: train some first")
    return folders


def _outline(path: Path) -> Released:
    """Returns the outline of the autoencoder in a main file's folder; the main file may be one of several layers'."""
    format, file = files.find(path)
    return format.outline(format.of_folder(file.parent) or file)


def _autoencoder_files(root: Path) -> list[Path]:
    """Returns the main files under a folder, also through links, which Path.rglob does not follow. A file that several
    names lead to comes once, under a name without links."""
    paths: dict[str, Path] = {}
    main_files = set(files.main_files())
    for follow in (False, True):
        seen = set()
        for folder, subfolders, names in os.walk(root, followlinks=follow):
            if (real := os.path.realpath(folder)) in seen:  # a link may lead back to where it is
                subfolders.clear()
                continue
            seen.add(real)
            for name in main_files.intersection(names):
                paths.setdefault(os.path.realpath(Path(folder, name)), Path(folder, name))
    return list(paths.values())


def _natural(path: Path) -> list:
    """Returns a sorting key by which numbers within names have the order of their values."""
    words = str(path).replace("/", "_").split("_")
    # ASCII alone: "²" is a digit for `isdigit` and not for `float`.
    number = re.compile(r"[0-9]+(\.[0-9]+)?")
    return [(0, float(word), "") if number.fullmatch(word) else (1, 0.0, word) for word in words]


def activation_dtype(folder: Path) -> str:
    """Returns the dtype of the activations that an autoencoder was trained on; float32 where its folder has no
    record."""
    file = folder / "info.json"
    training = json.loads(read_json(file).get("training", "{}")) if file.exists() else {}
    return training.get("store", {}).get("activation_dtype", "float32")
