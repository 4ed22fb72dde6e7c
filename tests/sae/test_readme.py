"""The README's examples run as they stand, and the adapted model goes the whole way."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import sae
from tests.sae import speaking
from tests.sae.models import whole_way


def code():
    """The README's blocks of Python: a part of one's own, a model, its adapter, its use, another site."""
    text = (Path(sae.__file__).parent / "README.md").read_text(encoding="utf-8")
    return re.findall(r"(?s)```python\n(.*?)```", text)


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The code blocks after the model's, in a folder with the model's file and a text."""
    _, model, *rest = code()
    assert model.startswith("# small_flax.py")
    (tmp_path / "small_flax.py").write_text(model, "utf-8")
    lines = [json.dumps({"text": document.text}) for document in whole_way.documents()]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield rest
    sys.modules.pop("small_flax", None)


@pytest.mark.slow  # it compiles two runs' steps
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # a hundred steps
def test_a_penalty_of_ones_own_makes_latents_sparse():
    names = {}
    try:
        exec(compile(code()[0], "sae/README.md", "exec"), names)
    finally:
        sae.sparsity.TERMS.remove("root")
    weak, strong = (record["l0"] for record in names["result"].history[-2:])
    assert [run["run"] for run in names["result"].history[-2:]] == [0, 1]
    assert strong < 0.7 * weak
    # One program serves both: the coefficient is a number in it.
    assert sae.parts.number_names(names["Root"]) == ("root",)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # runs of a few steps
def test_the_example_goes_the_whole_way_and_has_another_site(blocks, tmp_path):
    adapter, way, another = blocks
    assert sum(bool(line.strip()) for line in adapter.splitlines()) < 80
    names = {}
    exec(compile(adapter, "sae/README.md", "exec"), names)
    exec(compile(way, "sae/README.md", "exec"), names)
    model = names["model"]
    speaking.check(model, "And God said")
    assert list((tmp_path / "runs/pages/block_1/resid_post/width_64").glob("[0-9]*.html"))
    unsteered = model.run("the sea was").logits
    assert np.abs(names["steered"].logits - unsteered)[:, 1:].max() > 1e-3

    exec(compile(another, "sae/README.md", "exec"), names)
    model = names["model"]
    assert list(model.sites)[3:6] == ["block_0/mlp_hidden", "block_0/mlp_out", "block_0/resid_post"]
    whole_way.go(model, ["block_1/mlp_hidden"], tmp_path / "another")
