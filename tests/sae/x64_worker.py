"""The road from text to steering, in a process of its own: `python -m tests.sae.x64_worker FOLDER`.

FOLDER has the checkpoint of a run that was stopped. What comes out is JSON on standard output: figures by name.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import gemma
import sae
from sae.evaluation.latents import latent_statistics, top_tokens
from sae.text import Document, cut

SITES = ("layer_0/mlp_in", "layer_0/mlp_out")
SIZES = {"width": 32, "steps": 8, "batch_size": 32, "l0_target": 4.0}


def runs():
    """Nothing of the trainer is left out: a transcoder with Adam and log(theta), and a crosscoder with RMSProp."""
    parts = {"skip": True, "log_threshold": True, "matryoshka": (0.25,), "revival": 1e-3}
    return [sae.short_run(SITES[0], site_out=SITES[1], **SIZES, **parts), sae.gemma_scope_2(SITES, **SIZES)]


def road(folder: Path, progress=lambda steps, **_: steps) -> dict:
    """Harvests, trains from a checkpoint on, evaluates, saves, loads and steers; figures by name."""
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "latent"))
    model = gemma.load("gemma2-tiny")
    text = cut([Document(f"d{i}", "s", f"And king {i} went up.") for i in range(24)], model.tokenizer, 16)
    store = sae.harvest(
        model, text, SITES, folder / "store", counted=sae.Counted(model.tokenizer.special_ids, sinks=sae.Sinks(4.0))
    )
    autoencoders, history = sae.train(
        runs(), store, mesh, checkpoint_dir=folder / "c", save_every=3, log_every=2, progress=progress
    )
    stream = sae.stream(model, text, SITES, shuffle_rows=8 * 15)
    (streamed,), _ = sae.train(runs()[0], stream, mesh)
    for leaf in jax.tree.leaves([*autoencoders, streamed]):
        assert leaf.dtype == jnp.float32, leaf.dtype
    sae.save(autoencoders[0], folder / "saved")
    loaded = sae.load(folder / "saved")
    metrics = sae.evaluate(loaded, model, text.tokens)
    statistics = latent_statistics(loaded, model, text.tokens, SITES[0])
    top = top_tokens(loaded, model, SITES[1], count=3)
    direction = 50.0 * np.asarray(loaded.W_dec[3], np.float64)  # float64, where JAX has it
    made = gemma.generate(model, "The sea", max_new_tokens=4, edits={SITES[1]: lambda value, _: value + direction})
    lower = gemma.load("gemma2-tiny", dtype=jnp.bfloat16)
    rounded = sae.harvest(lower, text, SITES, folder / "bfloat16", dtype="bfloat16")
    return {
        "losses": [record["loss"] for record in history],
        "norms": [float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(autoencoders)],
        "streamed": float(np.linalg.norm(streamed.W_enc)),
        "metrics": [metrics.l0, metrics.fvu, metrics.loss, metrics.loss_spliced, metrics.loss_zero],
        "fired": int(statistics.fired.sum()),
        "promoted": float(np.abs(top.promotion).sum()),
        "steered": made.tokens.tolist(),
        "rows": [store.rows, rounded.rows],
        "rounded": rounded.mean_squared_norm(SITES[1]),
    }


if __name__ == "__main__":
    print(json.dumps(road(Path(sys.argv[1])) | {"x64": jax.config.jax_enable_x64}))
