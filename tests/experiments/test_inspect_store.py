"""`python -m experiments.inspect_store`: what it says, finds and mends."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import common, harvest, inspect_store
from tests.sae.examples import make_store

HARVEST = ["--sites=layer_1/resid_post,layer_1/mlp_out", "--max_sequences=64", "--length=64", "--shuffle_rows=1008"]


def launch(name, folder, *flags):
    command = [sys.executable, "-m", f"experiments.{name}", f"--store_dir={folder}", *flags]
    return subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


@pytest.mark.parametrize("damage", ["segment.json", "number", "all"])
def test_a_store_that_cannot_be_opened_is_repaired(tmp_path, monkeypatch, capsys, damage):
    """All but the harvest itself."""
    store = make_store(tmp_path / "store", {"s": np.ones((3000, 4), np.float32)}).path
    if damage == "segment.json":
        (store / "segment_00001" / "segment.json").write_text("{")
    elif damage == "number":
        shutil.copytree(store / "segment_00001", store / "segment_00099")
    else:
        for folder in store.glob("segment_*"):
            shutil.rmtree(folder)
    models, harvested = [], []
    monkeypatch.setattr(common, "load_model", models.append)
    monkeypatch.setattr(common, "texts", lambda model: [None])
    monkeypatch.setattr(harvest, "check", lambda *_: None)
    monkeypatch.setattr(harvest, "harvest", lambda model, text, where: harvested.append(where) or where)
    with flagsaver.flagsaver():
        flags.FLAGS(["inspect_store", f"--store_dir={store}", "--repair"])
        inspect_store.main()
    assert models == [["float32"]] and len(harvested) == 1
    counts = {"segment.json": "1 damaged and 0 missing", "number": "1 damaged and 0 missing", "all": "0 damaged and 3"}
    assert f"harvested again: {counts[damage]}" in capsys.readouterr().out
    assert len(list(store.glob("segment_*"))) == {"segment.json": 2, "number": 3, "all": 0}[damage]


@pytest.mark.slow
def test_inspect_verify_repair(tmp_path):
    store = tmp_path / "store"
    made = launch("harvest", store, *HARVEST, "--sink_factor=6")
    assert made.returncode == 0 and "left out as attention sinks" in made.stdout, made.stderr
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    well = launch("inspect_store", store, "--verify")
    assert well.returncode == 0 and "everything is as it was written" in well.stdout, well.stderr
    for words in ("in 4 of 4 segments, float32, raw units", "model gemma2-tiny", "layer_1/mlp_out", "attention sinks"):
        assert words in well.stdout
    shards = [path for path in (store / "segment_00002" / "layer_1.mlp_out" / "c").rglob("*") if path.is_file()]
    damaged = bytearray(shards[0].read_bytes())
    damaged[1000] ^= 4
    shards[0].write_bytes(damaged)
    found = launch("inspect_store", store, "--verify")
    assert found.returncode == 1 and "damaged: segment_00002\n  segment_00002/layer_1.mlp_out" in found.stdout
    assert "error: 1 segment is damaged; --repair" in found.stderr
    # Other flags than the harvest's are refused, and nothing is taken out.
    refused = launch("inspect_store", store, "--repair", *HARVEST)
    assert refused.returncode == 1
    assert "counted: the store has all but ids 0, 1, 2, sinks (over 6 medians at" in refused.stderr
    assert shards[0].exists()
    mended = launch("inspect_store", store, "--repair", *HARVEST, "--sink_factor=6")
    assert "harvested again: 1 damaged and 0 missing segments; 0 damaged now" in mended.stdout, mended.stderr
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
