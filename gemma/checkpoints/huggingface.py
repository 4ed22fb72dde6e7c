"""Reads and writes checkpoints of Hugging Face transformers: safetensors, in one file or in shards with an index.

Names and transpositions are those of transformers' converters from DeepMind's checkpoints
(`convert_gemma2_weights_to_hf.py`, `convert_gemma3_weights.py`): every projection is [out, in]; keys and values are
separate tensors, and so are gate and up.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma.checkpoints import streaming, tensorfiles
from gemma.checkpoints.shapes import Shapes, recognise
from gemma.checkpoints.streaming import Layout, Stored
from gemma.configs import Config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"

# Before the text model's names, longest first: transformers 4 and 5 with images, and without.
_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
# Gemma 3 from 4B on sees images; this package does not.
IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_BUFFER = re.compile(r"rotary_emb\.(.+_)?inv_freq$")  # computed from the config; saved by some versions

NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def parameters(config: Config) -> dict[streaming.Path, tuple[Layout, ...]]:
    """Returns for every parameter its tensors, two of which are stacked. Names have no leading `model.`."""
    D, F, V = config.d_model, config.d_ff, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim

    def vector(name: str, size: int) -> tuple[Layout, ...]:
        return (Layout(name, (size,), (size,), (0,)),)

    tree: dict[streaming.Path, tuple[Layout, ...]] = {
        ("embedder", "input_embedding"): (Layout(EMBEDDING, (V, D), (V, D), (0, 1)),),
        ("final_norm", "scale"): vector("norm.weight", D),
    }
    for i in range(config.num_layers):
        layer, at = f"layer_{i}", f"layers.{i}."
        attn, mlp = at + "self_attn.", at + "mlp."
        q, k, v = (
            Layout(f"{attn}{x}_proj.weight", (heads * H, D), (heads, H, D), (0, 2, 1))
            for x, heads in (("q", N), ("k", K), ("v", K))
        )
        gate, up = (Layout(f"{mlp}{x}_proj.weight", (F, D), (F, D), (1, 0)) for x in ("gate", "up"))
        tree[layer, "attn", "q_einsum", "w"] = (q,)
        tree[layer, "attn", "kv_einsum", "w"] = (k, v)
        tree[layer, "attn", "attn_vec_einsum", "w"] = (
            Layout(attn + "o_proj.weight", (D, N * H), (D, N, H), (1, 2, 0)),
        )
        tree[layer, "mlp", "gating_einsum"] = (gate, up)
        tree[layer, "mlp", "linear"] = (Layout(mlp + "down_proj.weight", (D, F), (D, F), (1, 0)),)
        for ours, theirs in NORMS.items():
            tree[layer, ours, "scale"] = vector(f"{at}{theirs}.weight", D)
        if config.qk_norm:
            tree[layer, "attn", "_query_norm", "scale"] = vector(attn + "q_norm.weight", H)
            tree[layer, "attn", "_key_norm", "scale"] = vector(attn + "k_norm.weight", H)
    return tree


def shapes(stored: Mapping[str, Stored]) -> Shapes | None:
    """Returns the sizes of the model that the tensors' shapes tell; None if too few tensors are stored."""
    layers = [int(match[1]) for name in stored if (match := re.match(r"layers\.(\d+)\.", name))]

    def shape(ending: str) -> tuple[int, ...]:
        return next(tensor.shape for name, tensor in stored.items() if name.endswith(ending))

    try:
        (V, D), (F, _) = shape(EMBEDDING), shape("mlp.gate_proj.weight")
        query, key = shape("self_attn.q_proj.weight")[0], shape("self_attn.k_proj.weight")[0]
    except (StopIteration, ValueError, IndexError):
        return None
    return Shapes(V, max(layers) + 1, D, F, query, key, any("q_norm" in name for name in stored))


def bare(name: str) -> str:
    """Returns transformers' name of a tensor without the prefix of the kind of model that it is in."""
    return name.removeprefix(next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""))


def files(folder: Path) -> list[Path]:
    """Returns the safetensors of a folder that hold a model, without those of an adapter."""
    return [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith("adapter_model")]


def scan(source: Path) -> dict[str, Stored]:
    """Returns the tensors of a folder or of one file, by transformers' names without the prefix.

    Tensors for images are left out. If a folder has several sets of weights, it reads the set that transformers reads:
    `model.safetensors`, else the shards that the index names, else all files together.

    Args:
        source: the folder, or the file.

    Raises:
        ValueError: for an index that is damaged or names files or tensors that are missing, for files that are not
            safetensors, and for a tensor that is stored twice.
    """
    if source.is_file():
        by_name = tensorfiles.scan(source)
    elif (source / SINGLE).is_file():
        by_name = tensorfiles.scan(source / SINGLE)
    elif (source / INDEX).is_file():
        by_name = _scan_shards(source / INDEX)
    else:
        by_name = {}
        for file in files(source):
            others = tensorfiles.scan(file)
            streaming.refuse(
                str(source), [f"{name}: a second time in {file.name}" for name in others if name in by_name]
            )
            by_name |= others
    tensors: dict[str, Stored] = {}
    for name, tensor in by_name.items():
        if _is_left_out(name):
            continue
        if bare(name) in tensors:
            raise ValueError(f"{source} does not hold this model: {name} is stored as {tensors[bare(name)].name} too")
        tensors[bare(name)] = tensor
    return tensors


