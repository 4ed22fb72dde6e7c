"""The base of file formats and their registry: one file in this folder adds one.

A format names the file by which it is recognised, reads that file, and says what it cannot hold. The rest is the same
for all formats, and is here: values are checked before a file is written and after it is read, the files of a folder
are replaced together, and `info.json` and `largest.npz` are beside them.
"""

import abc
import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sae.autoencoder import Info
from sae.files import NEW, current, replace_together
from sae.formats import configs, largest, mapped
from sae.registry import Registry
from sae.released import Released
from sae.sharding import latent_sharding

INFO = "info.json"
Files = dict[str, bytes | Callable[[BinaryIO], None] | None]


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file.

    Attributes:
        form: the released form.
        values: float32 arrays by the form's names.
        numbers: the form's plain numbers, such as k.
        info: the model and the sites that the file and its path name; an `info.json` overrides it.
    """

    form: Any
    values: Mapping[str, Any]
    numbers: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    info: Info | None = None

    @classmethod
    def of(cls, autoencoder: Released) -> "Contents":
        """Returns the contents for an autoencoder, with its whole arrays on this process, also where their parts are on
        the devices of several processes."""
        values = {name: _whole(name, array) for name, array in autoencoder.arrays().items()}
        numbers = {name: getattr(autoencoder, name) for name in autoencoder.numbers}
        return cls(type(autoencoder), values, numbers, autoencoder.info)

    @classmethod
    def of_sizes(
        cls,
        form: Any,
        sizes: Mapping[str, int],
        optional: Collection[str] = (),
        numbers: Mapping[str, int | float] | None = None,
        info: Info | None = None,
    ) -> "Contents":
        """Returns contents with `jax.ShapeDtypeStruct`s in the places of arrays.

        Args:
            form: the released form.
            sizes: the sizes of its axes; A' is A by default.
            optional: the names of optional arrays that the file has.
            numbers: the form's plain numbers.
            info: the model and the sites that the file and its path name.
        """
        sizes = {"A'": sizes["A"], **sizes}
        names = [name for name in form.axes if name not in form.optional() or name in optional]
        shapes = {name: tuple(sizes[axis] for axis in form.axes[name]) for name in names}
        values = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
        return cls(form, values, numbers or {}, info)

    def check(self) -> None:
        """Raises ValueError, naming the array, for contents that make no autoencoder. It checks all that is saved or
        loaded."""
        for name, value in self.values.items():
            inexact = np.issubdtype(value.dtype, np.inexact)
            bad = sum(int((~np.isfinite(block)).sum()) for block in mapped.blocks(value)) if inexact else 0
            if value.dtype != np.float32 or bad:
                raise ValueError(
                    f"{name} must be finite float32, got {value.dtype} with {bad} values that are not finite"
                )
            if 0 in value.shape:
                raise ValueError(f"{name} is empty, of shape {value.shape}")
            if value.ndim != (rank := len(self.form.axes[name])):
                advice = f": give the {len(value)} stacked ones one at a time" if value.ndim == rank + 1 else ""
                raise ValueError(f"{name} must have {rank} axes, got shape {value.shape}{advice}")
        self.form.check_arrays(self.values)
        self.form(**self.values, **self.numbers)


class Format(abc.ABC):
    """A file format of autoencoders.

    Attributes:
        title: the format in words, for messages.
        main: the name of the file in a folder by which the format is recognised; None where a folder has files of
            several autoencoders, of which one has to be named.
        beside: patterns of the names of its other files, which are removed when another autoencoder takes the folder.
        written: whether it can be written; then `lacks` and `files` are overridden.
        default: its place among the formats that `sae.save` chooses by itself, 0 before 1; None for a format that has
            to be named.
    """

    title: ClassVar[str]
    main: ClassVar[str | None]
    beside: ClassVar[tuple[str, ...]] = ()
    written: ClassVar[bool] = True
    default: ClassVar[int | None] = None

    @abc.abstractmethod
    def read(self, file: Path) -> Contents:
        """Reads a file.

        Raises:
            ValueError: for a damaged file, and for an autoencoder that no released form can hold.
        """

    def lacks(self, autoencoder: Released) -> str | None:
        """Returns the part of an autoencoder that the format cannot hold, in words; None where it can hold all."""
        del autoencoder
        return "any autoencoder: it is only read"

    def files(self, contents: Contents) -> Files:
        """Returns the files of a folder with the contents, as {name: bytes, or a function that writes them}."""
        raise NotImplementedError(f"{self.title} is only read")

    def shapes(self, file: Path) -> Contents | None:
        """Reads the headers of a file, with `jax.ShapeDtypeStruct`s in the places of arrays; returns None where headers
        do not tell. It may miss damage that `read` names."""
        del file
        return None

    def of_folder(self, folder: Path) -> Path | None:
        """Returns the main file in a folder, for `load`; None where it is missing. It may be a pattern of several
        files' names."""
        if self.main is None:
            return None
        file = current(folder, self.main)
        return folder / self.main if file is not None and file.exists() else None

    def parts(self, folder: Path) -> list[Path]:
        """Returns the files in a folder that are an autoencoder each, for a format with several in a folder."""
        del folder
        return []

    def names_in(self, folder: Path) -> list[str]:
        """Returns the names of this format's files in a folder, also of files that are not in their places yet."""
        if self.main is None or self.of_folder(folder) is None:
            return []
        names = {path.name.removesuffix(NEW) for path in folder.iterdir()}
        return [self.main, *(name for name in names if any(re.fullmatch(pattern, name) for pattern in self.beside))]

    def takes(self, file: Path) -> bool:
        """Returns whether a file that the user names is of this format."""
        return file.name == self.main

    def load(self, file: Path, mesh: jax.sharding.Mesh | None = None) -> Released:
        """Returns the autoencoder of a main file.

        Args:
            file: the main file.
            mesh: where the latents go, over all axes but `data`; by default everything goes to the default device.

        Raises:
            ValueError: for a missing or damaged file, which it names.
        """
        self.check_exists(file)
        try:
            contents = self.read(file)
            contents.check()
        except ValueError as error:  # numpy's errors for arrays that do not fit name no file
            raise (error if str(file.parent) in str(error) else ValueError(f"{file}: {error}")) from None
        shardings: dict[str, Any] = dict.fromkeys(contents.values)
        if mesh is not None:
            axes, (*_, width) = contents.form.axes, contents.values["W_enc"].shape
            shardings = {name: latent_sharding(mesh, axes[name], width) for name in contents.values}
        autoencoder = contents.form(
            **{name: mapped.place(value, shardings[name]) for name, value in contents.values.items()},
            **contents.numbers,
            info=read_info(file.parent, contents.info),
        )
        _check_info(file.parent, autoencoder)
        return dataclasses.replace(autoencoder, largest=largest.read(file.parent, autoencoder.width))

    def check_exists(self, file: Path) -> None:
        """Raises ValueError for a main file that is missing."""
        if not (current(file.parent, file.name) or file).exists():
            raise ValueError(f"no autoencoder at {file.parent}: {file.name} is missing")

    def outline(self, file: Path) -> Released:
        """Returns the autoencoder of a main file with `jax.ShapeDtypeStruct`s in the places of arrays. The arrays are
        read only where headers do not tell the shapes."""
        self.check_exists(file)
        try:
            if (contents := self.shapes(file)) is not None:
                return contents.form(**contents.values, **contents.numbers, info=read_info(file.parent, contents.info))
        except (TypeError, ValueError) as error:
            raise (error if str(file.parent) in str(error) else ValueError(f"{file}: {error}")) from None
        outline = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)  # noqa: E731
        return dataclasses.replace(jax.tree.map(outline, self.load(file)), largest=None)

    def save(self, autoencoder: Released, folder: Path) -> None:
        """Writes the files, and `info.json` where the autoencoder has an `info`, in the place of another autoencoder; a
        crash leaves all old files or all new ones. Where several processes hold parts of the arrays, all have to call
        it, and the first writes.

        Raises:
            ValueError: for an autoencoder that the format cannot hold, or that `load` would refuse; the folder stays
                unchanged.
        """
        if what := self.lacks(autoencoder):
            able = [name for name, other in formats.items() if other().lacks(autoencoder) is None]
            hint = f". Formats that can hold this autoencoder: {', '.join(able)}" if able else ""
            raise ValueError(f"{self.title} has no place for {what}{hint}")
        others = _removed(folder)
        contents = Contents.of(autoencoder)
        try:
            contents.check()
        except ValueError as error:
            raise ValueError(
                f"this autoencoder cannot be saved, as nothing could load it: {error}. {folder} is unchanged"
            ) from None
        if jax.process_index() != 0:
            return
        info = autoencoder.info
        text = None if info is None else (json.dumps(dataclasses.asdict(info), indent=2) + "\n").encode()
        files = others | self.files(contents) | {INFO: text}
        replace_together(folder, files | largest.contents(autoencoder.largest, folder))


