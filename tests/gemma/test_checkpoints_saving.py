"""What is saved comes back, here and in transformers' words, or is refused before anything is written."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
from tests.gemma import small

GEMMAS = pytest.mark.parametrize("kind", [{}, small.GEMMA_3], ids=["gemma2", "gemma3"])


@pytest.mark.slow
@GEMMAS
@pytest.mark.parametrize("format", ["orbax", "huggingface"])
@pytest.mark.parametrize(
    "change",
    [
        {"query_scale": 224**-0.5},
        {"query_scale": float(np.float32(0.3**0.5 / 3**0.5)), "d_model": 20, "num_heads": 2},
        {"layer_pattern": ("local",)},
        {"layer_pattern": ("global", "local", "local", "global", "global")},
        {"final_softcap": None},
        {"final_softcap": 7.5},
        {"rope_base": 500.0, "local_rope_base": 500.0},
        {"window": 1000, "head_dim": 4},
    ],
)
def test_configurations_come_back(kind, format, change, tmp_path):
    model = small.model(**(kind | change))
    gemma.save(model, tmp_path, format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 224 is a wrong converter's for Gemma 2 9B alone
        again = gemma.load(tmp_path)
    plain = {"query_scale": 1.0, "layer_pattern": ("local",)}
    assert dataclasses.replace(again.config, **plain) == dataclasses.replace(model.config, **plain)
    assert again.config.layer_kinds == model.config.layer_kinds
    assert np.float32(again.config.query_scale) == np.float32(model.config.query_scale)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({**small.GEMMA_3, "attn_softcap": 5.0}, r"attn_softcap is 5\.0, but transformers' Gemma 3 applies no softcap"),
        ({"query_scale": 0.3}, r"query_scale is 0\.3, which is n \*\* -0\.5 for no integer n"),
        ({**small.GEMMA_3, "query_scale": 2.0}, r"query_scale is 2\.0, which is"),
        ({"d_model": 30}, r"d_model that num_heads divides, got 30 and 4"),
        ({"rope_scale": 8.0}, r"transformers' Gemma 2 has one RoPE"),
        ({"local_rope_base": 5.0}, r"transformers' Gemma 2 has one RoPE"),
    ],
)
def test_what_transformers_cannot_hold_is_refused_and_said_how_it_can_be_saved(change, said, tmp_path):
    model = small.model(**change)
    with pytest.raises(ValueError, match=said):
        gemma.save(model, tmp_path / "m", "huggingface")
    assert not (tmp_path / "m").exists()
    gemma.save(model, tmp_path / "m", "orbax")
    assert dataclasses.replace(gemma.load(tmp_path / "m").config, name="mine") == model.config


def test_a_9b_with_224_would_come_back_as_another(tmp_path):
    """A file that says so is read as the early converter's mistake."""
    config = dataclasses.replace(gemma.config("gemma2-9b"), query_scale=224**-0.5)
    from gemma.checkpoints import dialects

    with pytest.raises(ValueError, match=r"query_scale .* would come back as 0\.0625"):
        dialects.to_huggingface(config, "float32")


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("final_norm", "scale"), np.full(32, np.nan, np.float32), r"final_norm/scale: has values that are NaN"),
        (("final_norm", "scale"), jnp.full(32, jnp.inf), r"final_norm/scale: has values that are NaN or infinite"),
        (("final_norm", "scale"), np.zeros(31, np.float32), r"final_norm/scale: shape \(31,\), expected \(32,\)"),
        (("final_norm", "scale"), np.zeros(32, np.int8), r"final_norm/scale: int8, expected one of float16"),
        (("final_norm", "scale"), [0.0] * 32, r"final_norm/scale: list, expected"),
        (("layer_1", "mlp", "bias"), np.zeros(3, np.float32), r"not in this model: layer_1/mlp/bias"),
        (("layer_1", "mlp", "linear"), None, r"missing: layer_1/mlp/linear"),
    ],
)
def test_parameters_that_would_not_load_are_refused_at_saving(format, path, value, said, tmp_path):
    params = jax.tree.map(lambda x: x, small.model().params)
    *above, last = path
    branch = params
    for key in above:
        branch = branch[key]
    branch.pop(last, None)
    if value is not None:
        branch[last] = value
    with pytest.raises(ValueError, match=said):
        gemma.save(gemma.Model(params, small.model().config), tmp_path / "m", format)
    assert not (tmp_path / "m").exists()


def test_under_jit_nothing_is_saved(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be saved under jit"):
        jax.jit(lambda model: gemma.save(model, tmp_path / "m"))(small.model())


@pytest.mark.slow
def test_the_dtype_that_is_written_loses_nothing(tmp_path):
    """transformers loads all tensors in that of config.json."""
    for dtypes, want in (
        (("bfloat16", "float32"), "float32"),
        (("bfloat16", "float16"), "float32"),
        (("bfloat16", "bfloat16"), "bfloat16"),
    ):
        params = jax.tree.map(lambda x, d=dtypes[0]: x.astype(d), small.model().params)
        params["final_norm"]["scale"] = params["final_norm"]["scale"].astype(dtypes[1])
        folder = tmp_path / "-".join(dtypes)
        gemma.save(gemma.Model(params, small.model().config), folder, "huggingface")
        values = json.loads((folder / "config.json").read_text())
        assert values["dtype"] == values["torch_dtype"] == want
        again = gemma.load(folder)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), again.params, params)


def test_settings_of_the_tokenizer_and_of_generation_are_written(tiny, tmp_path):
    gemma.save(tiny, tmp_path / "with", "huggingface")
    gemma.save(small.model(), tmp_path / "without", "huggingface")
    settings = json.loads((tmp_path / "with" / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is True and settings["bos_token"] == "<bos>"
    ends = json.loads((tmp_path / "with" / "generation_config.json").read_text())["eos_token_id"]
    assert 1 in (ends if isinstance(ends, list) else [ends])
    assert not (tmp_path / "without" / "tokenizer_config.json").exists()
    assert json.loads((tmp_path / "without" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_an_adapters_folder_is_not_written_to(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json exists"):
        gemma.save(small.model(), tmp_path, "huggingface")
