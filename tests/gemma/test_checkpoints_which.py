"""Which of several weights is meant: what transformers reads, or a refusal that names both."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import gemma
from tests.gemma import ggufs, small
from tests.gemma.refusing import refused

INDEX = "model.safetensors.index.json"


@pytest.fixture
def two_sets(tmp_path):
    """Shards with an index, beside one whole file with twice their numbers; the final norm's first in the latter."""
    gemma.save(small.model(), tmp_path, "huggingface", shard_bytes=20_000)
    whole = {name: 2 * array for shard in tmp_path.glob("model-*") for name, array in load_file(shard).items()}
    save_file(whole, tmp_path / "model.safetensors")
    assert (tmp_path / INDEX).exists()
    return tmp_path, float(whole["model.norm.weight"][0])


def test_a_single_file_goes_before_an_index(two_sets):
    folder, want = two_sets
    assert small.final(folder) == want


def test_a_whole_file_beside_an_index_whose_shards_are_gone(two_sets):
    folder, want = two_sets
    for shard in folder.glob("model-*"):
        shard.unlink()
    assert small.final(folder) == want


def test_a_whole_file_beside_a_damaged_index(two_sets):
    folder, want = two_sets
    (folder / INDEX).write_text("{")
    assert small.final(folder) == want


def test_an_index_goes_before_files_of_other_names(two_sets):
    folder, want = two_sets
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert small.final(folder) == want / 2


def test_an_index_whose_shards_are_gone_beside_a_file_of_another_name_says_what_is_missing(two_sets):
    folder = two_sets[0]
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "model-00001-of-00004.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-*")).unlink()
    refused(folder, "missing: model.", "is missing")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.x"])
def test_an_index_may_list_what_no_shard_has_and_the_model_does_not_need(name, tmp_path):
    gemma.save(small.model(), tmp_path, "huggingface", shard_bytes=20_000)
    values = json.loads((tmp_path / INDEX).read_text())
    values["weight_map"][name] = next(iter(values["weight_map"].values()))
    (tmp_path / INDEX).write_text(json.dumps(values))
    assert gemma.load(tmp_path).config.num_layers == 3
    values["weight_map"]["model.layers.0.mlp.gate_proj.bias"] = next(iter(values["weight_map"].values()))
    (tmp_path / INDEX).write_text(json.dumps(values))
    refused(tmp_path, "missing: model.layers.0.mlp.gate_proj.bias")


@pytest.mark.parametrize("preset", ["gemma2-tiny", "gemma3-270m"])
def test_a_path_called_like_a_preset(preset, tmp_path, monkeypatch):
    """A Path and a name with a folder before it are the folder; the bare name could be either."""
    monkeypatch.chdir(tmp_path)
    model = small.model()
    gemma.save(model, preset)
    want = float(model.params["final_norm"]["scale"][0])
    assert small.final(tmp_path / preset) == small.final(f"./{preset}") == want
    assert small.final((tmp_path / preset).relative_to(tmp_path)) == want
    refused(preset, f"'{preset}' is a model of this package and a folder here", f"'./{preset}'")


def test_a_file_called_like_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma2-tiny").write_text("notes")
    refused("gemma2-tiny", "is a model of this package and a file here")


def test_a_folder_called_like_a_preset_without_weights_at_hand_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gemma.save(small.model(), "gemma2-2b")
    assert gemma.load("gemma2-2b").config.num_layers == 3


def test_a_path_is_no_preset_and_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(pathlib.Path("gemma2-tiny"), "no file or folder 'gemma2-tiny' exists")
    (tmp_path / "google").mkdir()
    refused(tmp_path / "google" / "gemma-2-2b", "neither a folder, a file")


def managed(folder, **items):
    """A step of a `CheckpointManager`."""
    with ocp.CheckpointManager(folder) as manager:
        if "default" in items:
            manager.save(20, args=ocp.args.StandardSave(items["default"]))
        else:
            composite = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()})
            manager.save(20, args=composite)
        manager.wait_until_finished()


@pytest.mark.parametrize("place", ["", "20", "20/default"])
def test_the_folders_of_a_checkpoint_manager(place, tmp_path):
    model = small.model()
    managed(tmp_path, default={"params": model.params})
    for folder in (tmp_path, tmp_path / "20", tmp_path / "20" / "default"):
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    loaded = gemma.load(tmp_path / place)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)


def test_a_step_with_one_named_item_and_with_two(tmp_path):
    model = small.model()
    managed(tmp_path / "one", model=model.params)
    managed(tmp_path / "two", model=model.params, average=model.params)
    for name in ("one", "two"):
        (tmp_path / name / "20" / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert gemma.load(tmp_path / "one" / "20").config.num_layers == 3
    refused(tmp_path / "two" / "20", "a step with several items, give the path of the model's: average, model")


def test_safetensors_go_before_gguf_also_with_an_adapters_file_alone_there(tmp_path):
    """An adapter's file is no model: the GGUF file beside it is the base."""
    ggufs.write(tmp_path / "m.gguf", small.model(**small.GEMMA_3), words=[])
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "has an adapter, adapter_model.safetensors, without its adapter_config.json")
    refused(tmp_path / "adapter_model.safetensors", "is an adapter's: give its folder")
