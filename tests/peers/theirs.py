"""transformers' half of `make test-peers`; see `ours.py`. Imports nothing of this project."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

TOLERANCE = 1e-4


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
    text = {
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
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
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


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in ("gemma2", "gemma2-shards", "gemma3"):
        check(root / name)
    save_with_images(root / "images")
