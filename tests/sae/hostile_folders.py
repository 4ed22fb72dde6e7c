"""Folders of each format, good but for one thing that is done to them: functions that write into a folder."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import sae
from tests.sae import torch_pickles

A, Z = 4, 6


def arrays(**changes):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (A, Z), "W_dec": (Z, A), "b_enc": (Z,), "b_dec": (A,), "threshold": (Z,)}
    return {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()} | changes


def gemma_scope_2(folder, config="{}", **changes):
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    tensors = {names.get(name, name): value for name, value in arrays(**changes).items() if value is not None}
    safetensors.numpy.save_file(tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    return folder / "params.safetensors"


def header(folder, change, data=None):
    """A safetensors file whose header is changed."""
    file = gemma_scope_2(folder)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + length])
    text = change(text) if callable(change) else change
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + (content[8 + length :] if data is None else data))


def entry(**facts):
    """Changes what the header says of b_enc."""
    return lambda text: text | {"b_enc": text["b_enc"] | facts}


def length(count):
    def write(folder):
        file = gemma_scope_2(folder)
        file.write_bytes(struct.pack("<Q", count) + file.read_bytes()[8:])

    return write


def cut(make, share):
    def write(folder):
        file = make(folder)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return write


def instead(make, put):
    """Something else in the place of the file."""

    def write(folder):
        file = make(folder)
        file.unlink()
        put(file)

    return write


def sparse(file, size, begin=b""):
    with file.open("wb") as stream:
        stream.write(begin)
        stream.truncate(size)


def npz(folder, **changes):
    np.savez(folder / "params.npz", **{name: value for name, value in arrays(**changes).items() if value is not None})
    return folder / "params.npz"


def npy(shape, dtype="<f4", data=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def members(extra, compress=zipfile.ZIP_STORED):
    """An npz archive with members of one's own among the others, or in their place."""

    def write(folder):
        with zipfile.ZipFile(folder / "params.npz", "w", compress) as archive:
            for name, value in arrays().items():
                if f"{name}.npy" not in extra:
                    stream = io.BytesIO()
                    np.save(stream, value)
                    archive.writestr(f"{name}.npy", stream.getvalue())
            for name, content in extra.items():
                archive.writestr(name, content)

    return write


def twice(folder):
    file = npz(folder)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("b_enc.npy", npy((Z,), data=b"\0" * 4 * Z))


def torch(state=None, text=None, **more):
    """A dictionary of dictionary_learning's, with another state or another pickle."""

    def write(folder):
        facts = {"trainer": {"dict_class": "AutoEncoder", "lm_name": "m", "layer": 0, "submodule_name": "resid"}}
        (folder / "config.json").write_text(json.dumps(facts | more.pop("config", {})))
        good = {"encoder.weight": np.ones((Z, A), np.float32), "decoder.weight": np.ones((A, Z), np.float32)}
        good |= {"bias": np.ones(A, np.float32), "encoder.bias": np.ones(Z, np.float32)}
        if text is not None:
            torch_pickles.write(folder / "ae.pt", text, {})
        else:
            torch_pickles.save(folder / "ae.pt", good | (state or {}), **more)
        return folder / "ae.pt"

    return write


def view(shape, strides, count=24, copies=1):
    """Tensors that are views of one storage."""
    storage = torch_pickles._Storage("0", np.ones(count, np.float32))
    tensors = {f"t{i}": torch_pickles._Tensor(storage, 0, shape, strides) for i in range(copies)}
    return torch(tensors | {"encoder.weight": tensors["t0"]}, storages=[storage])


class Calls:
    def __init__(self, *called):
        self.called = called

    def __reduce__(self):
        return self.called


def archived(names):
    def write(folder):
        torch()(folder)
        with zipfile.ZipFile(folder / "ae.pt", "w") as archive:
            for name in names:
                archive.writestr(name, b"\x80\x02}.")

    return write


def saelens(**config):
    def write(folder):
        safetensors.numpy.save_file(arrays(), folder / "sae_weights.safetensors")
        base = {"architecture": "jumprelu", "metadata": {"sae_lens_version": "6.0.0"}}
        (folder / "cfg.json").write_text(json.dumps(base | config))

    return write


def layers(folder):
    clt = {"W_enc": (2, A, Z), "b_enc": (2, Z), "W_dec": (2, Z, 2, A), "b_dec": (2, A), "threshold": (2, Z)}
    one = sae.CrossLayerTranscoder(**{name: np.ones(shape, np.float32) for name, shape in clt.items()})
    sae.save(one, folder, format="gemma_scope_2_layers")
    return folder


def layer(name):
    return lambda folder: (layers(folder) / "params_layer_1.safetensors").rename(folder / name)


def both(folder):
    gemma_scope_2(folder)
    npz(folder)


def large_directory(folder):
    with zipfile.ZipFile(npz(folder), "a") as archive:
        for i in range(3200):
            archive.writestr(f"{'x' * 40}{i}", b"")


def deep(folder):
    gemma_scope_2(folder, config='{"a": ' + "[" * 500_000 + "]" * 500_000 + "}")
