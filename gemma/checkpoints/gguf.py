"""GGUF files of architecture `gemma2` and `gemma3`: llama.cpp's names, metadata and vocabulary.

From llama.cpp's `convert_hf_to_gguf.py` and `src/models/gemma2.cpp`, `gemma3.cpp`.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gemma.checkpoints import gguffiles, huggingface
from gemma.checkpoints.dialects import shortest_pattern
from gemma.checkpoints.gguffiles import Contents
from gemma.checkpoints.shapes import named
from gemma.checkpoints.streaming import Stored
from gemma.configs import GLOBAL, LOCAL, Config
from gemma.tokenizer import Tokenizer, model_from_pieces

# In llama.cpp's names on the left, in transformers' (without `model.`) on the right.
_TOP = {
    "token_embd.weight": huggingface.EMBEDDING,
    "output_norm.weight": "norm.weight",
    "output.weight": huggingface.HEAD,
}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def scan(file: Path) -> Contents:
    """The header of a file, its tensors by transformers' names where they have one; of the tensors nothing is read.

    Raises:
      ValueError: without the `gguf` package; for a file that is not GGUF, is damaged, or is of another architecture.
    """
    contents = gguffiles.scan(file)
    architecture = contents.metadata.get("general.architecture")
    if architecture not in ("gemma2", "gemma3"):
        raise ValueError(f"{file} is of architecture {architecture!r}: this package has gemma2 and gemma3")
    parts = contents.metadata.get("split.count", 1)
    if parts > 1:
        raise ValueError(f"{file} is one of {parts} parts: join them with llama.cpp's gguf-split --merge")
    tensors = {_translate(name): _without_one(stored) for name, stored in contents.tensors.items()}
    return dataclasses.replace(contents, tensors=tensors)


def _without_one(stored: Stored) -> Stored:
    """A norm's scale, of which llama.cpp keeps 1 + scale; other tensors as they are."""
    if not stored.name.endswith("norm.weight"):
        return stored
    return dataclasses.replace(stored, rows=lambda start, stop: stored.rows(start, stop) - np.float32(1))


def _translate(name: str) -> str:
    """transformers' name of a tensor; the file's own, where there is none."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in _BLOCK:
        return f"layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    return _TOP.get(name, name)


def config(contents: Contents) -> Config:
    """The configuration that the metadata describes, a preset's where it is a preset's.

    The file has no query scale, and no base for local layers: both are llama.cpp's constants (`src/models/gemma*.cpp`).

    Raises:
      ValueError: naming what the metadata lacks.
    """
    m, kind = contents.metadata, contents.metadata["general.architecture"]
    third = kind == "gemma3"

    def get(key: str, default: object = None) -> object:
        value = m.get(f"{kind}.{key}", default)
        if value is None:
            raise ValueError(f"{contents.file} lacks {kind}.{key} in its metadata")
        return value

    embedding = contents.tensors.get(huggingface.EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{contents.file} does not hold this model:\n  missing: token_embd.weight, [V, D]")
    layers, D, N, H = (
        get("block_count"),
        get("embedding_length"),
        get("attention.head_count"),
        get("attention.key_length"),
    )
    epsilon = get("attention.layer_norm_rms_epsilon", 1e-6)
    if abs(epsilon - 1e-6) > 1e-9:
        raise ValueError(
            f"{contents.file}: its norms have epsilon {epsilon}; of Gemma 2 and 3 only 1e-6 is computed here"
        )
    period = get("attention.sliding_window_pattern", 6 if third else 2)
    if isinstance(period, np.ndarray):  # for each layer, whether it is local
        pattern = shortest_pattern([LOCAL if local else GLOBAL for local in period])
    else:
        pattern = (LOCAL,) * (period - 1) + (GLOBAL,)
    base = float(get("rope.freq_base", 1e6 if third else 1e4))
    widest = layers == (62 if third else 46)  # the 27B models
    scaled = m.get(f"{kind}.rope.scaling.type", "linear" if third else "none") == "linear"
    return named(
        Config(
            name=str(m.get("general.name") or contents.file.stem),
            vocab_size=embedding.shape[0],
            num_layers=layers,
            d_model=D,
            d_ff=get("feed_forward_length"),
            num_heads=N,
            num_kv_heads=get("attention.head_count_kv"),
            head_dim=H,
            query_scale=float(D // N if widest else H) ** -0.5,
            window=get("attention.sliding_window", None if third else 4096),
            layer_pattern=pattern,
            attn_softcap=None if third else float(get("attn_logit_softcapping", 50.0)),
            final_softcap=None if third else float(get("final_logit_softcapping", 30.0)),
            rope_base=base,
            local_rope_base=float(get("rope.freq_base_swa", 1e4)) if third else base,
            rope_scale=float(get("rope.scaling.factor", 1.0)) if scaled else 1.0,
            qk_norm=third,
        )
    )


def tokenizer(contents: Contents) -> Tokenizer | None:
    """The SentencePiece tokenizer that the file describes; None where it has none.

    Raises:
      ValueError: for a tokenizer of another kind, and for lists of unequal length.
    """
    m = contents.metadata
    if "tokenizer.ggml.tokens" not in m:
        return None
    if m.get("tokenizer.ggml.model") != "llama":
        raise ValueError(
            f"{contents.file} has a tokenizer of kind {m.get('tokenizer.ggml.model')!r}, not SentencePiece"
        )
    lists = [m.get(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "scores", "token_type")]
    if len({len(one) for one in lists}) > 1:
        raise ValueError(
            f"{contents.file} has {[len(one) for one in lists]} pieces, scores and types: one of each for all"
        )
    special = {
        name: int(m.get(f"tokenizer.ggml.{key}_token_id", default))
        for name, key, default in (("pad", "padding", 0), ("eos", "eos", 1), ("bos", "bos", 2), ("unk", "unknown", 3))
    }
    if tuple(special.values()) != (0, 1, 2, 3) or len(lists[0]) < 4:
        raise ValueError(f"{contents.file} has a tokenizer with the special ids {special}, Gemma's are 0, 1, 2 and 3")
    try:
        return Tokenizer(model_from_pieces(*lists, **special))
    except RuntimeError as error:
        raise ValueError(f"{contents.file} has pieces that make no tokenizer: {error}") from error


def read(contents: Contents, config: Config, structs: Mapping, shardings: Mapping) -> dict:
    """The tree of parameters; see `huggingface.read`."""
    return huggingface.read(str(contents.file), dict(contents.tensors), config, structs, shardings, _file_name)


def _file_name(name: str) -> str:
    """The inverse of `_translate`, for messages."""
    top = {theirs: ours for ours, theirs in _TOP.items()}
    block = re.fullmatch(r"layers\.(\d+)\.([\w.]+)\.weight", name)
    if block:
        blocks = {theirs: ours for ours, theirs in _BLOCK.items()}
        return f"blk.{block[1]}.{blocks[block[2]]}.weight"
    return top.get(name, name)