def _check_info(folder: Path, autoencoder: Released) -> None:
    """Raises ValueError where `info` records activations of another length than the arrays take."""
    info, dim = autoencoder.info, autoencoder.dims[0]
    if info is not None and info.shape is not None and math.prod(info.shape) != dim:
        raise ValueError(
            f"{folder / INFO}: a token's activation at {info.site} has the shape {list(info.shape)}, and the "
            f"autoencoder takes {dim:,} numbers: one of the two is of another autoencoder"
        )


formats: Registry[type[Format]] = Registry("format")


def _removed(folder: Path) -> Files:
    """Returns the files of all formats in a folder, to remove: `load` would see them beside a new autoencoder's."""
    removed: Files = {}
    for format in (kind() for kind in formats.values()):
        if format.written:
            removed |= {name: None for name in format.names_in(folder)}
        elif (file := format.of_folder(folder)) is not None:
            raise ValueError(
                f"{folder} has an autoencoder in {format.title}, {file.name}, which this version reads and does not "
                "remove: choose another folder"
            )
    return removed


def read_info(folder: Path, otherwise: Info | None = None) -> Info | None:
    """Returns the `Info` in the `info.json` of an autoencoder's folder.

    Args:
        folder: the autoencoder's folder.
        otherwise: the result where the file is missing.

    Raises:
        ValueError: for a damaged file, which it names.
    """
    file = folder / INFO
    if (facts := configs.read(file)) is None:
        return otherwise
    try:
        return Info.of_json(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def _whole(name: str, array: jax.Array) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    if not jnp.issubdtype(getattr(array, "dtype", object), jnp.floating):
        raise ValueError(f"{name} must be an array of floating-point numbers, got {array!r:.80}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused later
        return np.asarray(array, np.float32)
