"""A harvest in a process of its own, for tests that kill or suspend it.

python harvest_worker.py STORE WORKER DEVICES [OPTIONS]

It says when it is ready, and begins when it has read a line. OPTIONS is a JSON object:
  host: a name for this machine. clock: seconds to add to its clock.
  silent_seconds: as of `sae.harvest`.
  pause: seconds to wait before each batch.
  hold: seconds that it rests in each segment that it has claimed.
  stores: harvests so many, STORE/0, STORE/1, …, each again and again until it is complete, whoever else is at it.
  batches: of each try, after which it gives up. rest: seconds until the next try.
"""

import json
import os
import socket
import sys
import tempfile
import time

import jax
import numpy as np
from jax.sharding import Mesh

import gemma
import sae
from sae.store.claims import Claim
from sae.text import Document, cut

SITES = ["layer_1/attn_z", "layer_0/mlp_out", "layer_1/resid_post"]


def text(model):
    """400 sequences of 16 tokens from 80 documents: a hundred segments of 60 rows or fewer."""
    words = ["in", "the", "beginning", "was", "word", "and", "king", "said", "unto", "him", "go", "forth"]
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i}", f"s{i % 3}", " ".join(rng.choice(words, 70))) for i in range(80)]
    return cut(documents, model.tokenizer, 16).take(slice(0, 400))


def be_elsewhere(host, clock):
    """Gives this process another machine's name and clock."""
    now = time.time
    socket.gethostname = lambda: host
    time.time = lambda: now() + clock


def hold(seconds):
    """Has each claim last for longer, so that a signal finds one."""
    create, take_over = Claim.create, Claim.take_over

    def rested(held):
        time.sleep(seconds if held else 0)
        return held

    Claim.create = lambda self: rested(create(self))
    Claim.take_over = lambda self, contents: rested(take_over(self, contents))


def slowly(pause, batches=None):
    """A `progress` that waits before each batch, and gives up after so many."""

    def progress(steps, **_):
        for number, step in enumerate(steps):
            if number == batches:
                raise OSError("enough")
            time.sleep(pause)
            yield step

    return progress


def main():
    where, worker, devices, options = [*sys.argv[1:], "{}"][:4]
    index, count = map(int, worker.split("/"))
    options = json.loads(options)
    stores, rest = options.pop("stores", 0), options.pop("rest", 0.05)
    if "host" in options:
        be_elsewhere(options.pop("host"), options.pop("clock"))
    hold(options.pop("hold", 0))
    if "pause" in options:
        options["progress"] = slowly(options.pop("pause"), options.pop("batches", None))
    mesh = Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent")) if int(devices) > 1 else None
    model = gemma.load("gemma2-tiny", mesh=mesh)
    sequences = text(model)
    with tempfile.TemporaryDirectory() as folder:
        sae.harvest(model, sequences.take(slice(0, 4)), SITES, folder, mesh=mesh)
    counted = sae.Counted(model.tokenizer.special_ids, sinks=sae.Sinks(3.0))
    options |= {"shuffle_rows": 60, "counted": counted, "worker": (index, count), "mesh": mesh}
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(stores):
        while True:
            try:
                sae.harvest(model, sequences, SITES, f"{where}/{number}", **options)
                break
            except OSError as error:  # another one is at it
                print(str(error).replace("\n", " "), file=sys.stderr, flush=True)
                time.sleep(rest)
    if not stores:
        sae.harvest(model, sequences, SITES, where, **options)
    print("done", flush=True)


if __name__ == "__main__":
    devices = int(sys.argv[3])
    assert jax.device_count() == devices, f"{jax.device_count()} devices, {devices} asked for; {os.environ}"
    main()
