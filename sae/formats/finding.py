"""Autoencoders below a folder, and what their files say beside the arrays."""

import json
import os
import re
from pathlib import Path

from sae.files import read_json
from sae.formats import files
from sae.released import Released


def autoencoder_folders(root: Path) -> list[Path]:
    """Every autoencoder under a folder, through symbolic links too, sites and sparsities in order; not crosscoders,
    which have no site to evaluate at.

    Args:
        root: the folder.

    Returns:
        Their folders.

    Raises:
        ValueError: when there is none.

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
            f"no autoencoder under {root} but crosscoders, which read several sites and cannot be spliced in at one: "
            + ", ".join(str(folder) for folder in crosscoders)
        )
    if not folders:
        raise ValueError(f"no autoencoder under {root}: train some first")
    return folders


def _outline(path: Path) -> Released:
    """The outline of a main file's folder, of which one layer's file may be a part."""
    format, file = files.find(path)
    return format.outline(format.of_folder(file.parent) or file)


def _autoencoder_files(root: Path) -> list[Path]:
    """Through links too, which Path.rglob does not follow; what several names lead to once, by a name without links."""
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
    """Sorts numbers within names by their value."""
    words = str(path).replace("/", "_").split("_")
    # ASCII alone: "²" is a digit to `isdigit` and none to `float`.
    number = re.compile(r"[0-9]+(\.[0-9]+)?")
    return [(0, float(word), "") if number.fullmatch(word) else (1, 0.0, word) for word in words]


def activation_dtype(folder: Path) -> str:
    """Of the activations that an autoencoder was trained on; float32 where its folder does not say so."""
    file = folder / "info.json"
    training = json.loads(read_json(file).get("training", "{}")) if file.exists() else {}
    return training.get("store", {}).get("activation_dtype", "float32")
