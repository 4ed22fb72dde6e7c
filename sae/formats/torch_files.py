"""The tensors of a file that torch.save wrote, without torch and without running anything.

Such a file is a zip archive with a pickle in it, which can run code when it is unpickled. Here its opcodes are walked
by hand: containers, texts and numbers are made, and of the names that it may call only those that rebuild tensors have
a meaning. Anything else ends the reading, by name. Limits on sizes hold before anything is allocated.
"""

import collections
import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sae.files import ARCHIVE_ERRORS

_PICKLE_BYTES = 1 << 24  # of tensors' places and names; the numbers are in members of their own
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
    """A name that a pickle calls: module and name, in one text."""

    def __init__(self, text: str):
        self.text = text


def read(file: Path) -> Any:
    """What a file holds: dicts, lists, texts, numbers and numpy arrays in the places of tensors.

    Args:
        file: a path.

    Raises:
        ValueError: for a file that is no archive of torch.save's, is damaged, or calls for anything but tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it holds no data.pkl, as archives of torch.save do")
            if archive.getinfo(pickles[0]).file_size > _PICKLE_BYTES:
                raise ValueError(f"its data.pkl is longer than {_PICKLE_BYTES:,} bytes")
            folder = pickles[0].removesuffix("data.pkl")
            size = file.stat().st_size

            def storage(key: str, dtype: np.dtype) -> np.ndarray:
                member = archive.getinfo(f"{folder}data/{key}")
                if member.file_size > size or member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"its member {member.filename} is compressed, which torch.save does not do")
                return np.frombuffer(archive.read(member), dtype)

            return _walk(archive.read(pickles[0]), storage)
    except (*ARCHIVE_ERRORS, KeyError, IndexError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{file} is no archive of torch.save's, or damaged: {error!r}"[:400]) from None
    except ValueError as error:
        raise ValueError(f"{file} cannot be read without running what is in it, or is damaged: {error}") from None


def _walk(text: bytes, storage: Callable[[str, np.dtype], np.ndarray]) -> Any:
    """The value of a pickle."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        if not any(value is _MARK for value in stack):
            raise ValueError("its pickle lacks a mark")
        at = len(stack) - 1 - next(i for i, value in enumerate(reversed(stack)) if value is _MARK)
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
            _container(stack[-1], dict)[key] = value
        elif name == "SETITEMS":
            items = since_mark()
            _container(stack[-1], dict).update(_pairs(items))
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), storage))
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


def _container(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it adds to a {type(value).__name__} as to a {kind.__name__}")
    return value


def _pairs(items: list[Any]) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))


def _storage(identity: Any, storage: Callable[[str, np.dtype], np.ndarray]) -> np.ndarray:
    """The numbers that ("storage", type, key, device, count) names."""
    kind, name, key, _, count = identity
    dtype = isinstance(name, _Name) and name.text.startswith("torch.") and _STORAGES.get(name.text.split(".")[-1])
    if kind != "storage" or not dtype or not isinstance(key, str):
        raise ValueError(f"its pickle names {identity!r:.80} as the place of numbers")
    numbers = storage(key, dtype)
    if len(numbers) != count:
        raise ValueError(f"its storage {key} has {len(numbers):,} numbers, {count:,} are named")
    return numbers


def _call(called: Any, arguments: tuple) -> Any:
    """Of what a pickle may call: tensors, parameters, and ordered dicts."""
    text = called.text if isinstance(called, _Name) else type(called).__name__
    if text == "torch._utils._rebuild_tensor_v2":
        numbers, offset, shape, strides = arguments[:4]
        return _tensor(numbers, offset, tuple(shape), tuple(strides))
    if text == "torch._utils._rebuild_parameter":
        return _container(arguments[0], np.ndarray)
    if text == "collections.OrderedDict":
        return collections.OrderedDict(*arguments)
    raise ValueError(f"its pickle calls {text}")


def _tensor(numbers: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    whole = (offset, *shape, *strides)
    if not isinstance(numbers, np.ndarray) or len(shape) != len(strides):
        raise ValueError("its pickle makes a tensor of no numbers")
    if any(type(n) is not int or n < 0 for n in whole):
        raise ValueError(f"its pickle makes a tensor with the shape {shape} and the strides {strides}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    if last >= len(numbers):
        raise ValueError(f"a tensor of the shape {shape} ends beyond its {len(numbers):,} numbers")
    if any(stride == 0 and size > 1 for size, stride in zip(shape, strides, strict=True)):
        raise ValueError(f"a tensor of the shape {shape} repeats its numbers")  # it would be as large as it says
    bytes_ = tuple(stride * numbers.itemsize for stride in strides)
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_, writeable=False)
    return view.copy()
