"""`gemma.load` and `gemma.save` as a whole: what goes round, where it lands, and what is refused before any tensor."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import gemma
from gemma import sharding
from tests.gemma import ggufs
from tests.gemma import golden as reference

ROOT = Path(__file__).parents[2]


def identical(one, other):
    """Two trees of parameters, to the bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
@pytest.mark.parametrize("folder", [reference.GEMMA_2, reference.GEMMA_3], ids=["gemma2", "gemma3"])
def test_what_is_saved_is_loaded(folder, format, tmp_path):
    model = gemma.load(folder)
    gemma.save(model, tmp_path / "m", format)
    again = gemma.load(tmp_path / "m")
    assert again.config == model.config and again.tokenizer is None
    identical(again.params, model.params)


@pytest.mark.slow
def test_conversions_go_round_to_the_bit(tiny, tmp_path):
    """Orbax -> Hugging Face -> Orbax, with a tokenizer, in float32 and in bfloat16."""
    for dtype in (jnp.float32, jnp.bfloat16):
        at = tmp_path / jnp.dtype(dtype).name
        first = gemma.load("gemma2-tiny", dtype=dtype)
        gemma.save(first, at / "huggingface", "huggingface")
        second = gemma.load(at / "huggingface", dtype=dtype)
        gemma.save(second, at / "orbax")
        third = gemma.load(at / "orbax", dtype=dtype)
        gemma.save(third, at / "again", "huggingface")
        for model in (second, third):
            assert model.config == first.config and model.tokenizer == tiny.tokenizer
            identical(model.params, first.params)
        for name in ("model.safetensors", "config.json", "tokenizer.model"):
            assert (at / "again" / name).read_bytes() == (at / "huggingface" / name).read_bytes()


