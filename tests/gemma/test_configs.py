import dataclasses

import jax
import pytest

import gemma
from gemma import configs
from gemma.model import param_shapes


# Totals as on the models' cards: 2.614B, 9.242B, 27.227B.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gemma2-2b", 2_614_341_888), ("gemma2-9b", 9_241_705_984), ("gemma2-27b", 27_227_128_320)],
)
def test_parameter_counts_of_the_real_models(name, parameters):
    leaves = jax.tree.leaves(param_shapes(gemma.config(name)))
    assert sum(leaf.size for leaf in leaves) == parameters


def test_parameters_are_named_as_in_deepminds_checkpoint():
    tree = param_shapes(gemma.config("gemma2-2b"))
    assert tree["embedder"]["input_embedding"].shape == (256_000, 2304)
    block = tree["layer_25"]
    assert block["attn"]["q_einsum"]["w"].shape == (8, 2304, 256)
    assert block["attn"]["kv_einsum"]["w"].shape == (2, 4, 2304, 256)
    assert block["attn"]["attn_vec_einsum"]["w"].shape == (8, 256, 2304)
    assert block["mlp"]["gating_einsum"].shape == (2, 2304, 9216)
    assert block["mlp"]["linear"].shape == (9216, 2304)
    norms = {"pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm"}
    assert set(block) == {"attn", "mlp"} | norms
    assert tree["final_norm"]["scale"].shape == (2304,)


def test_layers_start_local_and_alternate():
    assert gemma.config("gemma2-2b").layer_kinds[:4] == ("local", "global", "local", "global")
    assert gemma.config("gemma2-2b").query_scale == 256**-0.5
    assert gemma.config("gemma2-27b").query_scale == pytest.approx((4608 / 32) ** -0.5)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'gemma2-tyny'.*did you mean 'gemma2-tiny'"):
        gemma.config("gemma2-tyny")


def test_a_config_survives_json_and_refuses_wrong_fields():
    config = gemma.config("gemma2-9b")
    assert configs.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"missing \['vocab_size'\], unknown \['vocabulary'\]"):
        configs.from_dict({**{k: v for k, v in config.to_dict().items() if k != "vocab_size"}, "vocabulary": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"num_layers": True}, "num_layers must be a positive integer"),
        ({"vocab_size": 10**19}, r"vocab_size must be less than 2\^31, as every axis is, got 10000000000000000000"),
        ({"window": 2**31}, r"window must be less than 2\^31"),
        ({"rope_base": 10**400}, r"rope_base must be a positive number below 2\^127"),
        ({"rope_scale": float("nan")}, "rope_scale must be a positive number"),
        ({"layer_pattern": ("sliding",)}, "layer_pattern takes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(gemma.config("gemma2-tiny"), **change)


def test_a_number_of_twenty_digits_is_a_float_where_it_is_no_size():
    config = dataclasses.replace(gemma.config("gemma2-tiny"), rope_base=10**19)
    assert isinstance(config.rope_base, float) and config.rope_base == 1e19
