"""transformers' side of `against_transformers`: answers each line of its input with the seconds of one run.

It runs in an environment of its own (`make .venv-peers/.stamp`) and imports nothing of this project.
"""

import json
import sys
import time

import numpy as np
import torch
import transformers


def main() -> None:
    folder, job_file = sys.argv[1:3]
    with np.load(job_file) as job:
        tokens, prompt = torch.from_numpy(job["tokens"]), torch.from_numpy(job["prompt"])
        layers, new, size = int(job["layers"]), int(job["new"]), int(job["size"])
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=torch.float32)  # its own choice of attention: sdpa
    whole = model.model.layers
    cut, norm = whole[:layers], model.model.norm
    square, big = torch.randn(size, size), torch.randn(2**28)

    def forward() -> torch.Tensor:
        """The residual stream after `layers` blocks."""
        model.model.layers, model.model.norm, model.config.num_hidden_layers = cut, torch.nn.Identity(), layers
        return model.model(tokens, use_cache=False).last_hidden_state

    def decode() -> torch.Tensor:
        model.model.layers, model.model.norm, model.config.num_hidden_layers = whole, norm, len(whole)
        tokens_out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, min_new_tokens=new
        )
        return tokens_out[:, prompt.shape[1] :]

    jobs = {"forward": forward, "decode": decode, "matmul": lambda: square @ square, "read": lambda: big.sum()}
    with torch.inference_mode():
        results = {"forward": forward().norm(dim=-1).tolist(), "decode": decode().tolist()}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        print(json.dumps({"versions": versions, "threads": torch.get_num_threads(), "results": results}), flush=True)
        for line in sys.stdin:
            run = jobs[line.strip()]
            began = time.perf_counter()
            run()
            print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
