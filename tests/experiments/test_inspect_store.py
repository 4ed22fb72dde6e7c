"""`python -m experiments.inspect_store`: what it says, finds and mends."""

import os
import subprocess
import sys

HARVEST = ["--sites=layer_1/resid_post,layer_1/mlp_out", "--max_sequences=64", "--length=64", "--shuffle_rows=1008"]


def launch(name, folder, *flags):
    command = [sys.executable, "-m", f"experiments.{name}", f"--store_dir={folder}", *flags]
    return subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


def test_inspect_verify_repair(tmp_path):
    store = tmp_path / "store"
    made = launch("harvest", store, *HARVEST, "--sink_factor=6")
    assert made.returncode == 0 and "left out as attention sinks" in made.stdout, made.stderr
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    well = launch("inspect_store", store, "--verify")
    assert well.returncode == 0 and "all that is there is as it was written" in well.stdout, well.stderr
    for words in ("in 4 of 4 segments, float32, raw units", "model gemma2-tiny", "layer_1/mlp_out", "attention sinks"):
        assert words in well.stdout
    shards = [path for path in (store / "segment_00002" / "layer_1.mlp_out" / "c").rglob("*") if path.is_file()]
    damaged = bytearray(shards[0].read_bytes())
    damaged[1000] ^= 4
    shards[0].write_bytes(damaged)
    found = launch("inspect_store", store, "--verify")
    assert found.returncode == 1 and "damaged: segment_00002\n  segment_00002/layer_1.mlp_out" in found.stdout
    assert "error: 1 segments are damaged; --repair" in found.stderr
    # Other flags than the harvest's are refused, and nothing is taken out.
    refused = launch("inspect_store", store, "--repair", *HARVEST)
    assert refused.returncode == 1 and "sink_factor: the store has 6.0, asked for None" in refused.stderr
    assert shards[0].exists()
    mended = launch("inspect_store", store, "--repair", *HARVEST, "--sink_factor=6")
    assert "harvested again: 1 damaged and 0 missing segments; 0 damaged now" in mended.stdout, mended.stderr
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
