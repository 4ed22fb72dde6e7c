"""Lists the words of a checkpoint's metadata that matter: one list for `config.json` and for GGUF.

A word is honoured (the forward pass follows it), fixed (the forward pass takes one value for granted, so a file with
another value is of another model), or harmless (it changes no logit). A word on no list is refused by name: a word that
this package does not know may change the model. A word whose value is null says nothing.

`config.json` of Gemma 2 and 3: transformers 4.57 and 5.23 (`configuration_utils.py`, `models/gemma{2,3}`). GGUF:
llama.cpp's `llama-arch.cpp` and `src/models/gemma{2,3}.cpp`.
"""

from collections.abc import Mapping

# Words that the forward pass follows: (the words of config.json, the keys of GGUF).
_HONOURED = (
    (("model_type", "architectures", "_name_or_path"), ()),
    (("vocab_size",), ("vocab_size",)),
    (("num_hidden_layers",), ("block_count",)),
    (("hidden_size",), ("embedding_length",)),
    (("intermediate_size",), ("feed_forward_length",)),
    (("num_attention_heads",), ("attention.head_count",)),
    (("num_key_value_heads",), ("attention.head_count_kv",)),
    (("head_dim",), ("attention.key_length",)),
    (("query_pre_attn_scalar",), ()),
    (("sliding_window",), ("attention.sliding_window",)),
    (
        ("layer_types", "sliding_window_pattern", "_sliding_window_pattern"),
        ("attention.sliding_window_pattern",),
    ),
    (("attn_logit_softcapping",), ("attn_logit_softcapping",)),
    (("final_logit_softcapping",), ("final_logit_softcapping",)),
    (("rope_parameters", "rope_theta", "rope_local_base_freq"), ("rope.freq_base", "rope.freq_base_swa")),
    (("rope_scaling",), ("rope.scaling.type", "rope.scaling.factor")),
    (("tie_word_embeddings",), ()),
)

# Values that the forward pass takes for granted: (the words of config.json, the keys of GGUF, the value).
_FIXED = (
    (("hidden_activation", "hidden_act"), (), "gelu_pytorch_tanh"),
    (("rms_norm_eps",), ("attention.layer_norm_rms_epsilon",), 1e-6),
    (("attention_bias", "mlp_bias"), (), False),
    (("is_causal", "causal"), ("attention.causal",), True),
    (("use_bidirectional_attention",), (), False),
    (("partial_rotary_factor",), ("rope.scale_linear", "rope.scaling.attn_factor"), 1.0),
    (("is_encoder_decoder", "add_cross_attention"), ("use_parallel_residual",), False),
    ((), ("expert_count", "expert_used_count", "pooling_type", "attention.shared_kv_layers"), 0),
    ((), ("logit_scale",), 1.0),
    (("pruned_heads",), (), {}),
    (("chunk_size_feed_forward",), (), 0),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Harmless in config.json: words about training, files, output, text and generation.
_HARMLESS_CONFIG = _words(
    """
    transformers_version torch_dtype dtype use_cache cache_implementation initializer_range attention_dropout
    hidden_dropout max_position_embeddings original_max_position_embeddings model_max_length max_seq_length
    attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    _experts_implementation experts_implementation _flash_attn_2_enabled use_flash_attention use_flash_attn
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id bos_token eos_token
    pad_token tokenizer_class prefix finetuning_task task_specific_params problem_type num_labels id2label label2id
    return_dict use_return_dict output_hidden_states output_attentions output_scores return_dict_in_generate torchscript
    use_bfloat16 tf_legacy_loss is_decoder cross_attention_hidden_size tie_encoder_decoder _commit_hash name_or_path
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty max_new_tokens generation_config
    unsloth_fixed unsloth_version unsloth_processed_in_place transformers.js_config license language model_name
    pretraining_tp gradient_checkpointing use_gradient_checkpointing neftune_noise_alpha
    boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id mm_tokens_per_image
    vision_config
    """
)
_IMAGE_WORDS = ("text_config", "vision_config", "mm_tokens_per_image")

# Harmless in GGUF, below the architecture's name.
_HARMLESS_GGUF = _words(
    """
    context_length tensor_data_layout features_length attention.layer_norm_epsilon rope.scaling.original_context_length
    rope.scaling.finetuned rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast
    rope.scaling.yarn_beta_slow rope.scaling.yarn_log_multiplier
    """
)
# Keys that must equal another key where they are present.
_EQUAL_GGUF = {
    "attention.value_length": "attention.key_length",
    "attention.key_length_swa": "attention.key_length",
    "attention.value_length_swa": "attention.key_length",
    "rope.dimension_count": "attention.key_length",
    "rope.dimension_count_swa": "attention.key_length",
}


def check_config(values: Mapping) -> None:
    """Raises ValueError with each word of a config.json that changes the model and is not honoured."""
    honoured = {word for words, _ in _HONOURED for word in words}
    fixed = {word: value for words, _, value in _FIXED for word in words}
    _refuse(values, honoured, fixed, _HARMLESS_CONFIG)


def check_image_config(values: Mapping) -> None:
    """Checks the words around the `text_config` of a Gemma 3 that sees images, as `check_config` does.

    A word of the text model that also stands outside of `text_config` must say the same: transformers overlooks it.
    """
    text = values.get("text_config") or {}
    outer = {word: value for word, value in values.items() if word not in _IMAGE_WORDS and word != "model_type"}
    honoured = {word for words, _ in _HONOURED for word in words}
    apart = [
        f"{word} is {value!r} beside a text_config that says {text.get(word)!r}"
        for word, value in outer.items()
        if word in honoured - {"architectures", "_name_or_path", "tie_word_embeddings"}
        and value is not None
        and value != text.get(word)
    ]
    if apart:
        raise ValueError("; ".join(apart) + ": it is not clear which of the two is meant, so remove one")
    check_config(outer)


def check_gguf(architecture: str, metadata: Mapping) -> None:
    """Checks the metadata of a GGUF file, as `check_config` does.

    Keys of other namespaces (`general`, `tokenizer`, …) are harmless.
    """
    prefix = architecture + "."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    honoured = {key for _, keys in _HONOURED for key in keys}
    fixed = {key: value for _, keys, value in _FIXED for key in keys}
    fixed |= {key: values.get(other) for key, other in _EQUAL_GGUF.items()}
    _refuse(values, honoured, fixed, _HARMLESS_GGUF, prefix)
    if metadata.get("general.type", "model") != "model":
        raise ValueError(f"general.type is {metadata['general.type']!r}: only whole models are read from GGUF")


def _refuse(values: Mapping, honoured: set, fixed: Mapping, harmless: frozenset, prefix: str = "") -> None:
    problems = []
    for word, value in values.items():
        if word in honoured or word in harmless or value is None:
            continue
        if word not in fixed:
            problems.append(
                f"{prefix}{word} is {value!r:.200}, which this package does not know; it may change the model"
            )
        elif not _equal(value, fixed[word]):
            problems.append(f"{prefix}{word} is {value!r:.200}; for Gemma 2 and 3 only {fixed[word]!r} is supported")
    if problems:
        raise ValueError("; ".join(problems))


def _equal(value: object, want: object) -> bool:
    """Returns whether values are equal: numbers up to float32's precision, which GGUF has; True is no number."""
    if isinstance(want, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value - want) <= 1e-6 * abs(want)
    return value == want and isinstance(value, bool) == isinstance(want, bool)
