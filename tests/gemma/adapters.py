"""LoRA adapters as PEFT saves them, and what they make of a model's weights, computed in numpy alone."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

PREFIX = "base_model.model."
# What PEFT 0.21 writes for `LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])`.
CONFIG = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "google/gemma-2-2b",
    "bias": "none",
    "ensure_weight_tying": False,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def write(
    folder: Path, base: Path, ranks: dict[str, int], *, start: str = "model.", dtype=np.float32, extra=(), **words
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes an adapter, and returns A and B by the module's name without `model.`.

    Args:
      folder: where.
      base: a folder of the base's safetensors, for shapes.
      ranks: by a module's name, without `model.`.
      start: what stands before the module's name in the base.
      dtype: of A and B.
      extra: pairs of a name and an array that the file has too.
      words: of adapter_config.json, besides `CONFIG`.
    """
    folder.mkdir(exist_ok=True)
    weights = load_file(base / "model.safetensors")
    rng, tensors, pairs = np.random.default_rng(5), dict(extra), {}
    for module, rank in ranks.items():
        out, into = weights[f"model.{module}.weight"].shape
        a, b = (0.2 * rng.standard_normal(shape, np.float32) for shape in ((rank, into), (out, rank)))
        pairs[module] = a.astype(dtype), b.astype(dtype)
        for half, array in zip("AB", pairs[module], strict=True):
            tensors[f"{PREFIX}{start}{module}.lora_{half}.weight"] = array
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | words))
    return pairs