def _is_left_out(name: str) -> bool:
    """Returns whether the text model ignores a tensor."""
    return name.startswith(IMAGES) or _BUFFER.search(name) is not None


def _scan_shards(index: Path) -> dict[str, Stored]:
    """Returns the tensors that an index names, each from its file."""
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = {str(name) for name in places.values()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of safetensors: {error!r}"[:300]) from error
    folder = index.parent
    outside = [name for name in files if Path(name).name != name]
    streaming.refuse(str(folder), [f"{INDEX} names {name!r}, which is not a file beside it" for name in outside])
    shards = {name: tensorfiles.scan(folder / name) for name in sorted(files) if (folder / name).is_file()}
    # An index may list a tied head or buffers that no shard has: some converters list all tensors in memory.
    needless = lambda name: _is_left_out(name) or bare(name) == HEAD  # noqa: E731
    places = {name: file for name, file in places.items() if name in shards.get(file, {}) or not needless(name)}
    problems = [
        f"missing: {name}, as {file} is " + ("without it" if file in shards else "missing")
        for name, file in places.items()
        if name not in shards.get(file, {})
    ]
    problems += [
        f"not in {INDEX}: {name} of {file}" for file in shards for name in shards[file] if places.get(name) != file
    ]
    streaming.refuse(str(folder), problems)
    return {name: shards[file][name] for name, file in places.items()}


def read(
    where: str,
    stored: Mapping[str, Stored],
    config: Config,
    structs: Mapping,
    shardings: Mapping,
    call: Callable[[str], str] = lambda name: "model." + name,
) -> dict:
    """Reads the tree of parameters.

    Args:
        where: the file or folder, for messages.
        stored: its tensors, by transformers' names without `model.`.
        config: the model's configuration.
        structs: see `streaming.stream`.
        shardings: see `streaming.stream`.
        call: maps the names without `model.` to those of the file, for messages.

    Raises:
        ValueError: with the name of every tensor that is missing, extra, of another shape, cut short, or has NaN or
            infinite values; and for an output embedding that differs from the input embedding.
    """
    stored = dict(stored)
    head = stored.pop(HEAD, None)
    parts = streaming.match(where, stored, parameters(config), call)
    if head is not None:
        check_tied(where, head, stored[EMBEDDING])
    return streaming.read(where, parts, structs, shardings)


def check_tied(where: str, head: Stored, embedding: Stored) -> None:
    """Raises ValueError unless the output embedding is the input embedding, as in all Gemma 2 and 3."""
    same = head.shape == embedding.shape and not head.problem
    step = max(1, streaming.BLOCK_BYTES // (4 * math.prod(embedding.shape[1:])))
    for start in range(0, embedding.shape[0] if same else 0, step):
        stop = min(start + step, embedding.shape[0])
        same = same and np.array_equal(head.rows(start, stop), embedding.rows(start, stop), equal_nan=True)
    if not same:
        reason = head.problem or "it differs from the embedding, and this package's models have one for both"
        raise ValueError(f"{where} does not hold this model: {head.name}: {reason}")


def recognise_shapes(where: str, stored: Mapping[str, Stored]) -> Config:
    """Returns the configuration of a checkpoint without config.json; see `gemma.checkpoints.shapes`."""
    sizes = shapes(stored)
    if sizes is None:
        raise ValueError(f"{where} has no config.json, and its tensors are not those of a Gemma 2 or 3")
    return recognise(where, sizes)


def write(params: Mapping, config: Config, folder: Path, shard_bytes: int) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (more for a larger tensor) and their index."""
    shards: list[dict] = [{}]
    sizes = [0]
    for path, layouts in parameters(config).items():
        leaf: Any = params
        for key in path:
            leaf = leaf[key]
        for i, layout in enumerate(layouts):
            size = math.prod(layout.shape) * leaf.dtype.itemsize
            if shards[-1] and sizes[-1] + size > shard_bytes:
                shards.append({})
                sizes.append(0)
            part = (lambda leaf=leaf, i=i: leaf[i]) if len(layouts) > 1 else (lambda leaf=leaf: leaf)
            shards[-1]["model." + layout.name] = (
                np.dtype(leaf.dtype),
                layout.shape,
                lambda part=part, layout=layout: layout.in_view(np.asarray(part())).reshape(layout.shape),
            )
            sizes[-1] += size
    if len(shards) == 1:
        tensorfiles.write(folder / SINGLE, shards[0])
        return
    places = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensorfiles.write(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
