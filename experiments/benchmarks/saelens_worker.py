"""SAELens 6's side of a comparison of trainers: trains one of its autoencoders on rows of activations.

It runs in an environment of its own (`pip install torch==2.13.0 sae-lens==6.54.12`) and imports nothing of this
project. Its one argument is a JSON object:

- `rows`: a .npy file of float32 activations [N, A], raw and shuffled; `out`: the folder that gets the results;
- `architecture`: "batchtopk" or "jumprelu"; `width`; `l0`: BatchTopK's k, or the target of JumpReLU's quadratic loss;
- `coefficient` (JumpReLU, 1 by default): the weight of its sparsity loss, Anthropic's tanh where `l0` is missing;
- `learning_rate`, `steps`, `batch_size`, `seed`, `threads`;
- `centre` (true by default): subtract the rows' mean before SAELens scales them;
- `sae`, `trainer`: fields of SAELens's two configurations, in place of the values here.

`out/params.npz` then holds an autoencoder of raw rows x with decoder rows of unit norm: z = x @ W_enc + b_enc,
f = z * 1[z > threshold], x̂ = f @ W_dec + b_dec. It is SAELens's own inference-time autoencoder, folded as a whole,
which is checked. `out/result.json` holds the course of training and every configuration value.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUTrainingSAE
from sae_lens import JumpReLUTrainingSAEConfig as JumpReLUConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

STATISTICS_ROWS, CHECK_ROWS, CHUNK = 131_072, 20_000, 2_000


class Trainer(SAETrainer):
    """SAELens's trainer, which also notes the losses and the L0 of every 50th step."""

    def step(self, batch: torch.Tensor) -> Any:
        output = super().step(batch)
        if self.n_training_steps % 50 == 0:
            losses = {name: float(loss) for name, loss in output.losses.items()}
            l0 = float((output.feature_acts > 0).sum(-1).float().mean())
            self.__dict__.setdefault("curve", []).append({"step": self.n_training_steps, "l0": l0} | losses)
        return output


def statistics(rows: np.ndarray) -> tuple[torch.Tensor, float, float]:
    """Returns the mean of the first rows, their mean norm, and their mean norm once the mean is subtracted."""
    some = rows[:STATISTICS_ROWS]
    mean = some.mean(0, dtype=np.float64).astype(np.float32)
    norms = [(np.linalg.norm(x, axis=1), np.linalg.norm(x - mean, axis=1)) for x in np.array_split(some, 64)]
    raw, centred = (float(np.concatenate(column).mean()) for column in zip(*norms, strict=True))
    return torch.from_numpy(mean), raw, centred


def batches(rows: np.ndarray, size: int, seed: int, offset: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields batches without end, in a new order in each epoch."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(rows) - size + 1, size):
            yield torch.from_numpy(rows[np.sort(order[start : start + size])]) - offset


def new_sae(job: dict[str, Any], inputs: int) -> BatchTopKTrainingSAE | JumpReLUTrainingSAE:
    steps = job["steps"]
    options: dict[str, Any] = {"d_in": inputs, "d_sae": job["width"], "apply_b_dec_to_input": True}
    options["normalize_activations"] = "expected_average_only_in"
    if job["architecture"] == "batchtopk":
        # From SAELens's own 0.1, a third of the latents were dead after 300 steps on Gemma's residual stream.
        options |= {"k": job["l0"], "decoder_init_norm": 0.5} | job.get("sae", {})
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options))
    # At the coefficient that SAELens's documentation gives, 3e-6, most latents died and stayed so in short trials.
    options |= {"pre_act_loss_coefficient": 0.1, "l0_coefficient": job.get("coefficient", 1.0)}
    if job.get("l0") is None:  # the other values that SAELens's documentation recommends (Anthropic's)
        options |= {"jumprelu_sparsity_loss_mode": "tanh", "l0_warm_up_steps": steps}
        options |= {"jumprelu_bandwidth": 2.0, "jumprelu_init_threshold": 0.1}
    else:  # values found by short trials, on seed 0 at a learning rate of 1e-3
        options |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": job["l0"], "l0_warm_up_steps": steps // 2}
        options |= {"jumprelu_bandwidth": 1.0, "jumprelu_init_threshold": 1.0, "decoder_init_norm": 0.5}
        options |= {"jumprelu_ste_to_input": True}
    return JumpReLUTrainingSAE(JumpReLUConfig(**options | job.get("sae", {})))


