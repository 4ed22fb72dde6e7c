"""Damaged and hostile files are refused by name, and nothing of them runs."""

import json
import os
import pickle
import struct

import numpy as np
import pytest

from sae.formats import safetensors_files, torch_files
from tests.sae import torch_pickles

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def safetensors(file, header, data=b"\0" * 24, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def changed(**facts):
    return {"a": GOOD["a"] | facts}


BAD = {
    "cut": (GOOD, {"data": b"\0" * 20}, "a ends at byte 24 of 20: the file is cut short"),
    "header of a gigabyte": (GOOD, {"length": 1 << 30}, r"header would have 1,073,741,824 bytes"),
    "longer header than file": (GOOD, {"length": 5000}, r"cut short: its header would have 5,000 bytes"),
    "no header": (b"", {"data": b"", "length": 0}, "Expecting value"),
    "no object": (b"[1]", {}, "it is no object"),
    "no JSON": (b"{not}", {}, "is damaged: in its header"),
    "twice": (b'{"a": 1, "a": 2}', {}, "'a' comes twice"),
    "dtype": (changed(dtype="U64"), {}, "a has dtype 'U64', expected one of F64, F32"),
    "lie about the dtype": (changed(dtype="F16"), {}, r"a would be F16\[2, 3\] in the bytes 0 to 24"),
    "lie about the shape": (changed(shape=[2, 4]), {}, r"a would be F32\[2, 4\] in the bytes 0 to 24"),
    "negative shape": (changed(shape=[-2, -3]), {}, r"a would be F32\[-2, -3\]"),
    "negative offset": (changed(data_offsets=[-24, 0]), {}, "in the bytes -24 to 0"),
    "fraction": (changed(shape=[2.0, 3]), {}, r"a would be F32\[2.0, 3\]"),
    "truth": (changed(shape=[True, 6]), {}, r"a would be F32\[True, 6\]"),
    "overlap": (GOOD | {"b": GOOD["a"] | {"data_offsets": [8, 32]}}, {"data": b"\0" * 32}, "a and b overlap"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, {}, "'shape'"),
    "number for an entry": ({"a": 3}, {}, "is damaged: in its header"),
    "deep": (b"[" * 100_000, {}, "is damaged: in its header"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_lie_of_a_safetensors_file_is_named(tmp_path, case):
    header, more, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refused:
        safetensors_files.read(safetensors(tmp_path / "x.safetensors", header, **more))
    assert "x.safetensors" in str(refused.value)


def test_a_good_file_is_read_and_what_it_lacks_is_named(tmp_path):
    data = np.arange(6, dtype="<f4").tobytes()
    file = safetensors(tmp_path / "x.safetensors", GOOD | {"__metadata__": {"format": "pt"}}, data)
    np.testing.assert_array_equal(safetensors_files.read(file)["a"], np.arange(6).reshape(2, 3))
    with pytest.raises(ValueError, match=r"it has no b; it holds a"):
        safetensors_files.read(file, ["b"])
    half = np.arange(6).astype("<f4").view("<u4") >> 16  # bfloat16
    entry = {"a": {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]}}
    values = safetensors_files.read(safetensors(file, entry, half.astype("<u2").tobytes()))["a"]
    assert values.dtype == np.float32 and values.tolist() == [0, 1, 2, 3, 4, 5]


class Calls:
    """What a hostile pickle holds."""

    def __init__(self, *called):
        self.called = called

    def __reduce__(self):
        return self.called


def test_a_pickle_that_calls_is_refused_and_nothing_runs(tmp_path):
    for name, called in {
        "posix.system": (os.system, (f"touch {tmp_path}/ran",)),
        "__builtin__.eval": (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)),
        "__builtin__.getattr": (getattr, ("text", "upper")),
    }.items():
        torch_pickles.save(tmp_path / "ae.pt", {"x": Calls(*called)})
        with pytest.raises(ValueError, match=rf"ae.pt cannot be read without running .*its pickle calls {name}"):
            torch_files.read(tmp_path / "ae.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (pickle.dumps(object(), 2)[:-1] + b"b.", "calls .*object|sets attributes|opcode"),
        (b"\x80\x02cos\nsystem\n(S'ls'\ntR.", "opcode STRING"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST|damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}q\x00", "no end|damaged|exhausted"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02e.", "damaged"),
        (b"", "damaged|exhausted"),
    ],
)
def test_damaged_pickles_are_refused(tmp_path, text, message):
    torch_pickles.write(tmp_path / "ae.pt", text, {})
    with pytest.raises(ValueError, match=message):
        torch_files.read(tmp_path / "ae.pt")


def test_tensors_that_lie_about_their_numbers_are_refused(tmp_path):
    file = tmp_path / "ae.pt"
    torch_pickles.save(file, {"x": np.zeros(1 << 16, np.float32)}, compress=True)  # a bomb
    with pytest.raises(ValueError, match=r"archive/data/0 is compressed, which torch.save does not do"):
        torch_files.read(file)
    for offset, shape, strides, message in (
        (0, (3, 3), (3, 1), r"a tensor of the shape \(3, 3\) ends beyond its 6 numbers"),
        (4, (3,), (1,), r"ends beyond its 6 numbers"),
        (0, (1 << 40,), (0,), r"repeats its numbers"),
        (0, (2, -3), (3, 1), r"the shape \(2, -3\)"),
        (-1, (3,), (1,), r"makes a tensor with the shape"),
    ):
        storage = torch_pickles._Storage("0", np.zeros(6, np.float32))
        torch_pickles.save(file, {"x": torch_pickles._Tensor(storage, offset, shape, strides)}, storages=[storage])
        with pytest.raises(ValueError, match=message):
            torch_files.read(file)
    file.write_bytes(b"PK not")
    with pytest.raises(ValueError, match=r"ae.pt is no archive of torch.save's, or damaged"):
        torch_files.read(file)


def test_tensors_of_every_kind_and_views_are_read(tmp_path):
    state = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.arange(12, dtype=np.float64).reshape(3, 4),
        "whole": np.array([3, -4]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "text": "words",
        "nested": {"list": [1, 2.5, None, True], "tuple": (1, (2, 3), "x")},
    }
    torch_pickles.save(tmp_path / "x.pt", state, transposed=("turned",))
    read = torch_files.read(tmp_path / "x.pt")
    assert list(read) == list(state) and (read["text"], read["nested"]) == ("words", state["nested"])
    for name in ("plain", "turned", "whole", "scalar", "empty"):
        np.testing.assert_array_equal(read[name], state[name])
        assert read[name].dtype == state[name].dtype
