"""GGUF files of a model, written with the `gguf` package as llama.cpp's converter writes them."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

import gemma

NORMS = {
    "pre_attention_norm": "attn_norm",
    "post_attention_norm": "post_attention_norm",
    "pre_ffw_norm": "ffn_norm",
    "post_ffw_norm": "post_ffw_norm",
}
# A vocabulary of 384: the special tokens, the bytes, letters, and what can be merged from them.
WORDS = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab", "▁ab", "th", "the", "▁the"]


def tensors(model: gemma.Model) -> dict[str, np.ndarray]:
    """By llama.cpp's names. Written apart from the library's own tables, one tensor at a time."""
    p = {name: np.asarray(leaf) for name, leaf in flat(model.params).items()}
    c, out = model.config, {}
    out["token_embd.weight"] = p["embedder/input_embedding"]
    out["output_norm.weight"] = 1 + p["final_norm/scale"]
    for i in range(c.num_layers):
        at, to = f"layer_{i}/", f"blk.{i}."
        q, (k, v) = p[at + "attn/q_einsum/w"], p[at + "attn/kv_einsum/w"]
        for name, heads in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            out[f"{to}{name}.weight"] = np.concatenate([head.T for head in heads])
        out[to + "attn_output.weight"] = np.concatenate(list(p[at + "attn/attn_vec_einsum/w"])).T
        gate, up = p[at + "mlp/gating_einsum"]
        out[to + "ffn_gate.weight"], out[to + "ffn_up.weight"] = gate.T, up.T
        out[to + "ffn_down.weight"] = p[at + "mlp/linear"].T
        for ours, theirs in NORMS.items():
            out[f"{to}{theirs}.weight"] = 1 + p[f"{at}{ours}/scale"]
        if c.qk_norm:
            out[to + "attn_q_norm.weight"] = 1 + p[at + "attn/_query_norm/scale"]
            out[to + "attn_k_norm.weight"] = 1 + p[at + "attn/_key_norm/scale"]
    return out


def flat(params: dict, at: str = "") -> dict[str, np.ndarray]:
    """A tree of parameters by joined names."""
    out = {}
    for name, value in params.items():
        out |= flat(value, f"{at}{name}/") if isinstance(value, dict) else {at + name: value}
    return out


def write(
    path: Path,
    model: gemma.Model,
    *,
    change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None,
    architecture: str | None = None,
    leave_out: tuple[str, ...] = (),
    words: list[str] = WORDS,
    kind: str = "llama",
    eos: int = 1,
    more: int = 0,
    template: str | None = None,
) -> Path:
    """Writes a file, its tensors changed by `change`, without the metadata of `leave_out`."""
    c = model.config
    architecture = architecture or ("gemma3" if c.qk_norm else "gemma2")
    writer = gguf.GGUFWriter(path, architecture)
    pairs = {
        "block_count": c.num_layers,
        "embedding_length": c.d_model,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.sliding_window": c.window,
    }
    for key, value in pairs.items():
        if key not in leave_out:
            writer.add_uint32(f"{architecture}.{key}", value)
    numbers = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": c.rope_base,
        "attn_logit_softcapping": c.attn_softcap,
        "final_logit_softcapping": c.final_softcap,
    }
    for key, value in numbers.items():
        if value is not None and key not in leave_out:
            writer.add_float32(f"{architecture}.{key}", value)
    if c.rope_scale != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_scale)
    if words:
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), "  ", *words]
        kinds = [3] * 4 + [6] * 256 + [4] + [1] * len(words)
        pieces += [f"<unused{i}>" for i in range(c.vocab_size + more - len(pieces))]
        kinds += [3] * (len(pieces) - len(kinds))
        writer.add_tokenizer_model(kind)
        writer.add_token_list(pieces)
        writer.add_token_scores([-float(max(0, i - 261)) for i in range(len(pieces))])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(eos)
        writer.add_pad_token_id(0)
        writer.add_unk_token_id(3)
        if template is not None:
            writer.add_chat_template(template)
    arrays = tensors(model)
    change(arrays)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