def train(job: dict[str, Any], rows: np.ndarray) -> tuple[SAE, dict[str, Any]]:
    """Returns SAELens's inference-time autoencoder of raw rows, and a record of its training."""
    mean, raw_norm, centred_norm = statistics(rows)
    centre = job.get("centre", True)
    offset, norm = (mean, centred_norm) if centre else (torch.zeros_like(mean), raw_norm)
    scale = math.sqrt(rows.shape[1]) / norm  # what SAELens would estimate from the stream
    torch.manual_seed(job["seed"])
    sae, steps = new_sae(job, rows.shape[1]), job["steps"]
    options = {
        "total_training_samples": steps * job["batch_size"],
        "train_batch_size_samples": job["batch_size"],
        "lr": job["learning_rate"],
        "lr_end": job["learning_rate"] / 10,  # as in SAELens's runner; its constant schedule ignores it
        "lr_decay_steps": steps // 5,
        "dead_feature_window": max(1, min(1000, steps // 10)),
    }
    config = SAETrainerConfig(**options | job.get("trainer", {}))
    sae.b_dec.data = (mean - offset) * scale
    configs = {"sae_config": sae.cfg.to_dict(), "trainer_config": asdict(config)}
    configs["sae_config"].pop("metadata")
    trainer = Trainer(config, sae, batches(rows, job["batch_size"], job["seed"], offset))
    trainer.activation_scaler.scaling_factor = scale
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:  # saved and loaded, BatchTopK becomes JumpReLU
        sae.save_inference_model(folder)
        trained = SAE.load_from_disk(folder)
    trained.b_dec.data += offset  # it is taken from the input and added to the output: both undo the centring
    account = {"steps": trainer.n_training_steps, "seconds": seconds, "centre": centre, "scale": scale}
    return trained, account | {"curve": trainer.__dict__["curve"]} | configs


def folded(sae: SAE) -> dict[str, torch.Tensor]:
    """Returns the arrays of an autoencoder that subtracts no bias from its input and has decoder rows of unit norm."""
    if sae.cfg.normalize_activations != "none":
        raise ValueError(f"{sae.cfg.normalize_activations} is not folded into the parameters")
    state = {name: value.double() for name, value in sae.state_dict().items()}
    norms = state["W_dec"].norm(dim=1).clamp(min=1e-12)
    bias = state["b_enc"] - sae.cfg.apply_b_dec_to_input * (state["b_dec"] @ state["W_enc"])
    params = {"W_enc": state["W_enc"] * norms, "b_enc": bias * norms, "b_dec": state["b_dec"]}
    params |= {"W_dec": state["W_dec"] / norms[:, None]}
    params |= {"threshold": state["threshold"].clamp(min=0) * norms}  # SAELens has a ReLU besides the threshold
    return {name: value.float() for name, value in params.items()}


def evaluate(sae: SAE, params: dict[str, torch.Tensor], rows: np.ndarray) -> dict[str, float]:
    """Returns how well the folded arrays rebuild some rows, after a check that they agree with SAELens."""
    x_all = torch.from_numpy(np.array(rows[:CHECK_ROWS]))
    mean = x_all.mean(0, dtype=torch.float64).float()
    error = spread = differs = size = active = 0.0
    fires = torch.zeros(len(params["threshold"]), dtype=torch.bool)
    for x in x_all.split(CHUNK):
        z = x @ params["W_enc"] + params["b_enc"]
        f = z * (z > params["threshold"])
        rebuilt, theirs = f @ params["W_dec"] + params["b_dec"], sae(x)
        differs += float((rebuilt - theirs).double().square().sum())
        size += float((theirs - mean).double().square().sum())
        error += float((rebuilt - x).double().square().sum())
        spread += float((x - mean).double().square().sum())
        active += int((f != 0).sum())
        fires |= (f != 0).any(0)
    relative = math.sqrt(differs / max(size, 1e-30))
    if not relative < 1e-3:
        raise ValueError(f"the folded arrays are off from SAELens's own forward pass by {relative}")
    result = {"fvu": error / spread, "l0": active / len(x_all), "dead": int((~fires).sum())}
    return result | {"relative_error_of_folding": relative, "evaluated_rows": len(x_all)}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job.get("threads", 1))
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    rows = np.load(job["rows"], mmap_mode="r")
    sae, account = train(job, rows)
    params = folded(sae)
    with torch.inference_mode():
        result = evaluate(sae, params, rows)
    np.savez(out / "params.npz", **{name: value.numpy() for name, value in params.items()})
    versions = {"sae_lens": sae_lens.__version__, "torch": torch.__version__}
    text = json.dumps(result | account | {"job": job, "versions": versions}, indent=1)
    (out / "result.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
