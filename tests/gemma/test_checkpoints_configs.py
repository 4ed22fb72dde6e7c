"""config.json in both of transformers' dialects, as on the hub and as saved here."""

import dataclasses
import json

import pytest

import gemma
from gemma.checkpoints import dialects
from tests.gemma import golden as reference

# The hub's files in transformers 4's words, what concerns the model; the larger Gemma 3 leave out what is the default.
GEMMA_2 = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "head_dim": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "attention_bias": False,
    "vocab_size": 256000,
}
GEMMA_3_TEXT = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
STRETCHED = {
    "model_type": "gemma3_text",
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def sizes(layers, width, hidden, heads=None, kv=None):
    values = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": hidden}
    return values | ({"num_attention_heads": heads, "num_key_value_heads": kv} if heads else {})


HUB = {
    "gemma2-2b": GEMMA_2 | sizes(26, 2304, 9216, 8, 4),
    "gemma2-9b": GEMMA_2 | sizes(42, 3584, 14336, 16, 8),
    "gemma2-27b": GEMMA_2 | sizes(46, 4608, 36864, 32, 16) | {"head_dim": 128, "query_pre_attn_scalar": 144},
    "gemma3-270m": GEMMA_3_TEXT | sizes(18, 640, 2048),
    "gemma3-1b": GEMMA_3_TEXT | sizes(26, 1152, 6912),
    "gemma3-4b": {"model_type": "gemma3", "text_config": STRETCHED | sizes(34, 2560, 10240)},
    "gemma3-12b": {"model_type": "gemma3", "text_config": STRETCHED | sizes(48, 3840, 15360, 16, 8)},
    "gemma3-27b": {
        "model_type": "gemma3",
        "text_config": STRETCHED | sizes(62, 5376, 21504, 32, 16) | {"head_dim": 128, "query_pre_attn_scalar": 168},
    },
}
PRESETS = [*HUB, "gemma2-tiny"]


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_files_are_the_presets(name):
    assert dialects.from_huggingface(HUB[name], "folder") == gemma.config(name)


@pytest.mark.parametrize("name", PRESETS)
def test_each_dialect_alone_says_all(name):
    """Of what is written, the words of transformers 4 and those of 5 each give the model back."""
    values = dialects.to_huggingface(gemma.config(name), "float32")
    assert type(values["query_pre_attn_scalar"]) is int  # transformers 5 takes no other
    four = {k: v for k, v in values.items() if k not in ("rope_parameters", "layer_types", "_name_or_path", "dtype")}
    four["sliding_window_pattern"] = 6 if "gemma3" in name else 2
    five_has_not = ("rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype", "_name_or_path")
    five = {k: v for k, v in values.items() if k not in five_has_not}
    for dialect in (values, four, five):
        assert dialects.from_huggingface(json.loads(json.dumps(dialect)), "folder") == gemma.config(name)


def test_the_golden_files():
    two, three = (gemma.load(folder).config for folder in (reference.GEMMA_2, reference.GEMMA_3))
    assert two == gemma.Config("gemma2_golden", 384, 4, 48, 96, 4, 2, 16, 12**-0.5, 8)
    assert three.layer_kinds == ("local",) * 5 + ("global", "local") and len(three.layer_pattern) == 6
    assert (three.rope_base, three.local_rope_base, three.rope_scale) == (1e6, 1e4, 8.0)
    assert three.qk_norm and three.attn_softcap is None and three.final_softcap is None
    assert (three.query_scale, three.window) == (0.25, 6)


@pytest.mark.parametrize("scale", [256**-0.5, 144**-0.5, 168**-0.5, 12**-0.5, 48**-0.5, 0.1, 1.0, 1 / 3])
def test_query_scales_survive_as_scalars(scale):
    config = dataclasses.replace(gemma.config("gemma3-1b"), query_scale=scale, name="mine")
    values = json.loads(json.dumps(dialects.to_huggingface(config, "float32")))
    again = dialects.from_huggingface(values, "folder")
    assert again.query_scale == pytest.approx(scale, rel=1e-15)
    if scale not in (0.1, 1 / 3):
        assert dataclasses.replace(again, name="mine") == config


def test_the_scalar_of_an_early_converter_is_put_right():
    values = HUB["gemma2-9b"] | {"query_pre_attn_scalar": 224}
    with pytest.warns(UserWarning, match=r"query_pre_attn_scalar is 224 .* 256 is used"):
        assert dialects.from_huggingface(values, "folder") == gemma.config("gemma2-9b")


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        ("gemma2-2b", {"model_type": "gemma"}, r"model_type 'gemma'"),
        ("gemma2-2b", {"hidden_activation": "gelu"}, r"hidden_activation is 'gelu'"),
        ("gemma2-2b", {"rms_norm_eps": 1e-5}, r"rms_norm_eps is 1e-05"),
        ("gemma2-2b", {"attention_bias": True}, r"attention_bias is True"),
        ("gemma2-2b", {"quantization_config": {"bits": 4}}, r"quantization_config is"),
        ("gemma2-2b", {"layer_types": ["full_attention"] * 3}, r"layer_types must be 26 of"),
        ("gemma2-2b", {"layer_types": ["mamba"] * 26}, r"layer_types must be 26 of"),
        ("gemma2-2b", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"RoPE of local layers|not divided"),
        ("gemma3-1b", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"RoPE of global layers is"),
        ("gemma3-1b", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is True"),
        (
            "gemma3-1b",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                }
            },
            r"RoPE of local layers is",
        ),
    ],
)
def test_what_the_forward_pass_does_not_do_is_refused(base, change, said):
    with pytest.raises(ValueError, match=said):
        dialects.from_huggingface(HUB[base] | change, "folder")


def test_what_transformers_has_not_is_not_saved(golden, tmp_path):
    config = dataclasses.replace(golden[0].config, local_rope_base=5.0)
    with pytest.raises(ValueError, match=r"transformers' Gemma 2 has one RoPE"):
        gemma.save(gemma.Model(golden[0].params, config), tmp_path / "m", "huggingface")
    assert not (tmp_path / "m").exists()


def test_a_models_name_survives(golden, tmp_path):
    config = dataclasses.replace(golden[0].config, name="mine")
    gemma.save(gemma.Model(golden[0].params, config), tmp_path / "m", "huggingface")
    assert gemma.load(tmp_path / "m").config.name == "mine"
