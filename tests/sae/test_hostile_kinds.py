"""Damaged and hostile files of every kind are refused by name, by loading and by outlines, quickly and cheaply."""

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

import sae
from sae.formats.files import outline
from tests.sae.hostile_folders import (
    A,
    Calls,
    Z,
    archived,
    both,
    cut,
    deep,
    entry,
    gemma_scope_2,
    header,
    instead,
    large_directory,
    layer,
    layers,
    length,
    members,
    npy,
    npz,
    saelens,
    sparse,
    torch,
    twice,
    view,
)

SECONDS, BYTES = 1.0, 64 << 20

NAN, INFINITE = np.full(Z, np.nan, np.float32), np.full(Z, np.inf, np.float32)
MARKS = b"\x80\x02" + b"N" * 10_000 + b"(t" * 10_000 + b"."
TUPLES = b"\x80\x02}N" + b"\x85" * 25_000 + b"Ns."
# What is said, after the name of the file or the folder.
CASES = {
    "safetensors cut": (cut(gemma_scope_2, 0.7), "the file is cut short"),
    "safetensors empty": (instead(gemma_scope_2, lambda file: file.touch()), "is no safetensors file"),
    "header of a gigabyte": (length(1 << 30), "its header would have 1,073,741,824 bytes"),
    "header of a gigabyte that is there": (
        instead(gemma_scope_2, lambda file: sparse(file, 1 << 31, struct.pack("<Q", 1 << 30))),
        "its header would have 1,073,741,824 bytes",
    ),
    "header longer than its file": (length(100_000), "its header would have 100,000 bytes"),
    "header that is no JSON": (lambda folder: header(folder, b"{no}"), "in its header"),
    "header without end": (lambda folder: header(folder, b"[" * 900_000), "in its header"),
    "header of 30,000 names": (
        lambda folder: header(folder, {f"a{i}": 0 for i in range(30_000)}),
        "in its header",
    ),
    "header that names a tensor twice": (
        lambda folder: header(folder, b'{"b_enc": {}, "b_enc": {}}'),
        "'b_enc' comes twice",
    ),
    "overlapping tensors": (lambda folder: header(folder, entry(data_offsets=[0, 24])), "overlap"),
    "dtype lie": (lambda folder: header(folder, entry(dtype="F16")), "b_enc would be F16"),
    "unknown dtype": (lambda folder: header(folder, entry(dtype="U1")), "b_enc has dtype 'U1'"),
    "negative shape": (lambda folder: header(folder, entry(shape=[-6])), "b_enc would be"),
    "shape of fractions": (lambda folder: header(folder, entry(shape=[6.0])), "b_enc would be"),
    "shape of a pebibyte": (lambda folder: header(folder, entry(shape=[1 << 48])), "b_enc would be"),
    "shape that wraps around": (lambda folder: header(folder, entry(shape=[1 << 62, 4])), "b_enc would be"),
    "not a number": (lambda folder: gemma_scope_2(folder, b_enc=NAN), "b_enc must be finite float32"),
    "infinite": (lambda folder: gemma_scope_2(folder, threshold=INFINITE), "threshold must be finite float32"),
    "negative threshold": (lambda folder: gemma_scope_2(folder, threshold=-np.ones(Z, np.float32)), "at least 0"),
    "wrong shape": (lambda folder: gemma_scope_2(folder, b_enc=np.ones(Z + 1, np.float32)), "make no autoencoder"),
    "transposed": (lambda folder: gemma_scope_2(folder, W_enc=np.ones((Z, A), np.float32)), "make no autoencoder"),
    "scalar for a matrix": (lambda folder: gemma_scope_2(folder, W_enc=np.ones((), np.float32)), "W_enc .*2 axes|make"),
    "missing tensor": (lambda folder: gemma_scope_2(folder, W_dec=None), "it has no w_dec"),
    "folder for a file": (instead(gemma_scope_2, lambda file: file.mkdir()), "is no file"),
    "pipe for a file": (instead(gemma_scope_2, os.mkfifo), "is no file"),
    "link to itself": (instead(gemma_scope_2, lambda file: file.symlink_to(file.name)), "no autoencoder at"),
    "two candidate files": (both, "autoencoders of several formats, params.npz, params.safetensors"),
    "config with a key twice": (
        lambda folder: gemma_scope_2(folder, '{"l0": 1, "l0": 2}'),
        "config.json .*comes twice",
    ),
    "config of a gigabyte": (
        lambda folder: gemma_scope_2(folder) and sparse(folder / "config.json", 1 << 30),
        "config.json is longer than",
    ),
    "config that is no text": (lambda folder: gemma_scope_2(folder, b"\xff\xfe\0{"), "config.json is damaged"),
    "config that is a list": (
        lambda folder: gemma_scope_2(folder, "[1]"),
        "config.json is damaged: it holds no object",
    ),
    "config without end": (deep, "config.json is damaged"),
    "config 60 deep": (lambda folder: gemma_scope_2(folder, '{"a":' * 60 + "1" + "}" * 60), "nested more than 50"),
    "config that is a pipe": (
        lambda folder: gemma_scope_2(folder, None) and os.mkfifo(folder / "config.json"),
        "config.json is no file",
    ),
    "architecture that is a list": (saelens(architecture=["jumprelu"]), "cfg.json: the architecture"),
    "version of strange digits": (saelens(sae_lens_version="²", architecture="x"), "cfg.json: the architecture 'x'"),
    "missing layer": (layer("other.safetensors"), "(has no|make no|is not).*params_layer_0|make no"),
    "a billionth layer": (layer("params_layer_999999999.safetensors"), "has no params_layer_1.safetensors"),
    "npz cut": (cut(npz, 0.6), "params.npz is damaged"),
    "npz of objects": (lambda folder: npz(folder, b_enc=np.array([{}] * Z, object)), "params.npz"),
    "npz of half precision": (lambda folder: npz(folder, b_enc=np.ones(Z, np.float16)), "b_enc must be finite float32"),
    "npz with a shape of a tebibyte": (members({"b_enc.npy": npy((1 << 38,))}), "b_enc.npy would be"),
    "npz with a member twice": (twice, "b_enc.npy comes twice"),
    "npz with a path out of it": (members({"../b_enc.npy": npy((Z,), data=b"\0" * 24), "b_enc.npy": b""}), "b_enc"),
    "npz that is a bomb": (
        members({"b_enc.npy": npy((1 << 24,), data=b"\0" * (1 << 26))}, zipfile.ZIP_DEFLATED),
        "its arrays would have 67,",
    ),
    "npz with a long list of members": (large_directory, "the list of its members has"),
    "pickle that calls the system": (torch({"x": Calls(os.system, ("true",))}), "calls (posix|nt).system"),
    "pickle that evaluates": (torch({"x": Calls(eval, ("1",))}), "calls __builtin__.eval"),
    "pickle with an instance": (torch(text=b"\x80\x02(ios\nsystem\n."), "ae.pt"),
    "pickle with strings of old": (torch(text=b"\x80\x02cos\nsystem\n(S'true'\ntR."), "opcode STRING"),
    "pickle of megabytes": (torch(text=b"\x80\x02" + b"]" * (1 << 22) + b"."), "its data.pkl is longer"),
    "pickle without end": (torch(text=b"\x80\x02}"), "ae.pt"),
    "pickle that counts its marks": (torch(text=MARKS), "ae.pt"),
    "pickle with a deep key": (torch(text=TUPLES), "a tuple for a key"),
    "pickle that is a number": (torch(text=b"\x80\x02K\x05."), "ae.pt holds no state dict"),
    "pickle of an ordered dict of arguments": (
        torch(text=b"\x80\x02ccollections\nOrderedDict\n]\x85R."),
        "an ordered dict of arguments",
    ),
    "storage that is compressed": (torch({"x": np.zeros(1 << 16, np.float32)}, compress=True), "is compressed"),
    "tensor beyond its storage": (view((Z, A), (8, 1)), "ends beyond its 24 numbers"),
    "tensor of repeated numbers": (view((1 << 20, A), (0, 1)), "repeats its numbers"),
    "tensors that are one storage": (view((1 << 20,), (1,), 1 << 20, copies=40), "times as large as the file"),
    "archive without a pickle": (archived(["a/data/0"]), "it holds no data.pkl"),
    "archive with two pickles": (archived(["a/data.pkl", "b/data.pkl"]), "it holds no data.pkl"),
    "archive cut": (cut(torch(), 0.5), "ae.pt is no archive"),
    "bias of another length": (torch({"bias": np.ones(A + 1, np.float32)}), "ae.pt: "),
    "arrays without numbers": (
        torch(
            {
                "encoder.weight": np.ones((Z, 0), np.float32),
                "decoder.weight": np.ones((0, Z), np.float32),
                "bias": np.ones(0, np.float32),
            }
        ),
        "is empty, of shape",
    ),
    "class that is a list": (torch(config={"trainer": {"dict_class": []}}), r"config.json: the class \[\] is not read"),
}


