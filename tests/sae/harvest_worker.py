"""A harvest in a process of its own, for tests that kill it.

python harvest_worker.py STORE SHARE DEVICES
"""

import os
import sys
import tempfile

import jax
import numpy as np
from jax.sharding import Mesh

import gemma
import sae
from sae.text import Document, cut

SITES = ["layer_1/attn_z", "layer_0/mlp_out", "layer_1/resid_post"]


def text(model):
    """400 sequences of 16 tokens from 80 documents: a hundred segments of 60 rows or fewer."""
    words = ["in", "the", "beginning", "was", "word", "and", "king", "said", "unto", "him", "go", "forth"]
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i}", f"s{i % 3}", " ".join(rng.choice(words, 70))) for i in range(80)]
    return cut(documents, model.tokenizer, 16).take(slice(0, 400))


def main():
    where, share, devices = sys.argv[1:]
    which, of = map(int, share.split("/"))
    mesh = Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent")) if int(devices) > 1 else None
    model = gemma.load("gemma2-tiny", mesh=mesh)
    sequences = text(model)
    with tempfile.TemporaryDirectory() as folder:
        sae.harvest(model, sequences.take(slice(0, 4)), SITES, folder, mesh=mesh)
    print("ready", flush=True)
    sae.harvest(model, sequences, SITES, where, shuffle_rows=60, sink_factor=3.0, share=(which, of), mesh=mesh)
    print("done", flush=True)


if __name__ == "__main__":
    devices = int(sys.argv[3])
    assert jax.device_count() == devices, f"{jax.device_count()} devices, {devices} asked for; {os.environ}"
    main()