@pytest.mark.parametrize("format", ["orbax", "huggingface", "gguf"])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_parameters_lie_where_the_rules_say(golden_3, format, shape, tmp_path):
    model, folder = golden_3[0], tmp_path / "m"
    if format == "gguf":
        folder = ggufs.write(tmp_path / "m.gguf", model)
    else:
        gemma.save(model, folder, format)
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "model"))
    loaded = gemma.load(folder, mesh=mesh)
    want = sharding.param_shardings(model.params, mesh)
    for leaf, place in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(want), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    if format != "gguf":
        identical(loaded.params, model.params)


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_dtype_is_asked_for_and_float32_otherwise(golden, format, tmp_path):
    rounded = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), golden[0].params)
    gemma.save(gemma.Model(rounded, golden[0].config), tmp_path / "m", format)
    assert gemma.load(tmp_path / "m").dtype == jnp.float32
    identical(gemma.load(tmp_path / "m").params, jax.tree.map(lambda w: w.astype(jnp.float32), rounded))
    half = gemma.load(tmp_path / "m", dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    identical(half.params, rounded)


def test_a_dtype_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be a floating-point one.*got int8"):
        gemma.load("gemma2-tiny", dtype=jnp.int8)


def test_a_dtype_too_narrow_for_the_values_names_them(golden, tmp_path):
    params = jax.tree.map(np.array, golden[0].params)
    params["layer_1"]["mlp"]["linear"][3, 4] = 1e6
    gemma.save(gemma.Model(params, golden[0].config), tmp_path / "m")
    assert np.asarray(gemma.load(tmp_path / "m").params["layer_1"]["mlp"]["linear"]).max() == 1e6
    with pytest.raises(ValueError, match=r"layer_1/mlp/linear: has values that are NaN or infinite \(as float16\)"):
        gemma.load(tmp_path / "m", dtype=jnp.float16)


def test_what_is_there_is_not_written_over(golden, tmp_path):
    gemma.save(golden[0], tmp_path / "m")
    with pytest.raises(ValueError, match=r"weights exists"):
        gemma.save(golden[0], tmp_path / "m")
    gemma.save(golden[0], tmp_path / "h", "huggingface")
    for format in ("huggingface", "orbax"):
        with pytest.raises(ValueError, match=r"model\.safetensors exists"):
            gemma.save(golden[0], tmp_path / "h", format)
    with pytest.raises(ValueError, match=r"weights exists"):
        gemma.save(golden[0], tmp_path / "m", "huggingface")
    with pytest.raises(ValueError, match=r"format is 'orbax' or 'huggingface', got 'pickle'"):
        gemma.save(golden[0], tmp_path / "p", "pickle")
    assert not (tmp_path / "p").exists()


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"gemma2-2b do not come with this package.*such as 'google/gemma-2-2b'"):
        gemma.load("gemma2-2b")
    with pytest.raises(ValueError, match=r"neither a folder, a file, .* did you mean 'gemma2-tiny'"):
        gemma.load("gemma2-tiney")
    with pytest.raises(ValueError, match=r"neither a folder, a file"):
        gemma.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no weights: no \*\.safetensors, no folder that Orbax wrote"):
        gemma.load(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ValueError, match=r"notes\.txt is neither a \.safetensors nor a \.gguf file"):
        gemma.load(tmp_path / "notes.txt")


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "config.json").write_text((reference.GEMMA_2 / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle, which can run code and is not read"):
        gemma.load(tmp_path)
    for file in [*(ROOT / "gemma").rglob("*.py"), *(ROOT / "tests" / "peers").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert "import pickle" not in text and "allow_pickle" not in text and "torch.load" not in text, file


def test_a_config_that_is_none(golden, tmp_path):
    gemma.save(golden[0], tmp_path)
    config = tmp_path / "config.json"
    for text, said in (
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json does not describe a model"),
        (json.dumps({"name": "x"}), r"missing \["),
        (json.dumps({**golden[0].config.to_dict(), "d_model": "48"}), r"d_model must be a positive integer, got '48'"),
        (json.dumps({"model_type": "llama"}), r"model_type 'llama': this package has gemma2, gemma3"),
        (json.dumps({"model_type": "gemma2", "hidden_size": None}), r"d_model must be a positive integer, got None"),
        (json.dumps({**golden[0].config.to_dict(), "d_ff": 10**19}), r"d_ff must be less than 2\^31"),
        (json.dumps({"model_type": "gemma2", "vocab_size": 10**19}), r"vocab_size must be less than 2\^31"),
        (json.dumps({"model_type": "gemma2", "query_pre_attn_scalar": 10**400}), r"does not describe a model"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=said):
            gemma.load(tmp_path)


@pytest.mark.parametrize("name", ["a[b]", "a\\b", "c*"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused_before_anything_is_written(golden, tmp_path, name):
    with pytest.raises(ValueError, match=r"in its path, where Orbax does not write whole checkpoints"):
        gemma.save(golden[0], tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    gemma.save(golden[0], tmp_path / name, "huggingface")
    identical(gemma.load(tmp_path / name).params, golden[0].params)


def test_a_checkpoint_is_read_where_it_was_moved_to(golden, tmp_path):
    gemma.save(golden[0], tmp_path / "plain")
    shutil.move(tmp_path / "plain", tmp_path / "a[b]")
    identical(gemma.load(tmp_path / "a[b]").params, golden[0].params)


def test_a_folder_with_two_checkpoints_asks_which(golden, tmp_path):
    for name in ("a", "b"):
        gemma.save(golden[0], tmp_path / name)
        shutil.move(tmp_path / name / "weights", tmp_path / f"orbax_{name}")
    with pytest.raises(ValueError, match=r"several checkpoints, give the path of one of them: orbax_a, orbax_b"):
        gemma.load(tmp_path)
    shutil.copy(tmp_path / "a" / "config.json", tmp_path)
    identical(gemma.load(tmp_path / "orbax_b").params, golden[0].params)


def test_a_tokenizer_larger_than_the_model_is_refused(golden, tiny, tmp_path):
    gemma.save(gemma.Model(golden[0].params, golden[0].config, tiny.tokenizer), tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.model has 4096 pieces, but the model has only 384 embeddings"):
        gemma.load(tmp_path)


def test_a_model_is_a_pytree(golden):
    model, expected = golden
    logits = jax.jit(lambda m, t: m.apply(t))(model, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def test_tokens_of_a_wrong_shape_are_refused(golden):
    with pytest.raises(ValueError, match=r"integers of shape \[B, T\], got int32\[5\]"):
        golden[0].apply(np.zeros(5, np.int32))
    with pytest.raises(ValueError, match=r"mask must be \[1, 5, 5\]"):
        golden[0].apply(np.zeros((1, 5), np.int32), mask=np.ones((1, 5, 4), bool))
