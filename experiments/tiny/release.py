"""Turns a finished `experiments.tiny.pretrain` run into what is shipped as `gemma/tiny/`.

    python -m experiments.tiny.release

It rounds the weights to bfloat16 first; every loss is of the rounded model. It writes weights, config, tokenizer, the
text that `experiments.scope` reads, the licences of all text, and PROVENANCE.md with the losses.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags
from tqdm import tqdm

import gemma
from experiments.tiny import ngrams
from experiments.tiny.rows import rows, token_losses

_MODEL_DIR = flags.DEFINE_string("model_dir", "runs/tiny/model", "Folder of the training run's checkpoints.")
_CORPUS_DIR = flags.DEFINE_string("corpus_dir", "runs/tiny/corpus", "Folder that experiments.tiny.corpus wrote.")
_TOKENS_DIR = flags.DEFINE_string("tokens_dir", "runs/tiny/tokenizer", "Folder that experiments.tiny.tokenizer wrote.")
_OUT_DIR = flags.DEFINE_string("out_dir", "gemma/tiny", "Folder to write; an existing one is replaced.")
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 4096, "Tokens of one training step, for the record.")

LENGTH, BATCH = 256, 16


def losses(model: gemma.Model, data: np.ndarray) -> np.ndarray:
    """Returns negative log-likelihoods (nats) [R, T-1] of rows [R, T]."""
    step = jax.jit(lambda model, tokens: token_losses(model.apply(tokens), tokens))
    losses_of_batches = []
    for start in tqdm(range(0, len(data), BATCH), desc="held-out loss", mininterval=5.0):
        batch = np.zeros((BATCH, data.shape[1]), np.int32)
        batch[: len(data) - start] = data[start : start + BATCH]
        losses_of_batches.append(np.asarray(step(model, batch))[: len(data) - start])
    return np.concatenate(losses_of_batches)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"flags only, got {argv[1:]}")
    model_dir, corpus_dir, tokens_dir = (Path(d.value).absolute() for d in (_MODEL_DIR, _CORPUS_DIR, _TOKENS_DIR))
    out = Path(_OUT_DIR.value)
    with ocp.CheckpointManager(model_dir, item_handlers=ocp.StandardCheckpointHandler()) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise ValueError(f"{model_dir} holds no checkpoint: run experiments.tiny.pretrain first")
        cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        saved = checkpoints.restore(
            step,
            args=ocp.args.StandardRestore(
                jax.tree.map(
                    lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=cpu),
                    checkpoints.item_metadata(step),
                )
            ),
        )
    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), saved["params"])

    if out.exists():
        shutil.rmtree(out)
    gemma.save(gemma.Model(rounded, gemma.config("gemma2-tiny")), out)
    # The file says where on this machine the checkpoint was written; a local checkpoint loads without it.
    (out / "weights" / "commit_success.txt").unlink(missing_ok=True)
    shutil.copy(tokens_dir / "tokenizer.model", out)
    shutil.copy(corpus_dir / "shipped_train.jsonl", out / "text.jsonl")
    shutil.copy(corpus_dir / "shipped_held_out.jsonl", out / "held_out.jsonl")

    model = gemma.load(out)
    train, held_out = (rows(np.load(tokens_dir / f"{name}.npy"), LENGTH) for name in ("train", "held_out"))
    # pyrefly: ignore[missing-attribute]  not None here
    text = ~np.isin(held_out[:, 1:], model.tokenizer.special_ids)
    V = model.config.vocab_size
    mean_losses = {
        "gemma2-tiny": losses(model, held_out)[text].mean(),
        "bigram": ngrams.bigram_losses(train, held_out, V)[text].mean(),
        "unigram": ngrams.unigram_losses(train, held_out, V)[text].mean(),
    }
    record = {
        "held_out_tokens": int(text.sum()),
        "loss_nats_per_token": {name: round(float(value), 4) for name, value in mean_losses.items()},
        "training": {"steps": step, "tokens": step * _BATCH_TOKENS.value, "tokens_in_corpus": int(train.size)},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(rounded)),
        "sources": json.loads((corpus_dir / "sources.json").read_text(encoding="utf-8")),
    }
    (out / "provenance.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    notices = []
    for name, source in record["sources"].items():
        for path in source["licence_files"]:
            body = (corpus_dir / path).read_text(encoding="utf-8", errors="replace")
            notices.append(f"{'=' * 100}\n{name}: {path}\n{'=' * 100}\n{body.strip()}\n")
    (out / "NOTICES.txt").write_text("\n".join(notices), encoding="utf-8")
    (out / "PROVENANCE.md").write_text(provenance(record), encoding="utf-8")
    print(provenance(record))


def provenance(record: dict) -> str:
    """Returns PROVENANCE.md: what the model is, how it was made, from which text and licences, and its losses."""
    loss = record["loss_nats_per_token"]
    training = record["training"]
    lines = [
        "# gemma2-tiny",
        "",
        f"A language model with Gemma 2's architecture and {record['parameters']:,} parameters, trained from random",
        "weights by `experiments/tiny` in this repository. It has nothing from Google's Gemma weights; weights and",
        "tokenizer are under this repository's licence, Apache-2.0.",
        "",
        f"Trained for {training['steps']:,} steps, {training['tokens']:,} tokens, on a corpus of "
        f"{training['tokens_in_corpus']:,}. The weights are rounded to bfloat16; the figures are of the rounded ones.",
        "",
        f"Loss in nats per token on the same {record['held_out_tokens']:,} tokens of held-out documents:",
        "",
        "| model | loss |",
        "| --- | --- |",
        *(f"| {name} | {value:.3f} |" for name, value in loss.items()),
        "",
        "The bigram is interpolated Kneser-Ney, the unigram add-one, both counted on the training tokens.",
        "",
        "## Text",
        "`text.jsonl` (from the training documents) and `held_out.jsonl` (from the held-out ones) are excerpts of:",
        "",
    ]
    for name, source in record["sources"].items():
        packages = ", ".join(
            f"{p['package']} {p['version']} ({p['registry']}, sha256 {p['sha256']})" for p in source["packages"]
        )
        lines += [f"- **{name}**: {source['licence']}. From {packages}."]
    lines += [
        "",
        "The texts have been cleaned (mark-up, page furniture and boilerplate removed, lines joined) by",
        "`experiments/tiny/corpus.py`. The notices of all four, in full, are in `NOTICES.txt`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
