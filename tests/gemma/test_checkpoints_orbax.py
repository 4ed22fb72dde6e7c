"""DeepMind's checkpoints in all their layouts, made from the golden models, and what damage says."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from jax.sharding import Mesh

import gemma
from gemma.checkpoints import kaggle
from gemma.model import param_shapes
from tests.gemma.refusing import refused

FORMATS = [{"use_ocdbt": True, "use_zarr3": True}, {"use_ocdbt": True, "use_zarr3": False}, {"use_ocdbt": False}]


def flat(params):
    """{"layer_0/attn/q_einsum/w": array, ...}"""
    return {"/".join(path): np.array(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}


def nested(weights):
    return traverse_util.unflatten_dict({tuple(name.split("/")): leaf for name, leaf in weights.items()})


def save(tree, folder, **how):
    """As whatever wrote the checkpoint would."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))
    return folder


def deepmind_flat(weights, extra_w):
    """{"transformer/layer_0/attn/q_einsum": {"w": array}}"""
    tree = {}
    for name, leaf in weights.items():
        if extra_w and name.endswith(("gating_einsum", "linear")):
            name += "/w"
        head, last = ("transformer/" + name).rsplit("/", 1)
        tree.setdefault(head, {})[last] = leaf
    return tree


def folder_for(model, tmp_path, tree, **how):
    """config.json, and beside it a checkpoint called as Kaggle calls it."""
    gemma.save(model, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "weights")
    save(tree, tmp_path / "m" / "gemma2-2b", **how)
    return tmp_path / "m"


def same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


LAYOUTS = ["flat", "nested", "transformer", "params", "params/transformer"]


@pytest.mark.parametrize(
    ("layout", "extra_w", "how"),
    [(layout, False, FORMATS[0]) for layout in LAYOUTS]
    + [pytest.param(layout, True, FORMATS[0], marks=pytest.mark.slow) for layout in LAYOUTS]
    + [("flat", False, how) for how in FORMATS[1:]],
)
def test_every_layout(golden_3, layout, extra_w, how, tmp_path):
    model = golden_3[0]
    weights = flat(model.params)
    if layout == "flat":
        tree = deepmind_flat(weights, extra_w)
    else:
        before = "" if layout == "nested" else layout + "/"
        ends = ("gating_einsum", "linear")
        tree = nested({before + name + "/w" * (extra_w and name.endswith(ends)): w for name, w in weights.items()})
    loaded = gemma.load(folder_for(model, tmp_path, tree, **how))
    assert loaded.config == model.config
    same(loaded.params, model.params)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_gates_the_other_way_round_and_rows_that_no_token_has(golden, shape, tmp_path):
    """As the 9B's are; whatever the padding holds."""
    model = golden[0]
    weights = flat(model.params)
    for name in weights:
        if name.endswith("gating_einsum"):
            weights[name] = np.ascontiguousarray(weights[name].swapaxes(1, 2))
    table = weights["embedder/input_embedding"]
    weights["embedder/input_embedding"] = np.concatenate([table, np.full((128, table.shape[1]), np.nan, np.float32)])
    folder = folder_for(model, tmp_path, deepmind_flat(weights, False))
    mesh = Mesh(np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("data", "model"))
    for loaded in (gemma.load(folder), gemma.load(folder, mesh=mesh)):
        same(loaded.params, model.params)
    want = gemma.sharding.param_shardings(model.params, mesh)
    for leaf, place in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(want), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_gates_the_other_way_round_on_devices_that_do_not_divide_d(golden, tmp_path):
    """F is what is spread, on the way as well: 8 devices divide F = 96, and not D = 36."""
    config = dataclasses.replace(golden[0].config, d_model=36)
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), param_shapes(config))
    weights = flat(params)
    for name in weights:
        if name.endswith("gating_einsum"):
            weights[name] = np.ascontiguousarray(weights[name].swapaxes(1, 2))
    folder = folder_for(gemma.Model(params, config), tmp_path, deepmind_flat(weights, False))
    mesh = Mesh(np.asarray(jax.devices()).reshape(1, 8), ("data", "model"))
    loaded = gemma.load(folder, mesh=mesh)
    same(loaded.params, params)
    assert loaded.params["layer_0"]["mlp"]["gating_einsum"].addressable_shards[0].data.shape == (2, 36, 12)


