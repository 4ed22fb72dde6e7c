"""Files as torch.save writes them, by Python's own pickle and zipfile, with names of torch's for its objects."""

import collections
import io
import pickle
import sys
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
}


class _Storage:
    def __init__(self, key: str, values: np.ndarray):
        self.key, self.values = key, values


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, _Storage):
            kind = getattr(sys.modules["torch"], _STORAGES[value.values.dtype.name])
            return ("storage", kind, value.key, "cpu", value.values.size)
        return None


def _modules() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))

    def _rebuild_tensor_v2():
        """Only its name is pickled."""

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    return {"torch": torch, "torch._utils": utils}


def save(
    file: Path,
    state: Mapping[str, object],
    *,
    transposed: tuple[str, ...] = (),
    compress: bool = False,
    storages: Sequence[_Storage] = (),
) -> None:
    """Writes a state dict.

    Args:
        file: where.
        state: arrays become tensors, other values stay; an object's `__reduce__` is pickled as it is.
        transposed: names of tensors that are views of a storage in the other order, as `weight.T` is in torch.
        compress: the members, which torch never does.
        storages: of tensors that are in the state already.
    """
    storages, tensors = list(storages), collections.OrderedDict()
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            stored = (value.T if name in transposed else value).copy(order="C")
            storage = _Storage(str(len(storages)), stored.reshape(-1))
            storages.append(storage)
            strides = tuple(stride // stored.itemsize for stride in stored.strides)
            value = _Tensor(storage, 0, value.shape, strides[::-1] if name in transposed else strides)
        tensors[name] = value
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update(_modules())
    try:
        text = io.BytesIO()
        _Pickler(text, protocol=2).dump(tensors)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    write(file, text.getvalue(), {storage.key: storage.values.tobytes() for storage in storages}, compress)


def write(file: Path, text: bytes, storages: Mapping[str, bytes], compress: bool = False) -> None:
    """Writes an archive with a pickle and the bytes of storages."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/version", "3\n")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
