"""What a file format is, and the registry of them: one file in this folder adds one.

A format says by which file it is recognised, reads that file, and says what it has no place for. Everything else, the
same for all, is here: values are checked before anything is written and after anything is read, the files of a folder
are replaced together, and `info.json` and `largest.npz` lie beside them.
"""

import abc
import dataclasses
import json
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
from sae.formats import configs, largest
from sae.registry import Registry
from sae.released import Released

INFO = "info.json"
Files = dict[str, bytes | Callable[[BinaryIO], None] | None]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        form: the released form.
        values: float32 arrays by the form's names.
        numbers: the form's plain numbers, such as k.
        info: what the file and its path say; `info.json` has the last word where there is one.
    """

    form: Any
    values: Mapping[str, Any]
    numbers: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    info: Info | None = None

    @classmethod
    def of(cls, autoencoder: Released) -> "Contents":
        """Of an autoencoder, its arrays on this process, also where their parts are on the devices of several."""
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
        """The same with `jax.ShapeDtypeStruct`s in the places of arrays.

        Args:
            form: the released form.
            sizes: of its axes; A' is as long as A where it is not named.
            optional: those of its arrays that may be None and are there.
            numbers: the form's plain numbers.
            info: what the file and its path say.
        """
        sizes = {"A'": sizes["A"], **sizes}
        names = [name for name in form.axes if name not in form.optional() or name in optional]
        shapes = {name: tuple(sizes[axis] for axis in form.axes[name]) for name in names}
        values = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
        return cls(form, values, numbers or {}, info)

    def check(self) -> None:
        """Raises ValueError, naming the array, unless an autoencoder can be made of it; what is saved and what is
        loaded pass here."""
        for name, value in self.values.items():
            if value.dtype != np.float32 or not np.isfinite(value).all():
                bad = int((~np.isfinite(value)).sum()) if np.issubdtype(value.dtype, np.inexact) else 0
                raise ValueError(
                    f"{name} must be finite float32, got {value.dtype} with {bad} values that are not finite"
                )
            if 0 in value.shape:
                raise ValueError(f"{name} is empty, of shape {value.shape}")
            if value.ndim != (rank := len(self.form.axes[name])):
                advice = f"; of {len(value)} stacked ones, each goes by itself" if value.ndim == rank + 1 else ""
                raise ValueError(f"{name} must have {rank} axes, got shape {value.shape}{advice}")
        self.form.check_arrays(self.values)
        self.form(**self.values, **self.numbers)


class Format(abc.ABC):
    """A file format of autoencoders.

    Attributes:
        title: in words, for messages.
        main: the name of the file in a folder by which the format is recognised; None where a folder has files of
            several autoencoders, of which one has to be named.
        beside: patterns of the names of its other files, which go when another autoencoder takes the folder.
        written: whether it can be written; `lacks` and `files` are then overridden.
        default: its place among the formats that `sae.save` takes by itself, 0 before 1; None for one that has to be
            named.
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
            ValueError: for a damaged file, and for what the format can hold and there is no form for.
        """

    def lacks(self, autoencoder: Released) -> str | None:
        """What of an autoencoder the format has no place for, in words; None where it can hold it whole."""
        del autoencoder
        return "any autoencoder: it is only read"

    def files(self, contents: Contents) -> Files:
        """The files of a folder that hold the contents: by name the bytes, or a function that writes them."""
        raise NotImplementedError(f"{self.title} is only read")

    def shapes(self, file: Path) -> Contents | None:
        """As `read`, with `jax.ShapeDtypeStruct`s in the places of arrays, from headers alone; None where those do not
        tell. It may miss damages that `read` names."""
        del file
        return None

    def of_folder(self, folder: Path) -> Path | None:
        """The main file in a folder; None where there is none. What is returned goes to `load`, and may be a pattern of
        several files' names."""
        if self.main is None:
            return None
        file = current(folder, self.main)
        return folder / self.main if file is not None and file.exists() else None

    def parts(self, folder: Path) -> list[Path]:
        """The files in a folder that are an autoencoder each, where a format has several in one."""
        del folder
        return []

    def own(self, folder: Path) -> list[str]:
        """The names of this format's files in a folder, those that are not in their places yet among them."""
        if self.main is None or self.of_folder(folder) is None:
            return []
        names = {path.name.removesuffix(NEW) for path in folder.iterdir()}
        return [self.main, *(name for name in names if any(re.fullmatch(pattern, name) for pattern in self.beside))]

    def takes(self, file: Path) -> bool:
        """Whether a file that was named is of this format."""
        return file.name == self.main

    def load(self, file: Path) -> Released:
        """The autoencoder of a main file.

        Raises:
            ValueError: naming the file, when it is missing or damaged.
        """
        self.check_exists(file)
        try:
            contents = self.read(file)
            contents.check()
        except ValueError as error:  # of arrays that do not fit each other, numpy says no file
            raise (error if str(file.parent) in str(error) else ValueError(f"{file}: {error}")) from None
        autoencoder = contents.form(
            **{name: jnp.asarray(value) for name, value in contents.values.items()},
            **contents.numbers,
            info=read_info(file.parent, contents.info),
        )
        return dataclasses.replace(autoencoder, largest=largest.read(file.parent, autoencoder.width))

    def check_exists(self, file: Path) -> None:
        """Raises ValueError for a main file that is missing."""
        if not (current(file.parent, file.name) or file).exists():
            raise ValueError(f"no autoencoder at {file.parent}: there is no {file.name}")

    def outline(self, file: Path) -> Released:
        """As `load`, with `jax.ShapeDtypeStruct`s in the place of arrays. A format whose headers tell does not read
        the arrays."""
        self.check_exists(file)
        try:
            if (contents := self.shapes(file)) is not None:
                return contents.form(**contents.values, **contents.numbers, info=read_info(file.parent, contents.info))
        except (TypeError, ValueError) as error:
            raise (error if str(file.parent) in str(error) else ValueError(f"{file}: {error}")) from None
        outline = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)  # noqa: E731
        return dataclasses.replace(jax.tree.map(outline, self.load(file)), largest=None)

    def save(self, autoencoder: Released, folder: Path) -> None:
        """Writes the files, and `info.json` where something is known, in the place of another autoencoder's; a crash
        leaves what was there before, or all of the new. Of several processes that hold parts of the arrays all have to
        call it, and the first writes.

        Raises:
            ValueError: for what the format has no place for, or what `load` would refuse; the folder is left as it is.
        """
        if what := self.lacks(autoencoder):
            able = [name for name, other in formats.items() if other().lacks(autoencoder) is None]
            hint = f". The formats that have are {', '.join(able)}" if able else ""
            raise ValueError(f"{self.title} has no place for {what}{hint}")
        others = _removed(folder)
        contents = Contents.of(autoencoder)
        try:
            contents.check()
        except ValueError as error:
            raise ValueError(
                f"this cannot be saved, as nothing could load it: {error}. {folder} is as it was"
            ) from None
        if jax.process_index() != 0:
            return
        info = autoencoder.info
        text = None if info is None else (json.dumps(dataclasses.asdict(info), indent=2) + "\n").encode()
        files = others | self.files(contents) | {INFO: text}
        replace_together(folder, files | largest.contents(autoencoder.largest, folder))


formats: Registry[type[Format]] = Registry("format")


def _removed(folder: Path) -> Files:
    """The files of every format in a folder, which `load` would find beside a new autoencoder's, or parts of."""
    removed: Files = {}
    for format in (kind() for kind in formats.values()):
        if format.written:
            removed |= {name: None for name in format.own(folder)}
        elif (file := format.of_folder(folder)) is not None:
            raise ValueError(
                f"{folder} has an autoencoder in {format.title}, {file.name}, which is only read here, and not "
                "removed: choose another folder"
            )
    return removed


def read_info(folder: Path, otherwise: Info | None = None) -> Info | None:
    """Reads what `info.json` in an autoencoder's folder says of it.

    Args:
        folder: the autoencoder's.
        otherwise: what is known without that file.

    Raises:
        ValueError: for a damaged file, by its name.
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
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, and refused as that
        return np.asarray(array, np.float32)