@pytest.mark.parametrize("rows", [-1, 1, 127, 256])
def test_other_numbers_of_rows_are_refused(golden, rows, tmp_path):
    weights = flat(golden[0].params)
    weights["embedder/input_embedding"] = np.zeros((384 + rows, 48), np.float32)
    folder = folder_for(golden[0], tmp_path, deepmind_flat(weights, False))
    refused(folder, f"embedder/input_embedding: shape ({384 + rows}, 48), expected (384, 48) or (512, 48)")


def test_gates_that_may_be_either_way_are_refused_unless_saved_here(golden, tmp_path):
    config = dataclasses.replace(golden[0].config, d_ff=48)
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), param_shapes(config))
    gemma.save(gemma.Model(params, config), tmp_path / "m")
    same(gemma.load(tmp_path / "m").params, params)
    gemma.save(gemma.Model(params, config), tmp_path / "h", "huggingface")
    shutil.copy(tmp_path / "h" / "config.json", tmp_path / "m")
    refused(
        tmp_path / "m", "layer_0/mlp/gating_einsum: as D = F = 48, its shape does not tell (2, D, F) from (2, F, D)"
    )


def test_what_is_for_images_is_left_out(golden_3, tmp_path):
    weights = flat(golden_3[0].params)
    images = {
        "vision_encoder/siglip/w": np.ones(3, np.float32),
        "embedder/mm_input_projection/w": np.ones((2, 2), np.float32),
        "embedder/mm_soft_embedding_norm/scale": np.full(2, np.nan, np.float32),
    }
    same(gemma.load(folder_for(golden_3[0], tmp_path, nested(weights | images))).params, golden_3[0].params)
    tree = deepmind_flat(weights, True) | {"SigLiPFromPatches_0/siglip": {"w": np.ones(2, np.float32)}}
    same(gemma.load(folder_for(golden_3[0], tmp_path / "flat", tree)).params, golden_3[0].params)


@pytest.mark.parametrize("place", ["folder", "parent"])
def test_shapes_alone_tell_a_preset(tiny, place, tmp_path):
    """Kaggle's downloads have no config.json; the tokenizer is beside the checkpoint."""
    save(deepmind_flat(flat(tiny.params), False), tmp_path / "tiny")
    (tmp_path / "tokenizer.model").write_bytes(tiny.tokenizer.model_proto)
    loaded = gemma.load(tmp_path / "tiny" if place == "folder" else tmp_path)
    assert loaded.config == tiny.config and loaded.tokenizer == tiny.tokenizer
    same(loaded.params, tiny.params)


