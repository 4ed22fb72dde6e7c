"""`config.json` as Hugging Face transformers writes it, and `gemma.Config`.

There are two dialects. transformers 5 has `rope_parameters` and `layer_types`; transformers 4 had `rope_theta`,
`rope_local_base_freq`, `rope_scaling` and `sliding_window_pattern`, and left out of the file what was its default. Both
are read; both are written, to one file, as each version overlooks the other's words.
"""

import warnings
from collections.abc import Mapping, Sequence

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

# What the forward pass takes for granted: a file that says otherwise is of another model.
_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "quantization_config": None,
}


def is_huggingface(values: Mapping) -> bool:
    """Whether this is a config.json of transformers, of whatever model."""
    return "model_type" in values or "architectures" in values


def from_huggingface(values: Mapping, name: str) -> Config:
    """The configuration that a config.json describes: a preset, where the numbers are a preset's; `name` otherwise.

    Raises:
      ValueError: for another model than Gemma 2 or 3, and for what this package's forward pass does not do.
    """
    if values.get("model_type") == "gemma3":  # with images
        values = {"model_type": "gemma3_text", "tie_word_embeddings": True, **values.get("text_config", {})}
    kind = values.get("model_type")
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type {kind!r}: this package has gemma2, gemma3 and gemma3_text")
    for field, want in _FIXED.items():
        got = values.get(field)
        if got is not None and got != want:
            raise ValueError(f"{field} is {got!r}; of Gemma 2 and 3 only {want!r} is computed here")
    values = {**_DEFAULTS[kind], **values}
    if kind == "gemma2" and values["query_pre_attn_scalar"] == 224:
        warnings.warn(
            f"{name}: query_pre_attn_scalar is 224 in this config.json, from a converter that was wrong about "
            "Gemma 2 9B (huggingface/transformers #31891); 256 is used",
            stacklevel=2,
        )
        values["query_pre_attn_scalar"] = 256
    sizes = {
        "vocab_size": values["vocab_size"],
        "num_layers": values["num_hidden_layers"],
        "d_model": values["hidden_size"],
        "d_ff": values["intermediate_size"],
        "num_heads": values["num_attention_heads"],
        "num_kv_heads": values["num_key_value_heads"],
        "head_dim": values["head_dim"],
    }
    return named(
        Config(
            name=str(values.get("_name_or_path") or name).rstrip("/").split("/")[-1],
            **sizes,
            query_scale=values["query_pre_attn_scalar"] ** -0.5,
            window=values["sliding_window"],
            layer_pattern=_pattern(values),
            attn_softcap=values["attn_logit_softcapping"],
            final_softcap=values["final_logit_softcapping"],
            qk_norm=kind == "gemma3_text",
            **_rope(values),
        )
    )


def _pattern(values: Mapping) -> tuple[str, ...]:
    """The kinds of layers, as the shortest pattern that gives them when repeated."""
    words = values.get("layer_types")
    if words is None:
        period = values.get("_sliding_window_pattern") or values["sliding_window_pattern"]
        return (LOCAL,) * (period - 1) + (GLOBAL,)
    if set(words) - set(_KINDS) or len(words) != values["num_hidden_layers"]:
        raise ValueError(f"layer_types must be {values['num_hidden_layers']} of {list(_KINDS)}, got {words}")
    return shortest_pattern([_KINDS[word] for word in words])


def shortest_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that gives these kinds of layers when repeated, the last repetition cut short."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))
    return tuple(kinds[:period])


def _rope(values: Mapping) -> dict[str, float]:
    """The bases of both kinds of layers, and what positions of global layers are divided by."""
    given = values.get("rope_parameters")
    if given is None:  # transformers 4
        plain = {"rope_theta": values["rope_theta"], **(values.get("rope_scaling") or {})}
        local = {"rope_theta": values.get("rope_local_base_freq", values["rope_theta"])}
    elif "full_attention" in given:
        plain, local = given["full_attention"], given.get("sliding_attention", given["full_attention"])
    else:
        plain = local = given
    scales = {}
    for kind, rope in ((GLOBAL, plain), (LOCAL, local)):
        how = rope.get("rope_type", rope.get("type", "default"))
        scales[kind] = float(rope.get("factor", 1.0)) if how == "linear" else 1.0
        if how not in ("default", "linear") or (kind == LOCAL and scales[kind] != 1.0):
            raise ValueError(f"RoPE of {kind} layers is {dict(rope)}: only positions of global layers can be divided")
    if values["model_type"] == "gemma2" and scales[GLOBAL] != 1.0:
        raise ValueError(f"RoPE is {dict(plain)}: Gemma 2's positions are not divided")
    base = values["rope_theta"]
    return {
        "rope_base": float(plain.get("rope_theta", base)),
        "local_rope_base": float(local.get("rope_theta", values.get("rope_local_base_freq", base))),
        "rope_scale": scales[GLOBAL],
    }


def to_huggingface(config: Config, dtype: str) -> dict:
    """config.json for a model of this configuration, in both dialects.

    Raises:
      ValueError: for a configuration that neither of transformers' two models has.
    """
    c = config
    if not c.qk_norm and (c.rope_scale != 1.0 or c.rope_base != c.local_rope_base):
        raise ValueError(f"{c.name}: transformers' Gemma 2 has one RoPE for all layers, so this cannot be saved as it")
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
    return values


def _scalar(query_scale: float) -> float | int:
    """The number whose -1/2th power is the scale, to the last bit where there is one."""
    exact = query_scale**-2
    near = [round(exact), exact, *(exact * (1 + k * 2.0**-52) for k in (1, -1, 2, -2))]
    return next((number for number in near if number > 0 and number**-0.5 == query_scale), exact)
