"""Safetensors as transformers writes them: how they come, what is recognised, and which damage is named how."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma
from gemma.checkpoints import tensorfiles
from tests.gemma import golden as reference
from tests.gemma.refusing import refused

GATE = "model.layers.1.mlp.gate_proj.weight"
IMAGES = {
    "vision_tower.vision_model.embeddings.patch_embedding.weight": np.ones((2, 3), np.float32),
    "multi_modal_projector.mm_soft_emb_norm.weight": np.full(3, np.nan, np.float32),
}


@pytest.fixture
def weights():
    """Those of the Gemma 2, as safetensors' own library reads them."""
    return {
        name: array for shard in reference.GEMMA_2.glob("*.safetensors") for name, array in load_file(shard).items()
    }


def put(folder, tensors, config=None, file="model.safetensors"):
    """A folder with one file, written by safetensors' own library."""
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / file)
    text = (reference.GEMMA_2 / "config.json").read_text() if config is None else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def same(model, other):
    jax.tree.map(np.testing.assert_array_equal, model.params, other.params)


def test_shards_and_one_file_are_the_same(golden, weights, tmp_path):
    assert (reference.GEMMA_2 / "model.safetensors.index.json").exists()
    same(gemma.load(put(tmp_path / "one", weights)), golden[0])
    same(gemma.load(tmp_path / "one" / "model.safetensors"), golden[0])
    shutil.copytree(reference.GEMMA_2, tmp_path / "no_index")
    (tmp_path / "no_index" / "model.safetensors.index.json").unlink()
    same(gemma.load(tmp_path / "no_index"), golden[0])


@pytest.mark.parametrize("before", ["", "language_model.", "language_model.model.", "model.language_model."])
def test_names_of_every_kind_of_model(golden_3, before, tmp_path):
    """The text model alone, and inside one that sees images, whose other tensors are of no concern."""
    model = golden_3[0]
    weights = load_file(reference.GEMMA_3 / "model.safetensors")
    named = {before + name.removeprefix("model."): array for name, array in weights.items()}
    text = json.loads((reference.GEMMA_3 / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}} if before else text
    images = {("model." if before == "model.language_model." else "") + name: array for name, array in IMAGES.items()}
    same(gemma.load(put(tmp_path / "m", named | (images if before else {}), config)), model)


def test_two_names_of_one_tensor_are_refused(weights, tmp_path):
    weights["language_model." + GATE] = weights[GATE]
    refused(put(tmp_path / "m", weights), GATE, "is stored as")


def test_a_tied_output_embedding_may_be_there_twice(golden, weights, tmp_path):
    table = weights["model.embed_tokens.weight"]
    same(gemma.load(put(tmp_path / "m", weights | {"lm_head.weight": table})), golden[0])
    other = table.copy()
    other[-1, -1] += 1
    for head in (other, table[:-1]):
        refused(
            put(tmp_path / "m", weights | {"lm_head.weight": head}), "lm_head.weight: it differs from the embedding"
        )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_every_width_of_number(weights, dtype, tmp_path):
    narrow = {name: array.astype(dtype) for name, array in weights.items()}
    one = gemma.load(put(tmp_path / "narrow", narrow))
    other = gemma.load(put(tmp_path / "wide", {name: array.astype(np.float32) for name, array in narrow.items()}))
    assert jax.tree.leaves(one.params)[0].dtype == jnp.float32
    same(one, other)


def test_buffers_that_some_versions_save_are_no_matter(golden, weights, tmp_path):
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    same(gemma.load(put(tmp_path / "m", weights)), golden[0])


def test_every_wrong_tensor_is_named(weights, tmp_path):
    weights.pop(GATE)
    weights["model.layers.2.self_attn.q_proj.bias"] = np.zeros(4, np.float32)
    weights["model.norm.weight"] = np.zeros(7, np.float32)
    weights["model.layers.0.mlp.up_proj.weight"] = np.zeros((96, 48), np.int8)
    refused(
        put(tmp_path / "m", weights),
        f"missing: {GATE}",
        "not in this model: model.layers.2.self_attn.q_proj.bias",
        "model.norm.weight: shape (7,), expected (48,)",
        "model.layers.0.mlp.up_proj.weight: dtype I8, expected one of F64, F32, F16, BF16",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(weights, value, tmp_path):
    weights[GATE] = weights[GATE].copy()
    weights[GATE][-1, -1] = value
    norm = "model.layers.3.input_layernorm.weight"
    weights[norm] = np.full_like(weights[norm], value)
    text = refused(put(tmp_path / "m", weights), GATE, f"{norm}: has values that are NaN or infinite")
    assert text.count("\n") == 2


def test_a_long_list_of_problems_is_cut(weights, tmp_path):
    few = {name: array for name, array in weights.items() if "layers" not in name}
    assert refused(put(tmp_path / "m", few), "and 32 more").count("\n") == 13


def test_a_file_cut_short_names_what_is_gone(weights, tmp_path):
    put(tmp_path / "m", weights)
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    file.write_bytes(data[:-1])
    text = refused(tmp_path / "m", f"{last}: model.safetensors is cut short: it has {len(data) - 1} bytes")
    assert text.count("\n") == 1
    for length, said in ((100, "is cut short within its header"), (5, "is not a safetensors file"), (0, "is not a")):
        file.write_bytes(data[:length])
        refused(tmp_path / "m", said)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "m", "model.safetensors is not a safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(data_offsets=[0, 1]),
        lambda entry: entry.update(data_offsets=[-8, entry["data_offsets"][1] - entry["data_offsets"][0] - 8]),
        lambda entry: entry.update(shape=[-1, -48]),
        lambda entry: entry.update(shape="large"),
        lambda entry: entry.pop("dtype"),
    ],
)
def test_a_header_that_cannot_be(weights, change, tmp_path):
    file = put(tmp_path / "m", weights) / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header["model.norm.weight"])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    with pytest.raises(ValueError, match=r"model\.norm\.weight: |its header is damaged"):
        gemma.load(tmp_path / "m")


