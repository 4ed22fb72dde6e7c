"""Reads the tensors of a file that torch.save wrote, without torch and without running code of the file.

Such a file is a zip archive with a pickle in it, which can run code when it is unpickled. Here its opcodes are
interpreted one by one: containers, texts and numbers are made, and the only functions that it may call are those that
rebuild tensors. Any other opcode or call is an error that names it. Limits on sizes hold before memory is allocated.
"""

import collections
import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from sae.files import ARCHIVE_ERRORS, check_archive

_PICKLE_BYTES = 1 << 18  # the most bytes of a pickle: it has tensors' places and names, and no numbers
_SMALL = 64  # `headers` also reads storages of up to this many numbers, such as that of k
_REPEATED = 4  # the factor by which all tensors may be larger than the file, as tensors may share a storage
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MARK = object()


class _Name:
    """A function's name in a pickle: module and name in one text."""

    def __init__(self, text: str):
        self.text = text


def read(file: Path) -> Any:
    """Returns the value in a file: dicts, lists, texts, numbers, and numpy arrays in the places of tensors.

    Args:
        file: the path.

    Raises:
        ValueError: for a file that torch.save did not write, a damaged file, or one that calls other functions.
    """
    return _read(file, shapes_alone=False)


def headers(file: Path) -> Any:
    """Returns the value in a file, with `jax.ShapeDtypeStruct`s in the places of all but the smallest tensors, whose
    numbers are not read.

    Raises:
        ValueError: as `read` does.
    """
    return _read(file, shapes_alone=True)


def state(file: Path, ranks: Mapping[str, int], shapes_alone: bool = False) -> dict[str, Any]:
    """Returns the state dict of a file.

    Args:
        file: the path.
        ranks: {name: number of axes} of the tensors that the file has to have.
        shapes_alone: whether to read only shapes, as `headers` does.

    Raises:
        ValueError: as `read` does, and for a file without a state dict or without one of the tensors.
    """
    tensors = _read(file, shapes_alone)
    if not isinstance(tensors, dict):
        raise ValueError(f"{file} holds no state dict")
    for name, rank in ranks.items():
        if len(getattr(tensors.get(name), "shape", ())) != rank:
            raise ValueError(f"{file}: it has no tensor {name}; it holds {', '.join(map(str, tensors))}"[:300])
    return tensors


class _Storages:
    """The storages of an archive, which its pickle names."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int, shapes_alone: bool):
        self.archive, self.folder, self.size, self.shapes_alone = archive, folder, size, shapes_alone
        self.left = _REPEATED * size

    def named(self, identity: Any) -> "_Numbers":
        """Returns the storage that ("storage", type, key, device, count) names."""
        kind, name, key, _, count = identity
        dtype = isinstance(name, _Name) and name.text.startswith("torch.") and _STORAGES.get(name.text.split(".")[-1])
        if kind != "storage" or not dtype or not isinstance(key, str):
            raise ValueError(f"its pickle names {identity!r:.80} as the place of numbers")
        member = self.archive.getinfo(f"{self.folder}data/{key}")
        if member.file_size > self.size or member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its member {member.filename} is compressed, which torch.save does not do")
        if type(count) is not int or member.file_size != count * dtype.itemsize:
            has = member.file_size // dtype.itemsize
            raise ValueError(f"its storage {key} has {has:,} numbers, and its pickle says {count!r:.40}")
        return _Numbers(self, member, dtype, count)

    def take(self, bytes_: int) -> None:
        """Counts the bytes of a tensor. Raises ValueError beyond the limit."""
        self.left -= bytes_
        if self.left < 0:
            raise ValueError(f"its tensors would be more than {_REPEATED} times as large as the file")


class _Numbers:
    """A storage: the numbers of one or more tensors."""

    def __init__(self, storages: _Storages, member: zipfile.ZipInfo, dtype: np.dtype, count: int):
        self.storages, self.member, self.dtype, self.count = storages, member, dtype, count

    def read(self) -> np.ndarray:
        return np.frombuffer(self.storages.archive.read(self.member), self.dtype)


def _read(file: Path, shapes_alone: bool) -> Any:
    try:
        check_archive(file)
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it holds no data.pkl, as archives of torch.save do")
            if archive.getinfo(pickles[0]).file_size > _PICKLE_BYTES:
                raise ValueError(f"its data.pkl is longer than {_PICKLE_BYTES:,} bytes")
            folder = pickles[0].removesuffix("data.pkl")
            return _walk(archive.read(pickles[0]), _Storages(archive, folder, file.stat().st_size, shapes_alone).named)
    except (*ARCHIVE_ERRORS, KeyError, IndexError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{file} is no archive of torch.save's, or damaged: {error!r}"[:400]) from None
    except ValueError as error:
        raise ValueError(f"{file} cannot be read without running what is in it, or is damaged: {error}"[:600]) from None


def _walk(text: bytes, storage: Callable[[Any], "_Numbers"]) -> Any:
    """Returns the value of a pickle; `storage` returns the storage of a name in it."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = next((i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK), None)
        if at is None:
            raise ValueError("its pickle lacks a mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(io.BytesIO(text)):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            pass
        elif name == "STOP":
            return stack.pop()
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "LIST", "DICT"):
            items = since_mark()
            stack.append({"TUPLE": tuple, "LIST": list, "DICT": _pairs}[name](items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name == "APPEND":
            value = stack.pop()
            _container(stack[-1], list).append(value)
        elif name == "APPENDS":
            items = since_mark()
            _container(stack[-1], list).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _container(stack[-1], dict).update(_pairs([key, value]))
        elif name == "SETITEMS":
            items = since_mark()
            _container(stack[-1], dict).update(_pairs(items))
        elif name == "GLOBAL":
            # pyrefly: ignore[missing-attribute]  not None here
            stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_call(called, arguments))
        elif name == "BUILD":  # attributes of an ordered dict: a state dict's versions
            state = stack.pop()
            if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                raise ValueError("it sets attributes of an object")
        else:
            raise ValueError(f"its pickle has the opcode {name}")
    raise ValueError("its pickle has no end")


_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
}


