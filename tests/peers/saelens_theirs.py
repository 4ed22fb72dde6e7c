"""SAELens's half of `make test-peers-saelens`; see `saelens_ours.py`. Imports nothing of this project's packages."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import comparing
import sae_lens
import torch
from sae_lens import SAE, LoggingConfig, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata

READER = f"SAELens {sae_lens.__version__}"
A, Z, BATCH, STEPS = 16, 48, 64, 24
SHIFT = torch.linspace(-1, 1, A)
SCALED = {"normalize_activations": "expected_average_only_in"}
# What SAELens trains: the class, and its config beside the sizes.
TRAINED = {
    "standard": ("StandardTrainingSAE", {"l1_coefficient": 0.1}),
    "standard-unshifted": ("StandardTrainingSAE", {"l1_coefficient": 0.1, "apply_b_dec_to_input": False}),
    "standard-scaled": ("StandardTrainingSAE", SCALED),
    "gated": ("GatedTrainingSAE", {"l1_coefficient": 0.1}),
    "gated-scaled": ("GatedTrainingSAE", SCALED),
    "topk": ("TopKTrainingSAE", {"k": 6}),
    "topk-plain": ("TopKTrainingSAE", {"k": 6, "rescale_acts_by_decoder_norm": False}),
    "topk-scaled": ("TopKTrainingSAE", {"k": 6, **SCALED}),
    "topk-layer-norm": ("TopKTrainingSAE", {"k": 6, "normalize_activations": "layer_norm"}),
    "jumprelu": ("JumpReLUTrainingSAE", {"l0_coefficient": 0.1, "jumprelu_bandwidth": 0.5}),
    "jumprelu-scaled": ("JumpReLUTrainingSAE", SCALED),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": 6}),
    "matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": 6, "matryoshka_widths": [16, Z]}),
}
TRANSCODERS = {
    "transcoder": "Transcoder",
    "skip_transcoder": "SkipTranscoder",
    "jumprelu_transcoder": "JumpReLUTranscoder",
    "jumprelu_skip_transcoder": "JumpReLUSkipTranscoder",
}
# What is not read: the class, its config, and the word by which the error names it.
REFUSED = {
    "layer-norm": ("StandardSAE", {"normalize_activations": "layer_norm"}, "layer_norm"),
    "constant-norm": ("StandardSAE", {"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
    "matching-pursuit": ("MatchingPursuitSAE", {}, "matching_pursuit"),
    "temporal": ("TemporalSAE", {"n_heads": 2, "bottleneck_factor": 4}, "temporal"),
}


def check(folder: Path) -> None:
    """Loads what `sae.save(format="saelens")` wrote, and compares.

    Raises:
      ValueError: for latents or reconstructions that are not ours.
    """
    autoencoder, x = SAE.load_from_disk(folder), torch.from_numpy(comparing.inputs(folder))
    comparing.compare(folder, READER, *compute(autoencoder, x))


def compute(autoencoder: SAE, x: torch.Tensor) -> tuple:
    """The latents and the reconstruction, as numpy's; latents of normalised tokens in raw units, as ours are."""
    with torch.no_grad():
        latents = autoencoder.encode(x)
        if autoencoder.cfg.normalize_activations == "layer_norm":
            latents = latents * x.std(dim=-1, keepdim=True)
        return latents.numpy(), autoencoder(x).numpy()


def keep(folder: Path, autoencoder: SAE) -> None:
    """Writes what SAELens computes with a saved autoencoder beside its files."""
    x = next(batches(2))
    comparing.keep(folder, x.numpy(), *compute(autoencoder, x))


def batches(seed: int) -> Iterator[torch.Tensor]:
    """Random activations with a mean, and with norms other than the square root of A."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield 2 * torch.randn(BATCH, A, generator=generator) + SHIFT


def build(name: str, **words: object) -> SAE:
    """An autoencoder of one of SAELens's classes."""
    metadata = SAEMetadata(model_name="google/gemma-2-2b", hook_name="blocks.1.hook_resid_post", prepend_bos=True)
    torch.manual_seed(0)
    config = getattr(sae_lens, f"{name}Config")(d_in=A, d_sae=Z, metadata=metadata, **words)
    return getattr(sae_lens, name)(config)


def train(name: str, folder: Path, checkpoints: Path) -> Path:
    """Trains for a few steps and saves as SAELens does at the end.

    Args:
      name: in TRAINED.
      folder: for what is saved at the end.
      checkpoints: for what is saved half-way.

    Returns:
      The folder of the checkpoint of half-way.
    """
    kind, words = TRAINED[name]
    autoencoder = build(kind, **words)
    config = SAETrainerConfig(
        n_checkpoints=1,
        checkpoint_path=str(checkpoints),
        save_final_checkpoint=False,
        total_training_samples=BATCH * STEPS,
        device="cpu",
        autocast=False,
        lr=1e-2,
        lr_end=1e-2,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=1000,
        feature_sampling_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=4,
    )
    trained = SAETrainer(config, autoencoder, batches(1)).fit()
    trained.save_inference_model(folder)
    keep(folder, SAE.load_from_disk(folder))
    (checkpoint,) = checkpoints.iterdir()
    return checkpoint


def keep_checkpoint(checkpoint: Path, folder: Path) -> None:
    """A checkpoint of half-way, whose scale of the inputs lies in a file of its own; SAELens folds it at the end."""
    shutil.copytree(checkpoint, folder)
    architecture = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))["architecture"]
    if "batchtopk" in architecture:  # its threshold becomes JumpReLU's at the end alone
        comparing.keep_refused(folder, architecture)
        return
    autoencoder = TrainingSAE.load_from_disk(folder)
    scaler = json.loads((folder / "activation_scaler.json").read_text(encoding="utf-8"))["scaling_factor"]
    if scaler is not None:
        autoencoder.fold_activation_norm_scaling_factor(scaler)
    keep(folder, autoencoder)


def main(folder: Path) -> None:
    """Reads ours, then trains and saves all that is to be read."""
    for place in sorted((folder / "ours").iterdir()):
        check(place)
    theirs = folder / "theirs"
    for name in TRAINED:
        checkpoint = train(name, theirs / name, folder / "checkpoints" / name)
        keep_checkpoint(checkpoint, theirs / f"{name}-checkpoint")
    negative = SAE.load_from_disk(theirs / "jumprelu")  # training moves thresholds, also below 0
    with torch.no_grad():
        negative.threshold[::3] *= -1
    negative.save_model(theirs / "jumprelu-negative")
    keep(theirs / "jumprelu-negative", negative)
    for name, kind in TRANSCODERS.items():
        transcoder = build(kind, d_out=A - 5, apply_b_dec_to_input=False)
        with torch.no_grad():
            for parameter in transcoder.parameters():
                parameter.normal_(std=0.3)
            if hasattr(transcoder, "threshold"):
                transcoder.threshold.abs_()
        transcoder.save_model(theirs / name)
        keep(theirs / name, SAE.load_from_disk(theirs / name))
    for name, (kind, words, word) in REFUSED.items():
        build(kind, **words).save_model(theirs / name)
        comparing.keep_refused(theirs / name, word)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
