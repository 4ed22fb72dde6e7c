"""SAEBench's half of `make test-peers-saebench`; see `saebench_ours.py`. Imports nothing of this project's packages."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import comparing
import numpy as np
import torch
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE
from transformer_lens import HookedTransformer, HookedTransformerConfig

READER = f"SAEBench {version('sae-bench')}"
VOCABULARY, LENGTH, PROMPTS = 50, 12, 4
HOOK = "blocks.1.hook_resid_post"


class Tokens:
    """The same few prompts at each call: what the evaluation asks of SAELens's store of activations."""

    store_batch_size_prompts, context_size = PROMPTS, LENGTH

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(1, VOCABULARY, (PROMPTS, LENGTH), generator=generator)

    def get_batch_tokens(self, count: int) -> torch.Tensor:
        """The prompts."""
        return self.tokens[:count]

    def reset_input_dataset(self) -> None:
        """Nothing: each call gives the same."""


def main(folder: Path) -> None:
    """Runs SAEBench's core evaluation on each of our autoencoders, in a random model."""
    config = HookedTransformerConfig(
        n_layers=2, d_model=12, n_ctx=LENGTH, d_head=4, n_heads=3, d_mlp=24, d_vocab=VOCABULARY, act_fn="gelu", seed=0
    )
    model, tokens = HookedTransformer(config), Tokens()
    everything = {name: True for name in CoreEvalConfig.__dataclass_fields__ if name.startswith("compute_")}
    words = {"batch_size_prompts": PROMPTS, "n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1}
    for place in sorted((folder / "ours").iterdir()):
        _, autoencoder, _ = load_and_format_sae("ours", SAE.load_from_disk(place), "cpu")
        x = torch.from_numpy(comparing.inputs(place))
        with torch.no_grad():
            comparing.compare(place, READER, autoencoder.encode(x).numpy(), autoencoder(x).numpy())
            _, cache = model.run_with_cache(tokens.tokens, names_filter=[HOOK])
        metrics, features = run_evals(autoencoder, tokens, model, CoreEvalConfig(**everything, **words))
        flat = {name: value for group in metrics.values() for name, value in group.items()}
        if not np.isfinite(list(flat.values())).all() or len(features["feature_density"]) != len(autoencoder.W_dec):
            raise ValueError(f"{place}: SAEBench measures {metrics}")
        (place / "metrics.json").write_text(json.dumps(flat), encoding="utf-8")
        np.savez(place / "activations.npz", x=cache[HOOK].reshape(-1, 12).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