def _container(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it takes a {type(value).__name__} for a {getattr(kind, '__name__', 'tensor')}")
    return value


def _pairs(items: list[Any]) -> dict:
    # The hash of a deeply nested key would end the process.
    if wrong := [key for key in items[::2] if not isinstance(key, str | int)]:
        raise ValueError(f"its pickle has a {type(wrong[0]).__name__} for a key")
    return dict(zip(items[::2], items[1::2], strict=True))


def _call(called: Any, arguments: tuple) -> Any:
    """Returns the result of a call that a pickle may make: a tensor, a parameter, or an ordered dict."""
    text = called.text if isinstance(called, _Name) else type(called).__name__
    if text == "torch._utils._rebuild_tensor_v2":
        numbers, offset, shape, strides = arguments[:4]
        return _tensor(numbers, offset, tuple(shape), tuple(strides))
    if text == "torch._utils._rebuild_parameter":
        return _container(arguments[0], np.ndarray | jax.ShapeDtypeStruct)
    if text == "collections.OrderedDict":
        if arguments != ():
            raise ValueError("its pickle makes an ordered dict of arguments")
        return collections.OrderedDict()
    raise ValueError(f"its pickle calls {text}")


def _tensor(
    numbers: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray | jax.ShapeDtypeStruct:
    whole = (offset, *shape, *strides)
    if not isinstance(numbers, _Numbers) or len(shape) != len(strides):
        raise ValueError("its pickle makes a tensor of no numbers")
    if any(type(n) is not int or n < 0 for n in whole):
        raise ValueError(f"its pickle makes a tensor with the shape {shape} and the strides {strides}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    if last >= numbers.count:
        raise ValueError(f"a tensor of the shape {shape} ends beyond its {numbers.count:,} numbers")
    if any(stride == 0 and size > 1 for size, stride in zip(shape, strides, strict=True)):
        raise ValueError(f"a tensor of the shape {shape} repeats its numbers")  # it could be of any size
    numbers.storages.take(math.prod(shape) * numbers.dtype.itemsize)
    if numbers.storages.shapes_alone and numbers.count > _SMALL:
        return jax.ShapeDtypeStruct(shape, numbers.dtype)
    bytes_ = tuple(stride * numbers.dtype.itemsize for stride in strides)
    view = np.lib.stride_tricks.as_strided(numbers.read()[offset:], shape, bytes_, writeable=False)
    return view.copy()
