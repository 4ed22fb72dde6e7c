"""transformers' and PEFT's half of `make test-peers-transformers`; see `ours.py`. Imports nothing of this project."""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

TOLERANCE = 1e-4
# Of the random models, in the words of transformers' configs.
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 5,
}


def check(folder: Path) -> None:
    """Loads what `gemma.save(format="huggingface")` wrote.

    Raises:
      ValueError: if a tensor is missing or unexpected, or the logits are not ours.
    """
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    wrong = {kind: found for kind, found in report.items() if found}
    if wrong or model.dtype != torch.float32:
        raise ValueError(f"{folder.name}: transformers loads {model.dtype} and reports {wrong}")
    with np.load(folder / "expected.npz") as expected, torch.no_grad():
        off = np.abs(model(torch.from_numpy(expected["tokens"])).logits.numpy() - expected["logits"]).max()
    print(f"{folder.name}: transformers {transformers.__version__} loads what we saved, logits within {off:.1e}")
    if not off < TOLERANCE:
        raise ValueError(f"{folder.name}: transformers' logits differ from ours by {off}, more than {TOLERANCE}")


def save_with_images(folder: Path) -> None:
    """A random Gemma 3 that sees images, with its logits for text."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=SIZES, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:  # larger than at the start of training, so that each one counts
                parameter.normal_(std=0.2)
        model.save_pretrained(folder)
        tokens = torch.randint(3, 96, (2, 30))
        logits = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    np.savez(folder / "expected.npz", tokens=tokens.numpy(), logits=logits.float().numpy())


# Adapters as people publish them: LoraConfig's words, and how many tokens are added.
ADAPTERS = {
    "plain": ({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 0),
    "all-linear": ({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True}, 0),
    "patterns": (
        {
            "r": 8,
            "lora_alpha": 4,
            "target_modules": r".*\.(self_attn\.o_proj|mlp\.down_proj)",
            "rank_pattern": {"o_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 9},
        },
        0,
    ),
    "some-layers": ({"r": 2, "lora_alpha": 8, "target_modules": ["up_proj"], "layers_to_transform": [0, 3]}, 0),
    "added-tokens": ({"r": 8, "lora_alpha": 16, "target_modules": ["k_proj", "gate_proj"], "use_rslora": True}, 3),
    "norms": ({"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}, 0),
}


def save_fine_tunes(folder: Path) -> None:
    """A random Gemma 2 and Gemma 3 in shards, and of each LoRA adapters by PEFT with the logits that PEFT computes."""
    for kind, config in (("gemma2", transformers.Gemma2Config), ("gemma3", transformers.Gemma3TextConfig)):
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(config(**SIZES))
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.normal_(std=0.2)
        base.save_pretrained(folder / f"{kind}-base", max_shard_size="40KB")
        if not (folder / f"{kind}-base" / "model.safetensors.index.json").exists():
            raise ValueError(f"{kind}: transformers wrote one file, where shards were asked for")
        for name, (words, added) in ADAPTERS.items():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder / f"{kind}-base")
            if added:
                model.resize_token_embeddings(SIZES["vocab_size"] + added)
            model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **words)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:  # B is zero at the start of training
                        parameter.normal_(std=0.1)
                tokens = torch.randint(3, SIZES["vocab_size"] + added, (2, 30))
                logits = model(input_ids=tokens).logits.numpy()
            model.save_pretrained(folder / f"{kind}-{name}")
            np.savez(folder / f"{kind}-{name}" / "expected.npz", tokens=tokens.numpy(), logits=logits)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in ("gemma2", "gemma2-shards", "gemma3"):
        check(root / name)
    save_with_images(root / "images")
    save_fine_tunes(root / "fine-tunes")
