"""Translates between `config.json` of Hugging Face transformers and `gemma.Config`.

transformers has two dialects. Version 5 has `rope_parameters` and `layer_types`; version 4 had `rope_theta`,
`rope_local_base_freq`, `rope_scaling` and `sliding_window_pattern`, and left defaults out of the file. Both are read;
both are written, to one file, as each version overlooks the other's words.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from gemma.checkpoints import rope, words
from gemma.checkpoints.shapes import named
from gemma.configs import GLOBAL, LOCAL, Config

_KINDS = {"sliding_attention": LOCAL, "full_attention": GLOBAL}
_WORDS = {kind: word for word, kind in _KINDS.items()}

# transformers' defaults (4.57, Gemma2Config and Gemma3TextConfig): hub files of Gemma 3 4B and larger rely on them.
_COMMON = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_DEFAULTS = {
    "gemma2": {
        **_COMMON,
        "vocab_size": 256_000,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rope_theta": 10_000.0,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        **_COMMON,
        "vocab_size": 262_208,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
}

# The sizes that tell Gemma 2 9B.
_SHAPE_OF_9B = {
    "hidden_size": 3584,
    "intermediate_size": 14_336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}


def is_huggingface(values: Mapping) -> bool:
    """Returns whether this is a config.json of transformers, of any model."""
    return "model_type" in values or "architectures" in values


def from_huggingface(values: Mapping, name: str) -> Config:
    """Returns the configuration that a config.json describes.

    Args:
        values: the words of the file.
        name: the name of the model if its numbers are not those of a preset.

    Raises:
        ValueError: for another model than Gemma 2 or 3, and for each word that the forward pass does not honour.
    """
    images = values.get("model_type") == "gemma3"
    if images:
        words.check_image_config(values)
        values = {"model_type": "gemma3_text", **(values.get("text_config") or {})}
    kind = values.get("model_type")
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type {kind!r}: this package has gemma2, gemma3 and gemma3_text")
    words.check_config(values)
    values = {**_DEFAULTS[kind], **values}
    _check_softcaps(values, images)
    values["query_pre_attn_scalar"] = _query_scalar(values, name)
    pattern = _pattern(values)
    sizes = {
        "vocab_size": values["vocab_size"],
        "num_layers": values["num_hidden_layers"],
        "d_model": values["hidden_size"],
        "d_ff": values["intermediate_size"],
        "num_heads": values["num_attention_heads"],
        "num_kv_heads": values["num_key_value_heads"],
        "head_dim": values["head_dim"],
    }
    window = values["sliding_window"]
    if window is None and LOCAL not in pattern:  # no layer uses it
        window = values.get("max_position_embeddings") or _COMMON["sliding_window"]
    return named(
        Config(
            name=str(values.get("_name_or_path") or name).rstrip("/").split("/")[-1],
            **sizes,
            query_scale=values["query_pre_attn_scalar"] ** -0.5,
            window=window,
            layer_pattern=pattern,
            attn_softcap=values["attn_logit_softcapping"],
            final_softcap=values["final_logit_softcapping"],
            qk_norm=kind == "gemma3_text",
            **rope.from_huggingface(values),
        )
    )


def _check_softcaps(values: Mapping, images: bool) -> None:
    """Raises ValueError for a softcap of Gemma 3 that transformers has a word for and does not apply."""
    lacks = ["attn_logit_softcapping"] * (values["model_type"] == "gemma3_text") + ["final_logit_softcapping"] * images
    for word in lacks:
        if values[word] is not None:
            raise ValueError(f"{word} is {values[word]!r}: Gemma 3 has no such softcap, and transformers applies none")


def _query_scalar(values: Mapping, name: str) -> float | int:
    """Returns query_pre_attn_scalar, corrected for Gemma 2 9B, for which a converter wrote a wrong number."""
    scalar, shape = values["query_pre_attn_scalar"], tuple(values[word] for word in _SHAPE_OF_9B)
    if values["model_type"] != "gemma2" or scalar != 224 or shape != tuple(_SHAPE_OF_9B.values()):
        return scalar
    warnings.warn(
        f"{name}: query_pre_attn_scalar is 224 in this config.json, from a converter that was wrong about "
        "Gemma 2 9B (huggingface/transformers #31891); 256 is used",
        stacklevel=3,
    )
    return 256


def _pattern(values: Mapping) -> tuple[str, ...]:
    """Returns the kinds of layers, as the shortest pattern that gives them when repeated."""
    kinds = values.get("layer_types")
    if kinds is None:
        period = values.get("_sliding_window_pattern") or values["sliding_window_pattern"]
        if not isinstance(period, int) or period < 1:
            raise ValueError(f"sliding_window_pattern must be a positive integer, got {period!r}")
        if values["model_type"] == "gemma2" and period != 2:
            raise ValueError(
                f"sliding_window_pattern is {period}: Gemma 2's layers alternate, and transformers reads 2"
            )
        return (LOCAL,) * (period - 1) + (GLOBAL,)
    if set(kinds) - set(_KINDS) or len(kinds) != values["num_hidden_layers"]:
        raise ValueError(f"layer_types must be {values['num_hidden_layers']} of {list(_KINDS)}, got {kinds}")
    return shortest_pattern([_KINDS[kind] for kind in kinds])


def shortest_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """Returns the shortest pattern that gives these kinds of layers when repeated; the last may be cut short."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))
    return tuple(kinds[:period])