def test_there_are_forty_kinds_at_least():
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name_in_a_second_and_64_mebibytes(tmp_path, case):
    make, message = CASES[case]
    make(tmp_path)
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as refused:
        sae.load(tmp_path)
    assert time.process_time() - start < SECONDS
    assert str(tmp_path) in str(refused.value) and len(str(refused.value)) < len(str(tmp_path)) + 700
    tracemalloc.start()
    try:
        for read in (sae.load, outline):
            try:
                read(tmp_path)
            except ValueError as error:
                assert str(tmp_path) in str(error)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def test_what_the_cases_change_is_good_otherwise(tmp_path):
    for i, make in enumerate((gemma_scope_2, npz, torch(), saelens(), layers, members({}))):
        folder = tmp_path / str(i)
        folder.mkdir()
        make(folder)
        assert sae.load(folder).width in (Z, 2 * Z)


def test_an_info_that_is_hostile_is_named(tmp_path):
    gemma_scope_2(tmp_path)
    for text, message in (
        ('{"model": "a", "model": "b"}', "'model' comes twice"),
        (json.dumps({"model": "m", "site": "s", "site_out": "s", "training": "[" * 100_000}), "training is the JSON"),
        (pickle.dumps({"model": "m"}).decode("latin-1"), "is damaged"),
    ):
        (tmp_path / "info.json").write_text(text)
        with pytest.raises(ValueError, match=f"info.json .*{message}"):
            sae.load(tmp_path)
