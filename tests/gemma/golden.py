"""The reference model of tests/data/gemma2_golden: a random Gemma 2 as Hugging Face transformers saved and computed it.

`expected.npz` holds tokens, logits, a greedy continuation and the value at eight sites of every layer, in float32.
The names and transpositions are those of `transformers`' own converter from DeepMind's checkpoints.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import gemma

FOLDER = Path(__file__).parents[1] / "data" / "gemma2_golden"


def config() -> gemma.Config:
    """The golden model's shape, from its config.json."""
    c = json.loads((FOLDER / "config.json").read_text())
    return gemma.Config(
        name="gemma2-golden",
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        d_model=c["hidden_size"],
        d_ff=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        query_scale=c["query_pre_attn_scalar"] ** -0.5,
        window=c["sliding_window"],
    )


def params() -> dict:
    """The weights under DeepMind's names, as the tree that `gemma.Transformer` takes."""
    c = config()
    w = {name: array for shard in sorted(FOLDER.glob("*.safetensors")) for name, array in load_file(shard).items()}

    def heads(name: str, count: int) -> np.ndarray:  # (heads*H, D) -> (heads, D, H)
        return w[name].reshape(count, c.head_dim, c.d_model).transpose(0, 2, 1)

    tree = {
        "embedder": {"input_embedding": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    for i in range(c.num_layers):
        at = f"model.layers.{i}."
        tree[f"layer_{i}"] = {
            "attn": {
                "q_einsum": {"w": heads(at + "self_attn.q_proj.weight", c.num_heads)},
                "kv_einsum": {
                    "w": np.stack([heads(at + f"self_attn.{x}_proj.weight", c.num_kv_heads) for x in ("k", "v")])
                },
                "attn_vec_einsum": {
                    "w": w[at + "self_attn.o_proj.weight"]
                    .reshape(c.d_model, c.num_heads, c.head_dim)
                    .transpose(1, 2, 0)
                },
            },
            "mlp": {
                "gating_einsum": np.stack([w[at + "mlp.gate_proj.weight"].T, w[at + "mlp.up_proj.weight"].T]),
                "linear": w[at + "mlp.down_proj.weight"].T,
            },
            "pre_attention_norm": {"scale": w[at + "input_layernorm.weight"]},
            "post_attention_norm": {"scale": w[at + "post_attention_layernorm.weight"]},
            "pre_ffw_norm": {"scale": w[at + "pre_feedforward_layernorm.weight"]},
            "post_ffw_norm": {"scale": w[at + "post_feedforward_layernorm.weight"]},
        }
    return tree


def expected() -> dict[str, np.ndarray]:
    """Everything in expected.npz, by name."""
    with np.load(FOLDER / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}
