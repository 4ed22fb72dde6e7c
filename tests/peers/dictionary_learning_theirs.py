"""dictionary_learning's half of `make test-peers-dictionary-learning`; see `dictionary_learning_ours.py`. Imports
nothing of this project's packages.
"""

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import comparing
import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, p_anneal, standard, top_k
from dictionary_learning.training import trainSAE

READER = f"dictionary_learning {version('dictionary-learning')}"
A, Z, BATCH, STEPS = 16, 48, 64, 30
ALL = {
    "steps": STEPS,
    "activation_dim": A,
    "dict_size": Z,
    "layer": 8,
    "lm_name": "google/gemma-2-2b",
    "submodule_name": "resid_post_layer_8",
    "device": "cpu",
    "seed": 0,
    "warmup_steps": 2,
}
L1 = {"l1_penalty": 0.05, "sparsity_warmup_steps": 2}
K = {"k": 6, "lr": 1e-3, "threshold_start_step": 4, "threshold_beta": 0.8}
JUMP = {"lr": 1e-2, "bandwidth": 0.1, "target_l0": 6.0, "sparsity_warmup_steps": 2}
ANNEALED = {"sparsity_warmup_steps": 2, "anneal_start": 5, "p_end": 0.2}
GROUPS = {"group_fractions": [0.25, 0.75]}
# By the name of the folder: the trainer, the class that loads what it saves, and its words beside those of all.
TRAINED = {
    "standard": (standard.StandardTrainer, dictionary.AutoEncoder, L1),
    "standard-april": (standard.StandardTrainerAprilUpdate, dictionary.AutoEncoder, L1),
    "p-anneal": (p_anneal.PAnnealTrainer, dictionary.AutoEncoder, ANNEALED),
    "gated": (gdm.GatedSAETrainer, dictionary.GatedAutoEncoder, L1),
    "topk": (top_k.TopKTrainer, top_k.AutoEncoderTopK, K),
    "batchtopk": (batch_top_k.BatchTopKTrainer, batch_top_k.BatchTopKSAE, K),
    "matryoshka": (
        matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
        matryoshka_batch_top_k.MatryoshkaBatchTopKSAE,
        K | GROUPS,
    ),
    "jumprelu": (jumprelu.JumpReluTrainer, dictionary.JumpReluAutoEncoder, JUMP),
}


def batches() -> Iterator[torch.Tensor]:
    """Random activations with a mean."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(BATCH, A, generator=generator) + torch.linspace(-1, 1, A)


def train(name: str, folder: Path, normalised: bool) -> None:
    """Trains for a few steps by dictionary_learning's own loop, which saves, and keeps what its class computes.

    Args:
      name: in TRAINED.
      folder: for what it saves.
      normalised: whether the loop divides activations by their norm, and multiplies the biases before it saves.
    """
    trainer, kind, words = TRAINED[name]
    scratch = folder.parents[1] / "runs" / folder.name
    trainSAE(
        batches(),
        [{"trainer": trainer, **ALL, **words}],
        steps=STEPS,
        save_dir=str(scratch),
        normalize_activations=normalised,
        device="cpu",
    )
    shutil.copytree(scratch / "trainer_0", folder)
    # By default it scales the decoder's rows to norm 1 as it loads, which its files do not have.
    words = {"normalize_decoder": False} if kind is dictionary.AutoEncoder else {}
    loaded, x = kind.from_pretrained(str(folder / "ae.pt"), **words), next(batches())
    with torch.no_grad():
        comparing.keep(folder, x.numpy(), loaded.encode(x).numpy(), loaded(x).numpy())


if __name__ == "__main__":
    run = Path(sys.argv[1])
    comparing.keep_peer(run, READER)
    for name in TRAINED:
        train(name, run / "theirs" / name, normalised=False)
    for name in ("topk", "jumprelu", "gated"):
        train(name, run / "theirs" / f"{name}-normalised", normalised=True)
