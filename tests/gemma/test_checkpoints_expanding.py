"""GGUF files whose numbers are expanded once."""

import os
import warnings

import gguf as package
import jax
import numpy as np
import pytest

import gemma
from gemma.checkpoints import expanding, gguffiles

CONFIG = gemma.Config(
    "g", 300, 1, 64, 96, 2, 1, 32, 32**-0.5, 8, ("local",) * 5 + ("global",), None, None, 1e6, qk_norm=True
)


@pytest.fixture
def quantised(tmp_path, monkeypatch):
    """A function that writes a model of random numbers, from a seed, in blocks of eight bits."""
    from tests.gemma import ggufs

    plain, qtype = package.GGUFWriter.add_tensor, package.GGMLQuantizationType.Q8_0

    def add(self, name, array, *rest):
        if array.ndim == 1:
            return plain(self, name, array)
        return plain(self, name, package.quantize(array, qtype), raw_dtype=qtype)

    def write(name="g.gguf", seed=0):
        rng = np.random.default_rng(seed)
        shapes = gemma.model.param_shapes(CONFIG)
        params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
        with monkeypatch.context() as patch:
            patch.setattr(package.GGUFWriter, "add_tensor", add)
            return ggufs.write(tmp_path / name, gemma.Model(params, CONFIG))

    return write


@pytest.fixture
def expansions(monkeypatch):
    """The number of times that blocks were expanded; scales are no blocks, and small."""
    counts = []
    plain = package.dequantize
    monkeypatch.setattr(package, "dequantize", lambda *of: counts.append(np.asarray(of[0]).nbytes > 1000) or plain(*of))
    return lambda: sum(counts)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.config == b.config and a.tokenizer.sha256 == b.tokenizer.sha256


def test_numbers_are_expanded_once_and_are_the_same(quantised, tmp_path, expansions):
    path, kept = quantised(), tmp_path / "kept"
    bare = gemma.load(path)
    first = gemma.load(path, expanded=kept)
    (file,) = kept.iterdir()
    before = expansions()
    assert before > 0
    second = gemma.load(path, expanded=str(kept))
    assert expansions() == before
    same(bare, first)
    same(bare, second)
    assert list(kept.iterdir()) == [file]


def test_another_state_of_the_file_is_expanded_anew_and_the_old_one_goes(quantised, tmp_path):
    path, kept = quantised(), tmp_path / "kept[1]"
    gemma.load(path, expanded=kept)
    other = quantised("other.gguf", seed=1)
    gemma.load(other, expanded=kept)
    assert len(list(kept.iterdir())) == 2
    os.replace(other, path)
    same(gemma.load(path, expanded=kept), gemma.load(path))
    assert len([file for file in kept.iterdir() if file.name.startswith("g-")]) == 1


def test_a_file_that_is_cut_short_is_made_anew(quantised, tmp_path):
    path, kept = quantised(), tmp_path / "kept"
    gemma.load(path, expanded=kept)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    same(gemma.load(path, expanded=kept), gemma.load(path))
    assert list(kept.iterdir()) == [file]


def test_where_they_cannot_be_kept_the_model_loads_and_says_so(quantised, tmp_path, monkeypatch):
    path = quantised()
    (tmp_path / "kept").write_text("a file in the folder's place")
    with pytest.warns(UserWarning, match=r"the expanded numbers of .*g.gguf are not kept: .*kept"):
        same(gemma.load(path, expanded=tmp_path / "kept"), gemma.load(path))
    monkeypatch.setattr(expanding.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.warns(UserWarning, match=r"they take 0.0 GB in .*, where 0.0 GB are free"):
        gemma.load(path, expanded=tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())


def test_what_has_no_blocks_is_not_kept(tmp_path, golden_3):
    from tests.gemma import ggufs

    path = ggufs.write(tmp_path / "golden.gguf", golden_3[0])
    assert not gguffiles.scan(path).quantised
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gemma.load(path, expanded=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