@pytest.mark.parametrize(
    ("name", "rows", "vocab_size"),
    [
        ("gemma2-2b", 256_000, 256_000),
        ("gemma2-9b", 256_128, 256_000),
        ("gemma2-27b", 256_128, 256_000),
        ("gemma3-270m", 262_144, 262_144),
        ("gemma3-1b", 262_144, 262_144),
        ("gemma3-4b", 262_144, 262_144),
        ("gemma3-12b", 262_208, 262_208),
        ("gemma3-27b", 262_144, 262_144),
    ],
)
def test_the_presets_shapes_are_told_apart(name, rows, vocab_size, tmp_path):
    config = gemma.config(name)
    shapes = traverse_util.flatten_dict(param_shapes(dataclasses.replace(config, num_layers=1)))
    shapes |= {(f"layer_{config.num_layers - 1}", *path[1:]): leaf for path, leaf in shapes.items() if len(path) > 2}
    leaves = {path: kaggle.Leaf("/".join(path), path, leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
    table = ("embedder", "input_embedding")
    leaves[table] = dataclasses.replace(leaves[table], shape=(rows, leaves[table].shape[1]))
    assert kaggle.recognise_shapes(tmp_path, leaves) == dataclasses.replace(config, vocab_size=vocab_size)


def test_shapes_of_no_preset_are_not_guessed(golden, tmp_path):
    save(deepmind_flat(flat(golden[0].params), False), tmp_path / "m")
    refused(tmp_path / "m", "has no config.json, and no preset has the shapes of its tensors (vocab_size 384")
    save({"params": {"dense": {"kernel": np.zeros(3)}}}, tmp_path / "other")
    refused(tmp_path / "other", "its arrays are not those of a Gemma 2 or 3")


def test_every_wrong_array_is_named(golden, tmp_path):
    weights = flat(golden[0].params)
    del weights["layer_1/mlp/linear"]
    weights["layer_2/extra/w"] = np.zeros(3, np.float32)
    weights["final_norm/scale"] = np.zeros(7, np.float32)
    weights["layer_0/pre_ffw_norm/scale"] = np.zeros(48, np.int32)
    refused(
        folder_for(golden[0], tmp_path, deepmind_flat(weights, False)),
        "missing: transformer/layer_1/mlp/linear",
        "not in this model: transformer/layer_2/extra/w",
        "transformer/final_norm/scale: shape (7,), expected (48,)",
        "transformer/layer_0/pre_ffw_norm/scale: dtype int32, expected floating-point numbers",
    )


def test_two_names_of_one_array_are_refused(golden, tmp_path):
    weights = flat(golden[0].params)
    tree = nested({**weights, "transformer/final_norm/scale": weights["final_norm/scale"]})
    refused(folder_for(golden[0], tmp_path, tree), "final_norm/scale is stored as ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(golden, value, tmp_path):
    weights = flat(golden[0].params)
    for name in ("layer_1/mlp/gating_einsum", "layer_3/post_ffw_norm/scale"):
        weights[name][..., -1] = value
    text = refused(
        folder_for(golden[0], tmp_path, deepmind_flat(weights, False)),
        "transformer/layer_1/mlp/gating_einsum: has values that are NaN or infinite (as float32)",
        "transformer/layer_3/post_ffw_norm/scale: has values",
    )
    assert text.count("\n") == 2


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("damage", ["cut short", "gone", "emptied"])
def test_a_damaged_array_is_named(golden, damage, zarr3, tmp_path):
    tree = deepmind_flat(flat(golden[0].params), False)
    folder = folder_for(golden[0], tmp_path, tree, use_ocdbt=False, use_zarr3=zarr3)
    inside = folder / "gemma2-2b" / "transformer" / "layer_1" / "mlp.linear"
    chunks = [file for file in inside.rglob("*") if file.is_file() and "zarr" not in file.name]
    assert chunks
    for chunk in chunks:
        data = chunk.read_bytes()
        chunk.unlink()
        if damage != "gone":
            chunk.write_bytes(data[: len(data) // 2] if damage == "cut short" else b"")
    text = refused(folder, "transformer/layer_1/mlp/linear: damaged: ")
    assert text.count("\n") == 1


# In a process of its own: of reads that fail, Orbax leaves coroutines behind, which Python reports when it clears them.
CUT_SHORT = """
import pathlib, sys
import jax, numpy as np
import gemma
folder, said = pathlib.Path(sys.argv[1]), set()
whole = gemma.load(folder).params
for file in [file for file in (folder / "weights").rglob("*") if file.is_file()]:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    try:
        jax.tree.map(np.testing.assert_array_equal, gemma.load(folder).params, whole)  # reading does not need this file
    except ValueError as error:
        said.add(str(error).splitlines()[0].removeprefix(str(folder)))
        named = [line.split(":")[:2] for line in str(error).splitlines()[1:13]]
        assert all(name.startswith("  transformer/") and problem == " damaged" for name, problem in named), error
    file.write_bytes(data)
jax.tree.map(np.testing.assert_array_equal, gemma.load(folder).params, whole)
print(*sorted(said), sep="\\n")
"""


def test_files_cut_short_never_load(golden, tmp_path):
    """Every file of a checkpoint in turn: arrays are named, or the folder where its list of arrays is concerned."""
    gemma.save(golden[0], tmp_path / "m")
    process = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, tmp_path / "m"],
        cwd=Path(gemma.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "/weights cannot be read as an Orbax checkpoint, its files are damaged: none of its arrays can be read",
        "/weights does not hold this model:",
    ]


def test_the_file_is_deepminds_flat_dict_of_dicts(golden, tmp_path):
    gemma.save(golden[0], tmp_path / "m")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(tmp_path / "m" / "weights")
    assert tree["transformer/layer_0/attn/q_einsum"]["w"].shape == (4, 48, 16)
    assert set(tree["transformer/layer_3/mlp"]) == {"gating_einsum", "linear"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
