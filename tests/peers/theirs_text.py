"""transformers' half of `make test-peers` for texts; see `ours_text.py`. Imports nothing of this project."""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers

ADDED, SPECIAL = ["<tool_call>", "</tool_call>"], ["<think>", "<|im_start|>"]


def write_ids(folder: Path, values: dict) -> None:
    """The ids of all texts, and with a model the greedy answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = values["template"]
    made = {"strings": [tokenizer.encode(one) for one in values["strings"]]}
    for key, sanitize in (("chats", False), ("literal", True)):
        made[key] = [
            tokenizer.apply_chat_template(
                one["messages"],
                add_generation_prompt=one["add_generation_prompt"],
                sanitize_control_tokens=sanitize,
                return_dict=False,
            )
            for one in values["chats"]
        ]
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        prompt = torch.tensor([tokenizer.encode(values["prompt"])])
        with torch.no_grad():
            answer = model.generate(prompt, max_new_tokens=values["new"], do_sample=False)
            made |= {"answer": answer[0].tolist(), "logits": model(answer).logits.tolist()}
    folder.with_suffix(".json").write_text(json.dumps(made), encoding="utf-8")


def fine_tune(folder: Path, to: Path, values: dict) -> None:
    """A fine-tune as people publish it: added tokens, tokenizer.json alone, a chat template, end tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(ADDED)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.chat_template = values["template"]
    tokenizer.save_pretrained(to)
    if not (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    # A token of the answer ends it, so that it shows whether that is read.
    prompt = torch.tensor([tokenizer.encode(values["prompt"])])
    answer = model.generate(prompt, max_new_tokens=values["new"], do_sample=False)[0, prompt.shape[1] :]
    model.generation_config.eos_token_id = [1, int(answer[6])]
    model.save_pretrained(to, max_shard_size="4MB")


def adapt(base: Path, to: Path) -> None:
    """A LoRA adapter of a fine-tune as PEFT saves it, with a tokenizer beside it, and weights in the base's folder."""
    torch.manual_seed(1)
    words = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, use_rslora=True, target_modules="all-linear")
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), words)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # B is zero at the start of training
                parameter.normal_(std=0.02)
    model.save_pretrained(to)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(to)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    texts = json.loads((root / "texts.json").read_text(encoding="utf-8"))
    for name in ("text-tiny", "text-real"):
        fine_tune(root / name, root / f"{name}-tuned", texts)
        write_ids(root / name, texts)
        write_ids(root / f"{name}-tuned", texts)
    adapt(root / "text-tiny-tuned", root / "text-tiny-tuned-lora")
    write_ids(root / "text-tiny-tuned-lora", texts)
    print(f"texts: transformers {transformers.__version__} loads, tokenizes and generates from what we saved")