def test_shards_that_are_not_there(tmp_path):
    shutil.copytree(reference.GEMMA_2, tmp_path / "m")
    gone = tmp_path / "m" / "model-00003-of-00008.safetensors"
    names = list(load_file(gone))
    gone.unlink()
    refused(tmp_path / "m", *(f"missing: {name}, as {gone.name} is missing" for name in names))


def test_an_index_that_does_not_fit(weights, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(reference.GEMMA_2, folder)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    wrong = places | {"model.norm.weight": places["model.embed_tokens.weight"]}
    if wrong == places:
        wrong = places | {GATE: "model-00001-of-00008.safetensors"}
    index.write_text(json.dumps({"weight_map": wrong}))
    refused(folder, "is without it", "not in model.safetensors.index.json: ")
    index.write_text(json.dumps({"weight_map": places | {GATE: "../../etc/passwd"}}))
    refused(folder, "names '../../etc/passwd', which is not a file beside it")
    for text in ("{", "{}", '{"weight_map": 3}', '{"weight_map": null}'):
        index.write_text(text)
        refused(folder, "is not an index of safetensors")


def test_without_a_config_shapes_tell_the_preset(tiny, tmp_path):
    gemma.save(tiny, tmp_path, "huggingface")
    (tmp_path / "config.json").unlink()
    loaded = gemma.load(tmp_path)
    assert loaded.config == tiny.config
    same(loaded, tiny)


def test_without_a_config_another_model_is_not_guessed(weights, tmp_path):
    folder = put(tmp_path / "m", weights)
    (folder / "config.json").unlink()
    refused(folder, "has no config.json, and no preset has the shapes of its tensors (vocab_size 384, num_layers 4")
    put(folder, {"decoder.weight": np.zeros(3, np.float32)})
    (folder / "config.json").unlink()
    refused(folder, "has no config.json, and its tensors are not those of a Gemma 2 or 3")


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_safetensors_own_library_reads_what_is_saved(golden, weights, dtype, tmp_path):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), golden[0].params)
    model = gemma.Model(params, golden[0].config)
    gemma.save(model, tmp_path / "one", "huggingface")
    gemma.save(model, tmp_path / "many", "huggingface", shard_bytes=50_000)
    one = load_file(tmp_path / "one" / "model.safetensors")
    shards = sorted((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    many = {name: array for shard in shards for name, array in load_file(shard).items()}
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in one.values())
    assert index["weight_map"].keys() == many.keys() == one.keys() == weights.keys()
    for shard in shards:
        held = load_file(shard)
        assert all(index["weight_map"][name] == shard.name for name in held)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= 50_000
    for name, want in weights.items():
        assert one[name].dtype == dtype
        np.testing.assert_array_equal(one[name], want.astype(dtype))
        np.testing.assert_array_equal(one[name], many[name])
    same(gemma.load(tmp_path / "many"), gemma.load(tmp_path / "one"))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def fails():
        raise RuntimeError("the device is gone")

    shape, dtype = (4, 2), np.dtype(np.float32)
    with pytest.raises(RuntimeError, match="device is gone"):
        tensorfiles.write(
            tmp_path / "x.safetensors",
            {"a": (dtype, shape, lambda: np.zeros(shape, dtype)), "b": (dtype, shape, fails)},
        )
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(ValueError, match=r"a is int32; written are float64"):
        tensorfiles.write(tmp_path / "x.safetensors", {"a": (np.dtype(np.int32), shape, fails)})


def test_numbers_stay_aligned_in_a_file_of_several_widths(tmp_path):
    arrays = {"a": np.ones(3, ml_dtypes.bfloat16), "b": np.arange(6.0).reshape(2, 3), "c": np.ones((), np.float32)}
    tensorfiles.write(tmp_path / "x", {n: (a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()})
    for name, array in load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(array, arrays[name])
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, array in arrays.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.itemsize == 0
        assert header[name]["data_offsets"][1] - header[name]["data_offsets"][0] == array.itemsize * math.prod(
            array.shape
        )
