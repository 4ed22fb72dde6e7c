"""Words of config.json and keys of GGUF: honoured, harmless, or refused by name. RoPE as transformers 5.23 reads it."""

import gguf as package
import pytest

import gemma
from gemma.checkpoints import dialects
from tests.gemma import ggufs, small
from tests.gemma.refusing import refused

TWO = {"model_type": "gemma2", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 7}
THREE = TWO | {"model_type": "gemma3_text"}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def plain(theta):
    return {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize(
    ("base", "words", "want"),
    [
        (TWO, {"rope_theta": 500.0}, (500.0, 500.0, 1.0)),
        (TWO, {"rope_parameters": plain(500.0), "rope_theta": 7.0}, (500.0, 500.0, 1.0)),
        (TWO, {"rope_parameters": {"rope_type": "linear", "factor": 1.0}}, (1e4, 1e4, 1.0)),
        (THREE, {}, (1e6, 1e4, 1.0)),
        (THREE, {"rope_parameters": {"full_attention": plain(500.0)}}, (500.0, 1e4, 1.0)),
        (THREE, {"rope_parameters": {"sliding_attention": plain(500.0)}}, (1e6, 500.0, 1.0)),
        (THREE, {"rope_parameters": {"full_attention": None, "sliding_attention": None}}, (1e6, 1e4, 1.0)),
        (THREE, {"rope_parameters": {"full_attention": LINEAR}, "rope_local_base_freq": 9.0}, (1e6, 9.0, 8.0)),
        (THREE, {"rope_parameters": None, "rope_scaling": LINEAR, "rope_theta": 500.0}, (500.0, 1e4, 8.0)),
        (THREE, {"rope_parameters": {"full_attention": LINEAR}, "rope_scaling": LINEAR}, (1e6, 1e4, 8.0)),
        (THREE, {"rope_parameters": {}, "rope_scaling": None}, (1e6, 1e4, 1.0)),
        (THREE, {"rope_parameters": plain(1e6)}, (1e6, 1e4, 1.0)),  # flat, but says what is read
    ],
)
def test_rope_is_read_as_transformers_reads_it(base, words, want):
    config = dialects.from_huggingface(base | words, "m")
    assert (config.rope_base, config.local_rope_base, config.rope_scale) == want


@pytest.mark.parametrize(
    ("base", "words", "said"),
    [
        (TWO, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, r"RoPE.*linear.*not divided|only positions"),
        (TWO, {"rope_parameters": plain(1e4), "rope_scaling": LINEAR}, r"rope_scaling says the RoPE .*rope_parameters"),
        (TWO, {"rope_parameters": plain(1e4), "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"yarn"),
        (TWO, {"rope_parameters": {"full_attention": plain(1e4)}}, r"rope_parameters has \['full_attention'\]"),
        (TWO, {"rope_parameters": {"sliding_attention": None}}, r"rope_parameters has \['sliding_attention'\]"),
        (
            THREE,
            {"rope_parameters": {"full_attention": plain(1e6)}, "rope_scaling": LINEAR},
            r"rope_scaling says .*full_a",
        ),
        (THREE, {"rope_parameters": plain(20_000.0)}, r"rope_parameters has .*belongs to neither full_attention nor"),
        (THREE, {"rope_parameters": LINEAR}, r"rope_parameters has .*belongs to neither full_attention nor"),
        (
            THREE,
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            r"rope_scaling .*transformers 5 overlooks.*rope_type",
        ),
        (THREE, {"rope_scaling": {"rope_type": "linear"}}, r"the type linear needs a factor"),
        (THREE, {"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor"),
        (THREE, {"rope_scaling": LINEAR | {"mrope_section": [1, 1]}}, r"mrope_section is not computed here"),
        (THREE, {"rope_parameters": "default"}, r"rope_parameters is 'default', expected a dict"),
        (THREE, {"rope_parameters": {"full_attention": 7}}, r"full_attention 7, expected a dict"),
    ],
)
def test_rope_of_another_kind_or_two_that_disagree(base, words, said):
    with pytest.raises(ValueError, match=said):
        dialects.from_huggingface(base | words, "m")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (TWO, {"is_causal": False}),
        (THREE, {"causal": False}),
        (THREE, {"use_bidirectional_attention": "all"}),
        (TWO, {"partial_rotary_factor": 0.5}),
        (THREE, {"attn_logit_softcapping": 50.0}),
        (TWO, {"mlp_bias": True}),
        (TWO, {"add_cross_attention": True}),
        (TWO, {"pruned_heads": {"0": [1]}}),
        (TWO, {"quantization": {"bits": 4}}),
        (TWO, {"sliding_window_pattern": 6}),
        (THREE, {"sliding_window_pattern": 0}),
        (TWO, {"hidden_act": "silu"}),
        (TWO, {"auto_map": {"AutoModel": "custom.Gemma"}}),
        (THREE, {"num_kv_shared_layers": 2}),
        (TWO, {"residual_multiplier": 0.5}),
        (TWO, {"rms_norm_eps": True}),
    ],
)
def test_a_word_that_changes_the_model_is_refused_by_name(base, words):
    with pytest.raises(ValueError, match=next(iter(words))):
        dialects.from_huggingface(base | words, "m")


@pytest.mark.parametrize("base", [TWO, THREE])
def test_harmless_words_and_null(base):
    words = {
        "attention_dropout": 0.1,
        "torch_dtype": "bfloat16",
        "dtype": "float16",
        "_attn_implementation_autoset": True,
        "transformers_version": "4.57.1",
        "unsloth_fixed": True,
        "eos_token_id": [1, 106],
        "id2label": {"0": "LABEL_0"},
        "a_word_of_the_future": None,
        "quantization_config": None,
        "use_bidirectional_attention": None,
        "rms_norm_eps": 1e-06,
        "is_causal": True,
    }
    assert dialects.from_huggingface(base | words, "m") == dialects.from_huggingface(base, "m")


def test_final_softcaps_of_gemma_3_are_transformers():
    """Gemma3ForCausalLM applies one; the model with images overlooks it."""
    assert dialects.from_huggingface(THREE | {"final_logit_softcapping": 9.0}, "m").final_softcap == 9.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping is 9\.0"):
        dialects.from_huggingface(
            {"model_type": "gemma3", "text_config": THREE | {"final_logit_softcapping": 9.0}}, "m"
        )


@pytest.mark.parametrize(
    "words",
    [{"quantization_config": {"bits": 4}}, {"sliding_window": 7}, {"is_causal": False}, {"rope_scaling": LINEAR}],
)
def test_words_around_a_text_config_count_too(words):
    outer = {
        "model_type": "gemma3",
        "vision_config": {"hidden_size": 3},
        "mm_tokens_per_image": 256,
        "text_config": THREE,
    }
    assert dialects.from_huggingface(outer | {"sliding_window": None}, "m").num_layers == 7
    with pytest.raises(ValueError, match=next(iter(words))):
        dialects.from_huggingface(outer | words, "m")


def test_without_a_window_all_layers_must_be_global():
    words = {"sliding_window": None, "layer_types": ["full_attention"] * 7}
    assert dialects.from_huggingface(TWO | words, "m").layer_kinds == ("global",) * 7
    with pytest.raises(ValueError, match=r"window must be a positive integer, got None"):
        dialects.from_huggingface(TWO | {"sliding_window": None}, "m")


def test_untied_embeddings_without_an_output_embedding(tmp_path):
    gemma.save(small.model(), tmp_path, "huggingface")
    small.edit(tmp_path, tie_word_embeddings=False)
    refused(tmp_path, "tie_word_embeddings is False, and the weights have no lm_head.weight")


def write(path, model, **keys):
    """A GGUF file with more metadata."""
    plain = package.GGUFWriter.write_header_to_file

    def more(writer, *rest):
        for key, value in keys.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key.replace("__", "."), value)
        return plain(writer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.GGUFWriter, "write_header_to_file", more)
        return ggufs.write(path, model, words=[])


@pytest.mark.parametrize(
    ("kind", "keys", "said"),
    [
        ({}, {"gemma2__rope__scaling__type": "linear", "gemma2__rope__scaling__factor": 4.0}, "RoPE of Gemma 2 is not"),
        ({}, {"gemma2__rope__scaling__factor": 4.0}, "gemma2.rope.scaling.factor is 4.0"),
        (small.GEMMA_3, {"gemma3__rope__scaling__type": "yarn"}, "gemma3.rope.scaling.type is 'yarn'"),
        (small.GEMMA_3, {"gemma3__rope__scaling__type": "longrope"}, "gemma3.rope.scaling.type is 'longrope'"),
        (small.GEMMA_3, {"gemma3__rope__dimension_count": 4}, "gemma3.rope.dimension_count is 4"),
        ({}, {"gemma2__attention__value_length": 4}, "gemma2.attention.value_length is 4"),
        (small.GEMMA_3, {"gemma3__attention__causal": False}, "gemma3.attention.causal is False"),
        (small.GEMMA_3, {"gemma3__final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping is 30.0"),
        (small.GEMMA_3, {"gemma3__attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping is 50.0"),
        ({}, {"gemma2__expert_count": 8}, "gemma2.expert_count is 8"),
        ({}, {"gemma2__rope__scale_linear": 2.0}, "gemma2.rope.scale_linear is 2.0"),
        ({}, {"gemma2__a_key_of_the_future": 1}, "gemma2.a_key_of_the_future is 1, which this package does not know"),
        ({}, {"general__type": "adapter"}, "general.type is 'adapter'"),
        (small.GEMMA_3, {"gemma3__attention__sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ],
)
def test_a_key_of_gguf_that_changes_the_model_is_refused_by_name(kind, keys, said, tmp_path):
    refused(write(tmp_path / "m.gguf", small.model(**kind), **keys), said)


def test_harmless_keys_of_gguf(tmp_path):
    keys = {
        "gemma3__context_length": 512,
        "gemma3__rope__dimension_count": 8,
        "gemma3__attention__value_length": 8,
        "gemma3__attention__causal": True,
        "gemma3__rope__scaling__type": "none",
        "general__quantized_by": "somebody",
        "quantize__imatrix__file": "x.dat",
        "tokenizer__chat_template": "{{ messages }}",
    }
    config = gemma.load(write(tmp_path / "m.gguf", small.model(**small.GEMMA_3), **keys)).config
    assert (config.rope_base, config.rope_scale, config.head_dim) == (1e6, 1.0, 8)
