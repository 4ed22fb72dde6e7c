"""Trains gemma2-tiny, the language model that this repository ships, on what `experiments.tiny.tokenizer` wrote.

    python -m experiments.tiny.pretrain --tokens_dir=runs/tiny/tokenizer --out_dir=runs/tiny/model

It resumes from its last checkpoint. The batch of a step is a function of (seed, step), so a run that was stopped and
resumed gives the same model. `experiments.tiny.release` rounds the result to bfloat16, measures it and writes the
files that the package ships.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import gemma
from experiments.tiny.rows import batch_at, rows, token_losses

_TOKENS_DIR = flags.DEFINE_string("tokens_dir", "runs/tiny/tokenizer", "Folder with train.npy (uint16 token ids).")
_OUT_DIR = flags.DEFINE_string("out_dir", "runs/tiny/model", "Folder for checkpoints; an unfinished run resumes.")
_STEPS = flags.DEFINE_integer("steps", 2100, "Optimizer steps in all.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 16, "Sequences a step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens a sequence, BOS included.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate; cosine decay to a tenth of it.")
_SEED = flags.DEFINE_integer("seed", 0, "Seeds the initial weights and the order of the data.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps between checkpoints.", lower_bound=1)


def optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """Returns AdamW with clipping, and without decay of the norms' scales, which are vectors."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(200, steps // 2), steps, learning_rate / 10)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"flags only, got {argv[1:]}")
    data = rows(np.load(Path(_TOKENS_DIR.value) / "train.npy"), _LENGTH.value)
    model = gemma.Transformer(gemma.config("gemma2-tiny"))
    transform = optimizer(_STEPS.value, _LEARNING_RATE.value)

    def initial_state(key):
        tokens = jnp.zeros((1, _LENGTH.value), jnp.int32)
        params = model.init(key, tokens)["params"]
        return {"params": params, "optimizer": transform.init(params)}

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, tokens):
        def loss_of(params):
            logits = model.apply({"params": params}, tokens)
            # pyrefly: ignore[bad-argument-type]  without a cache it is the logits alone
            return token_losses(logits, tokens).mean()

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, opt_state = transform.update(grads, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": opt_state}, loss

    # The batch is spread over all devices; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two cores
    # two devices, which uses them better than two threads in every operation.
    mesh = Mesh(jax.devices(), ("data",))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.jit(initial_state, out_shardings=replicated)(jax.random.key(_SEED.value))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=_SAVE_EVERY.value)
    with ocp.CheckpointManager(Path(_OUT_DIR.value).absolute(), options=options) as checkpoints:
        start = 0
        if checkpoints.latest_step() is not None:
            start = checkpoints.latest_step()
            state = checkpoints.restore(start, args=ocp.args.StandardRestore(state))
            logging.info("resumed at step %d", start)
        bar = tqdm(range(start, _STEPS.value), initial=start, total=_STEPS.value, unit="step", mininterval=5.0)
        recent = []
        for step in bar:
            state, loss = train_step(state, jax.device_put(batch_at(data, step, _BATCH.value, _SEED.value), split))
            # One step at a time: on a CPU, the collectives of steps in flight can starve each other of threads.
            recent.append(jax.block_until_ready(loss))
            if (step + 1) % 50 == 0:
                bar.set_postfix(loss=f"{np.mean(jax.device_get(recent)):.3f}")
                recent.clear()
            checkpoints.save(step + 1, args=ocp.args.StandardSave(state), force=step + 1 == _STEPS.value)


if __name__ == "__main__":
    app.run(main)
