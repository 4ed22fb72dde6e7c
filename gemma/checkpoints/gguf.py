"""Reads GGUF files of architecture `gemma2` and `gemma3`: llama.cpp's names, metadata and vocabulary.

The facts are from llama.cpp's `convert_hf_to_gguf.py` and `src/models/gemma2.cpp`, `gemma3.cpp`.
"""

import dataclasses
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma.checkpoints import expanding, gguffiles, huggingface, words
from gemma.checkpoints.dialects import shortest_pattern
from gemma.checkpoints.gguffiles import Contents
from gemma.checkpoints.shapes import named
from gemma.checkpoints.streaming import Stored
from gemma.configs import GLOBAL, LOCAL, Config
from gemma.tokenizer import Tokenizer, model_from_pieces
from gemma.tokenizer.settings import Settings

# llama.cpp's names on the left, transformers' names (without `model.`) on the right.
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

_IMAGES = ("v.", "mm.")  # for images; some converters put all parts of a Gemma 3 into one file


def scan(file: Path, folder: Path | None = None) -> Contents:
    """Reads the header of a file, with its tensors by transformers' names where they have one.

    Args:
        file: the file's path.
        folder: the folder where its numbers are kept expanded, see `expanding.py`; None to keep none.

    Raises:
        ValueError: without the `gguf` package, and for a file that is not GGUF, is damaged, or is of another
            architecture.
    """
    contents = gguffiles.scan(file)
    architecture = contents.metadata.get("general.architecture")
    if architecture not in ("gemma2", "gemma3"):
        raise ValueError(f"{file} is of architecture {architecture!r}: this package has gemma2 and gemma3")
    parts = contents.metadata.get("split.count", 1)
    if parts > 1:
        raise ValueError(f"{file} is one of {parts} parts: join them with llama.cpp's gguf-split --merge")
    if folder is not None:
        contents = expanding.expanded(contents, folder)
    tensors = {
        _translate(name): _without_one(stored)
        for name, stored in contents.tensors.items()
        if not name.startswith(_IMAGES)
    }
    return dataclasses.replace(contents, tensors=tensors)


def _without_one(stored: Stored) -> Stored:
    """Returns a norm's scale, of which llama.cpp keeps 1 + scale; other tensors stay unchanged."""
    if not stored.name.endswith("norm.weight"):
        return stored
    return dataclasses.replace(stored, rows=lambda start, stop: stored.rows(start, stop) - np.float32(1))


def _translate(name: str) -> str:
    """Returns transformers' name of a tensor; the file's own name if transformers has none."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in _BLOCK:
        return f"layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    return _TOP.get(name, name)


def config(contents: Contents) -> Config:
    """Returns the configuration that the metadata describes.

    The file has no query scale, and no base for local layers: both are llama.cpp's constants (`src/models/gemma*.cpp`).

    Raises:
        ValueError: with the name of a missing key, and of each key that the forward pass does not honour.
    """
    m, kind = contents.metadata, contents.metadata["general.architecture"]
    third = kind == "gemma3"

    def get(key: str, default: Any = None) -> Any:
        value = m.get(f"{kind}.{key}", default)
        if value is None:
            raise ValueError(f"{contents.file} lacks {kind}.{key} in its metadata")
        return value

    embedding = contents.tensors.get(huggingface.EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{contents.file} does not hold this model:\n  missing: token_embd.weight, [V, D]")
    try:
        words.check_gguf(kind, m)
        _check_softcaps(m, third)
        stretch = _stretch(m, kind)
    except ValueError as error:
        raise ValueError(f"{contents.file} is of another model than this package's: {error}") from None
    layers, D, N, H = (
        get("block_count"),
        get("embedding_length"),
        get("attention.head_count"),
        get("attention.key_length"),
    )
    pattern = _pattern(m, kind)
    # Without a window, llama.cpp's Gemma 3 has global layers alone.
    window = get("attention.sliding_window", 0 if third else 4096)
    if third and window == 0:
        pattern, window = (GLOBAL,), get("context_length", 131_072)
    base = float(get("rope.freq_base", 1e6 if third else 1e4))
    widest = layers == (62 if third else 46)  # the 27B models
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
            window=window,
            layer_pattern=pattern,
            attn_softcap=None if third else float(get("attn_logit_softcapping", 50.0)),
            final_softcap=None if third else float(get("final_logit_softcapping", 30.0)),
            rope_base=base,
            local_rope_base=float(get("rope.freq_base_swa", 1e4)) if third else base,
            rope_scale=stretch,
            qk_norm=third,
        )
    )


def _check_softcaps(metadata: Mapping, third: bool) -> None:
    """Raises ValueError for a softcap of Gemma 3: some versions of llama.cpp apply it, others overlook it."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if third and metadata.get(f"gemma3.{key}"):
            raise ValueError(f"gemma3.{key} is {metadata[f'gemma3.{key}']!r}: Gemma 3 has no softcap")


