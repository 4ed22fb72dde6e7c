"""sparsify's half of `make test-peers-sparsify`; see `sparsify_ours.py`. Imports nothing of this project's packages."""

import sys
from importlib.metadata import version
from pathlib import Path

import comparing
import torch
from sparsify import SparseCoder, SparseCoderConfig

READER = f"sparsify {version('eai-sparsify')}"
A, BATCH, STEPS = 16, 64, 20
TRAINED = {
    "layers.1": {"expansion_factor": 3},
    "multi": {"num_latents": 40, "multi_topk": True, "normalize_decoder": False},
    "transcoder": {"num_latents": 40, "transcode": True},
    "transcoder-skip": {"num_latents": 40, "transcode": True, "skip_connection": True},
    "autoencoder-skip": {"num_latents": 40, "skip_connection": True},
    "groupmax": {"num_latents": 40, "activation": "groupmax"},
}
REFUSED = ("groupmax",)


def compute(coder: SparseCoder, x: torch.Tensor) -> tuple:
    """The latents [B, Z] and the output [B, A] as numpy's."""
    coder.cfg.multi_topk = False  # a part of the loss, of 4 k latents, whose output the forward pass would return
    with torch.no_grad():
        acts, indices, _ = coder.encode(x)
        latents = torch.zeros(len(x), coder.num_latents).scatter_(1, indices, acts)
        return latents.numpy(), coder(x).sae_out.numpy()


def train(words: dict, folder: Path) -> None:
    """Trains for a few steps, saves, and keeps what sparsify computes with what it loads."""
    torch.manual_seed(0)
    coder = SparseCoder(A, SparseCoderConfig(k=5, **words))
    target = torch.randn(A, A) / A**0.5
    if coder.cfg.transcode:  # its decoder starts at 0
        torch.nn.init.normal_(coder.W_dec, std=0.3)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    for _ in range(STEPS):
        x = torch.randn(BATCH, A) + torch.linspace(-1, 1, A)
        result = coder(x, x @ target if coder.cfg.transcode else x)
        (result.fvu + result.multi_topk_fvu / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
    if coder.cfg.normalize_decoder and not coder.cfg.transcode:
        coder.set_decoder_norm_to_unit_norm()
    coder.save_to_disk(folder)
    comparing.keep(folder, x.numpy(), *compute(SparseCoder.load_from_disk(folder), x))


def main(folder: Path) -> None:
    """Reads ours, then trains and saves all that is to be read."""
    for place in sorted((folder / "ours").iterdir()):
        x = torch.from_numpy(comparing.inputs(place))
        comparing.compare(place, READER, *compute(SparseCoder.load_from_disk(place), x))
    for name, words in TRAINED.items():
        train(words, folder / "theirs" / name)
    for name in REFUSED:
        comparing.keep_refused(folder / "theirs" / name, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
