"""Merges LoRA adapters of PEFT (`adapter_config.json`, `adapter_model.safetensors`) into a model's tensors.

A linear layer's weight W [out, in] becomes W + scale * B @ A with A [r, in] and B [out, r] (arXiv 2106.09685), where
scale is alpha / r, or alpha / sqrt(r) under `use_rslora` (arXiv 2312.03732). The sum is computed in float32, block by
block, as the tensors are read. Words and names are those of PEFT 0.21 (`tuners/lora/config.py`, `tuners_utils.py`).
"""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gemma.checkpoints import huggingface, tensorfiles
from gemma.checkpoints.streaming import Stored
from gemma.configs import Config

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HONOURED = (
    *("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    "modules_to_save",
)
_HARMLESS = (
    *("auto_mapping", "task_type", "inference_mode", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("runtime_config", "peft_version", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
    *("unsloth_version", "unsloth_fixed"),
)
# Initialisations that leave the base's weights unchanged; pissa, olora, loftq and the like train beside another base.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
_EMBEDDING, _HEAD = (name.removesuffix(".weight") for name in (huggingface.EMBEDDING, huggingface.HEAD))


def read_config(folder: Path) -> dict:
    """Reads the words of a folder's adapter_config.json.

    Raises:
        ValueError: if the file is not JSON, of another kind than LoRA, or has a word that is not supported.
    """
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not the configuration of an adapter: {error}") from None
    if kind != "LORA":
        raise ValueError(f"{file}: the adapter's peft_type is {kind!r}; only LORA is supported, so merge it with PEFT")
    # A word is off if it is None, False, or empty.
    problems = [
        f"{word} is {value!r:.100}" for word, value in values.items() if value and word not in (*_HONOURED, *_HARMLESS)
    ]
    if values.get("init_lora_weights", True) not in _INITIALISATIONS:
        problems.append(f"init_lora_weights is {values['init_lora_weights']!r}, which changes the base's weights")
    for word in ("r", "lora_alpha"):
        value = values.get(word, 8)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            problems.append(f"{word} is {value!r}, expected a positive number")
    if problems:
        raise ValueError(
            f"{file} has settings that are not supported: {'; '.join(problems)}. Merge the adapter with PEFT "
            "(merge_and_unload) and load the result"
        )
    return values


def merge(folder: Path, base: Mapping[str, Stored], config: Config) -> tuple[dict[str, Stored], Config]:
    """Merges an adapter into a base's tensors.

    Args:
        folder: the adapter's folder.
        base: the base's tensors, by transformers' names without `model.`.
        config: the base's configuration.

    Returns:
        The merged tensors, and the configuration, whose V may be another.

    Raises:
        ValueError: with the name of each tensor, for an adapter that does not fit this base or is not supported.
    """
    values, file = read_config(folder), folder / WEIGHTS
    if not file.is_file():
        pickle = folder / "adapter_model.bin"
        what = "adapter_model.bin, a pickle, which can run code and is not read" if pickle.exists() else "no weights"
        raise ValueError(f"{folder} has an adapter's {CONFIG}, but {what}: expected {WEIGHTS}")
    whole, pairs, modules, problems = _sort(tensorfiles.scan(file))
    problems += _untied(values, whole, pairs)
    problems += _without_weights(values, base, pairs, whole, modules)
    merged = dict(base)
    for name, tensor in whole.items():
        rows = name in (huggingface.EMBEDDING, huggingface.HEAD)  # fine-tuning may have added tokens
        want = base.get(huggingface.EMBEDDING if rows else name)
        if want is None or tensor.shape[rows:] != want.shape[rows:]:
            problems.append(f"{tensor.name}: shape {tensor.shape}, and the base has {want and want.shape}")
        merged[name] = tensor
    for name, pair in pairs.items():
        rank = _pattern(values.get("rank_pattern"), modules[name], values.get("r", 8))
        alpha = _pattern(values.get("alpha_pattern"), modules[name], values.get("lora_alpha", 8))
        if problem := _mismatch(name, pair, base.get(name + ".weight"), rank):
            problems.append(problem)
        else:
            scale = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
            merged[name + ".weight"] = _sum(base[name + ".weight"], pair["A"], pair["B"], scale)
    if not (whole or pairs or problems):
        problems.append("it has no tensor for this model")
    if problems:
        raise ValueError(f"the adapter in {folder} cannot be applied to its base:\n  " + "\n  ".join(problems[:12]))
    if huggingface.EMBEDDING in whole:
        config = dataclasses.replace(config, vocab_size=whole[huggingface.EMBEDDING].shape[0])
    return merged, config


def _sort(stored: Mapping[str, Stored]) -> tuple[dict, dict, dict, list[str]]:
    """Returns whole tensors by name, pairs {"A": …, "B": …} by module, each module's name in PEFT, and problems."""
    whole: dict[str, Stored] = {}
    pairs: dict[str, dict[str, Stored]] = {}
    modules: dict[str, str] = {}
    problems = []
    for name, tensor in stored.items():
        full = name.removeprefix(_PREFIX)
        if full.startswith(huggingface.IMAGES):
            continue
        bare = huggingface.bare(full)
        if tensor.problem:
            problems.append(f"{name}: {tensor.problem}")
        elif match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", bare):
            pairs.setdefault(match[1], {})[match[2]] = tensor
            modules[match[1]] = re.sub(r"\.lora_[AB]\.weight$", "", full)
        elif bare.endswith(".weight") and not bare.endswith(".base_layer.weight"):
            whole[bare] = tensor
            modules[bare.removesuffix(".weight")] = full.removesuffix(".weight")
        elif not bare.endswith(".base_layer.weight"):
            problems.append(f"{name}: only lora_A, lora_B and whole weights are supported")
    return whole, pairs, modules, problems


def _untied(values: Mapping, whole: Mapping, pairs: Mapping) -> list[str]:
    """Returns problems that would make the output embedding differ from the input embedding: models here share one."""
    problems = [
        f"{module} has a LoRA of its own: this package's models have one embedding for input and output"
        for module in (_EMBEDDING, _HEAD)
        if module in pairs
    ]
    saved = {name.rsplit(".", 1)[-1] for name in values.get("modules_to_save") or ()}
    problems += [
        f"modules_to_save has {name}, and {WEIGHTS} has no weights of it"
        for name in saved - {_EMBEDDING, _HEAD}
        if not any(tensor.removesuffix(".weight").endswith(name) for tensor in whole)
    ]
    if _EMBEDDING in saved and huggingface.HEAD not in whole:
        problems.append(
            f"modules_to_save has {_EMBEDDING} without {_HEAD}, so PEFT computes with two embeddings: this package's "
            "models have one for input and output"
        )
    if huggingface.HEAD in whole and huggingface.EMBEDDING not in whole:
        problems.append(f"{whole[huggingface.HEAD].name}: it has no {_EMBEDDING} beside it, and the two must be one")
    return problems


def _without_weights(
    values: Mapping, base: Mapping[str, Stored], pairs: Mapping, whole: Mapping, modules: Mapping[str, str]
) -> list[str]:
    """Returns the modules that have weights and should not; warns about those that should have weights and do not."""
    targets = values.get("target_modules")
    if targets is None:
        return []
    # The names of the base's modules in PEFT: all have the same prefix before `layers.`.
    start = next((full.removesuffix(bare) for bare, full in modules.items() if "layers." in bare), "model.")
    named = {
        name.removesuffix(".weight"): start + name.removesuffix(".weight")
        for name in base
        if re.search(r"_proj\.weight$", name)
    }
    saved = {name.removesuffix(".weight") for name in whole}
    bare = [full for name, full in named.items() if not {name} & (pairs.keys() | saved) and _targeted(values, full)]
    if bare and pairs:
        # PEFT warns too, and computes with B = 0.
        others = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        warnings.warn(
            f"target_modules names {', '.join(bare[:3])}{others}, and {WEIGHTS} has no lora_A and lora_B of "
            f"{'them' if len(bare) > 1 else 'it'}: nothing is added there",
            stacklevel=2,
        )
    return [
        f"{WEIGHTS} has a LoRA of {modules[name]}, which target_modules {targets!r:.200} does not name"
        for name in pairs
        if not _targeted(values, modules[name])
    ]


def _targeted(values: Mapping, module: str) -> bool:
    """Returns whether PEFT puts a LoRA on a module (`check_target_module_exists`)."""

    def among(names: str | list | None) -> bool:
        if not names:
            return False
        if isinstance(names, str):
            return re.fullmatch(names, module) is not None
        return module in names or any(module.endswith("." + name) for name in names)

    targets = values["target_modules"]
    if targets == "all-linear":
        targets = r".*_proj"
    if among(values.get("exclude_modules")) or not among(targets):
        return False
    layers = values.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = values.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
            return int(match[1]) in (layers if isinstance(layers, list) else [layers])
    return False


def _pattern(patterns: Mapping | None, module: str, default: float) -> float:
    """Returns the value of the first pattern that fits a module (PEFT's `get_pattern_key`), else the default."""
    fits = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fits, default)


def _mismatch(name: str, pair: Mapping[str, Stored], weight: Stored | None, rank: float) -> str | None:
    """Returns why a pair cannot be added to a weight; None if it can."""
    if len(pair) < 2:
        return f"{name}: it has lora_{next(iter(pair))} without the other half"
    a, b = pair["A"].shape, pair["B"].shape
    if weight is None or len(weight.shape) != 2:
        return f"{pair['A'].name}: the base has no linear layer {name}"
    if a != (rank, weight.shape[1]) or b != (weight.shape[0], rank):
        return (
            f"{name}: lora_A {list(a)} and lora_B {list(b)} of rank {rank} do not fit the weight {list(weight.shape)}"
        )
    return weight.problem


def _sum(weight: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    """Returns the weight with its LoRA added."""

    def rows(start: int, stop: int) -> np.ndarray:
        down = np.asarray(a.rows(0, a.shape[0]), np.float32)
        up = np.asarray(b.rows(start, stop), np.float32)
        return np.asarray(weight.rows(start, stop), np.float32) + np.float32(scale) * (up @ down)

    return Stored(f"{weight.name} with its LoRA", weight.shape, rows)