def _stretch(metadata: Mapping, kind: str) -> float:
    """Returns the number that the positions of global layers are divided by.

    Raises:
        ValueError: for another RoPE than that of Gemma 2 and 3.
    """
    name = metadata.get(f"{kind}.rope.scaling.type", "linear")  # llama.cpp's default
    factor = float(metadata.get(f"{kind}.rope.scaling.factor", 1.0))
    if name not in ("none", "linear"):
        raise ValueError(f"{kind}.rope.scaling.type is {name!r}: only none and linear are computed here")
    if name == "none" or factor in (0.0, 1.0):  # llama.cpp takes 0 for 1
        return 1.0
    if kind == "gemma2":
        raise ValueError(f"{kind}.rope.scaling.factor is {factor}: RoPE of Gemma 2 is not scaled")
    return factor


def _pattern(metadata: Mapping, kind: str) -> tuple[str, ...]:
    """Returns the pattern of layers: the metadata has a period, or for each layer whether it is local."""
    period = metadata.get(f"{kind}.attention.sliding_window_pattern", 6 if kind == "gemma3" else 2)
    if isinstance(period, np.ndarray):
        return shortest_pattern([LOCAL if local else GLOBAL for local in period])
    if period < 1:
        raise ValueError(f"{kind}.attention.sliding_window_pattern is {period}, expected a positive integer")
    return (LOCAL,) * (period - 1) + (GLOBAL,)


def tokenizer(contents: Contents) -> Tokenizer | None:
    """Returns the SentencePiece tokenizer that the file describes; None if it describes none.

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
            f"{contents.file} has {[len(one) for one in lists]} pieces, scores and types, expected as many of each"
        )
    usual = {"pad": b"<pad>", "eos": b"<eos>", "bos": b"<bos>", "unk": b"<unk>"}
    if list(lists[0][:4]) != list(usual.values()):
        raise ValueError(
            f"{contents.file} has a tokenizer that begins with {lists[0][:4]}, but Gemma's begins with "
            f"{[*usual.values()]}"
        )
    ids = {
        role: int(m.get(f"tokenizer.ggml.{key}_token_id", default))
        for role, key, default in (("pad_token", "padding", 0), ("eos_token", "eos", 1), ("bos_token", "bos", 2))
    }
    if wrong := {role: id_ for role, id_ in ids.items() if not 0 <= id_ < len(lists[0])}:
        raise ValueError(f"{contents.file} has special tokens that are no pieces of its {len(lists[0])}: {wrong}")
    flags: dict[str, Any] = {f"add_{name}": m.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos")}
    settings = Settings(ids, templates=templates(contents), **flags)
    try:
        return Tokenizer(model_from_pieces(*lists, **dict(zip(usual, range(4), strict=True))), settings)
    except (RuntimeError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{contents.file} has pieces that make no tokenizer: {error}") from error


def templates(contents: Contents) -> dict[str, str]:
    """Returns the chat templates by name."""
    names = {name: re.fullmatch(r"tokenizer\.chat_template(?:\.(\w+))?", name) for name in contents.metadata}
    return {match[1] or "default": contents.metadata[name] for name, match in names.items() if match}


def read(contents: Contents, stored: Mapping, config: Config, structs: Mapping, shardings: Mapping) -> dict:
    """Returns the tree of parameters from the file's tensors, with a merged adapter or not; see `huggingface.read`."""
    return huggingface.read(str(contents.file), stored, config, structs, shardings, _file_name)


def _file_name(name: str) -> str:
    """Returns llama.cpp's name of a tensor for messages: the inverse of `_translate`."""
    top = {theirs: ours for ours, theirs in _TOP.items()}
    block = re.fullmatch(r"layers\.(\d+)\.([\w.]+)\.weight", name)
    if block:
        blocks = {theirs: ours for ours, theirs in _BLOCK.items()}
        return f"blk.{block[1]}.{blocks[block[2]]}.weight"
    return top.get(name, name)
