"""A training run in a process of its own, for tests that kill it or run several of it.

    python train_worker.py ARGUMENTS

ARGUMENTS is JSON: `store`, `checkpoints`, `out`; `mesh` [data, latent]; `steps`, `log_every`; and for one of several
  processes
`process`, `processes` and `port`.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh


def run_config(steps):
    """Two shapes of run, one of them a transcoder; nothing of the recipe is left out."""
    import sae

    more = {"steps": steps, "batch_size": 128, "l0_target": 4.0, "seed": 1, "revival": 1e-3, "dead_tokens": 1000}
    return [
        sae.short_run("x", 64, **more, matryoshka=(0.25,), frequency_factor=10.0),
        sae.short_run("x", 64, site_out="y", skip=True, penalty="linear", controller=0.01, **more),
    ]


def main():
    job = json.loads(sys.argv[1])
    if job.get("processes", 1) > 1:
        jax.distributed.initialize(f"127.0.0.1:{job['port']}", job["processes"], job["process"])
    import sae

    data, latent = job["mesh"]
    mesh = Mesh(np.asarray(jax.devices()).reshape(data, latent), ("data", "latent"))

    def progress(steps, **_):
        for step in steps:
            print(step, flush=True)
            yield step

    autoencoders, history = sae.train(
        run_config(job["steps"]),
        sae.ActivationStore.open(job["store"]),
        mesh,
        checkpoint_dir=job["checkpoints"],
        save_every=4,
        log_every=job.get("log_every", 7),
        progress=progress,
    )
    for number, autoencoder in enumerate(autoencoders):
        sae.save(autoencoder, Path(job["out"]) / str(number))
    if jax.process_index() == 0:
        (Path(job["out"]) / "history.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
