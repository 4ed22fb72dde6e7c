import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import gemma
from gemma.checkpoints import kaggle


@pytest.fixture
def folder(golden, tmp_path):
    gemma.save(golden[0], tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_is_exact(golden, folder):
    loaded = gemma.load(folder)
    assert loaded.config == golden[0].config
    assert loaded.tokenizer is None
    jax.tree.map(np.testing.assert_array_equal, loaded.params, golden[0].params)


def test_the_file_is_deepminds_flat_dict_of_dicts(folder):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(folder / "weights")
    assert tree["transformer/layer_0/attn/q_einsum"]["w"].shape == (4, 48, 16)
    assert set(tree["transformer/layer_3/mlp"]) == {"gating_einsum", "linear"}


def test_dtype_and_mesh(folder, meshes):
    model = gemma.load(folder, dtype=jnp.bfloat16, mesh=meshes(4, 2))
    leaf = model.params["layer_0"]["mlp"]["linear"]
    assert leaf.dtype == jnp.bfloat16
    assert len(leaf.sharding.device_set) == 8


def test_bfloat16_survives_saving(golden, tmp_path):
    rounded = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), golden[0].params)
    gemma.save(gemma.Model(rounded, golden[0].config), tmp_path / "m")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), gemma.load(tmp_path / "m").params, rounded
    )


def test_every_wrong_tensor_is_named(golden, tmp_path):
    params = jax.tree.map(np.asarray, golden[0].params)
    del params["layer_1"]["mlp"]["linear"]
    params["layer_2"]["extra"] = {"w": np.zeros(3, np.float32)}
    params["final_norm"]["scale"] = np.zeros(7, np.float32)
    gemma.save(golden[0], tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "weights")
    kaggle.write(params, tmp_path / "m" / "weights")
    with pytest.raises(ValueError) as error:
        gemma.load(tmp_path / "m")
    text = str(error.value)
    assert "missing: transformer/layer_1/mlp/linear" in text
    assert "not in this model: transformer/layer_2/extra/w" in text
    assert "transformer/final_norm/scale: shape (7,), expected (48,)" in text


def test_what_cannot_be_loaded_says_why(golden, folder, tmp_path):
    with pytest.raises(ValueError, match=r"weights of gemma2-2b do not come with this package"):
        gemma.load("gemma2-2b")
    with pytest.raises(ValueError, match=r"neither a folder nor a model"):
        gemma.load(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        gemma.load(folder)
    (folder / "config.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(ValueError, match=r"missing \["):
        gemma.load(folder)
    with pytest.raises(ValueError, match=r"weights exists"):
        gemma.save(golden[0], folder)


def test_a_model_is_a_pytree(golden):
    model, expected = golden
    logits = jax.jit(lambda m, t: m.apply(t))(model, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def test_tokens_of_a_wrong_shape_are_refused(golden):
    with pytest.raises(ValueError, match=r"integers of shape \[B, T\], got int32\[5\]"):
        golden[0].apply(np.zeros(5, np.int32))
    with pytest.raises(ValueError, match=r"mask must be \[1, 5, 5\]"):
        golden[0].apply(np.zeros((1, 5), np.int32), mask=np.ones((1, 5, 4), bool))