def to_huggingface(config: Config, dtype: str) -> dict:
    """Returns config.json for a model of this configuration, in both dialects.

    Args:
        config: the configuration.
        dtype: the name of the parameters' dtype.

    Raises:
        ValueError: for a configuration that neither of transformers' two models has, or that would come back as
            another.
    """
    c = config
    _check_savable(c)
    full = {"rope_type": "default", "rope_theta": c.rope_base}
    local = {"rope_type": "default", "rope_theta": c.local_rope_base}
    if c.rope_scale != 1.0:
        full |= {"rope_type": "linear", "factor": c.rope_scale}
    values = {
        "architectures": ["Gemma3ForCausalLM" if c.qk_norm else "Gemma2ForCausalLM"],
        "model_type": "gemma3_text" if c.qk_norm else "gemma2",
        "_name_or_path": c.name,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "query_pre_attn_scalar": _scalar(c.query_scale),
        "sliding_window": c.window,
        "layer_types": [_WORDS[kind] for kind in c.layer_kinds],
        "attn_logit_softcapping": c.attn_softcap,
        "final_logit_softcapping": c.final_softcap,
        "rope_parameters": {"full_attention": full, "sliding_attention": local} if c.qk_norm else full,
        "rope_theta": c.rope_base,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192 if not c.qk_norm else 131_072,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if c.qk_norm:
        values["rope_local_base_freq"] = c.local_rope_base
        values["rope_scaling"] = {"rope_type": "linear", "factor": c.rope_scale} if c.rope_scale != 1.0 else None
    _check_comes_back(c, values)
    return values


def _check_savable(c: Config) -> None:
    """Raises ValueError for a configuration that transformers' models lack."""
    if not c.qk_norm and (c.rope_scale != 1.0 or c.rope_base != c.local_rope_base):
        raise ValueError(f"{c.name}: transformers' Gemma 2 has one RoPE for all layers, so this cannot be saved as it")
    if c.qk_norm and c.attn_softcap is not None:
        raise ValueError(
            f"{c.name}: attn_softcap is {c.attn_softcap}, but transformers' Gemma 3 applies no softcap to its scores: "
            "save it with format='orbax'"
        )
    if not isinstance(_scalar(c.query_scale), int):
        raise ValueError(
            f"{c.name}: query_scale is {c.query_scale}, which is n ** -0.5 for no integer n, and transformers' "
            "query_pre_attn_scalar is an integer: save it with format='orbax'"
        )
    if c.d_model % c.num_heads:
        raise ValueError(
            f"{c.name}: transformers takes only a d_model that num_heads divides, got {c.d_model} and {c.num_heads}: "
            "save it with format='orbax'"
        )


def _check_comes_back(c: Config, values: Mapping) -> None:
    """Raises ValueError if this package would read another configuration from the file than the one saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = from_huggingface(values, c.name)
    differences = [
        f"{field.name} {getattr(c, field.name)!r} would come back as {getattr(again, field.name)!r}"
        for field in dataclasses.fields(c)
        if field.name not in ("name", "layer_pattern", "query_scale")
        and getattr(c, field.name) != getattr(again, field.name)
    ]
    if np.float32(again.query_scale) != np.float32(c.query_scale):
        differences.append(f"query_scale {c.query_scale} would come back as {again.query_scale}")
    if again.layer_kinds != c.layer_kinds:
        differences.append(f"layers {c.layer_kinds} would come back as {again.layer_kinds}")
    if differences:
        raise ValueError(f"{c.name} cannot be saved as transformers' model: " + "; ".join(differences))


def _scalar(query_scale: float) -> float | int:
    """Returns the integer whose -1/2th power is the scale in float32, as in the model; else a float."""
    exact = query_scale**-2
    whole = round(exact)
    return whole if whole > 0 and np.float32(whole**-0.5) == np.float32(query_scale) else exact
