"""What harvesting costs over the bare forward pass, and how fast a store's batches come.

    python -m experiments.benchmarks.store_speed --model=gemma3-270m

Harvesting: in rounds, the bare forward pass to the same sites (nothing copied to the host) and the harvest of the same
sequences take turns. Reading: numpy reads the store's float32 files from beginning to end, `store.batches` delivers the
same rows shuffled; both from a cold page cache (each file is dropped by posix_fadvise before), then from a warm one.
"""

import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags

import gemma
import sae
from experiments import common, running
from sae.capturing import activations_at
from sae.text import batch_at

LAYERS = flags.DEFINE_list("layers", ["5", "9", "12"], "Layers whose attn_z, mlp_out and resid_post are harvested.")
SEQUENCES = flags.DEFINE_integer("sequences", 96, "Sequences of a round.", lower_bound=16)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of harvesting, after one to warm up.", lower_bound=1)
READ_GIB = flags.DEFINE_float("read_gib", 2.0, "Size of the store that is read.", lower_bound=0.1)
READ_ROUNDS = flags.DEFINE_integer("read_rounds", 5, "Rounds of reading.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4096, "Rows of a batch.", lower_bound=1)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def harvesting(model: gemma.Model, folder: Path) -> str:
    sites = tuple(f"layer_{layer}/{kind}" for layer in LAYERS.value for kind in ("attn_z", "mlp_out", "resid_post"))
    text, _ = common.texts(model)
    text = text.take(slice(0, SEQUENCES.value))

    def bare():
        for start in range(0, len(text), 16):
            # pyrefly: ignore[missing-attribute]  not None here
            tokens = batch_at(text.tokens, start, 16, model.tokenizer.pad)
            jax.block_until_ready(activations_at(model, tokens, sites))

    def harvest():
        sae.harvest(model, text, sites, folder, shuffle_rows=16 * text.tokens.shape[1])

    forward, stored = [], []
    for round_ in common.progress(range(ROUNDS.value + 1), total=ROUNDS.value + 1, desc="harvest"):
        # Not timed, since removing the store of the round before is no part of a harvest.
        shutil.rmtree(folder, ignore_errors=True)
        a, b = seconds(bare), seconds(harvest)
        if round_:
            forward.append(a)
            stored.append(b)
    ratios = [b / a for a, b in zip(forward, stored, strict=True)]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return (
        f"{model.config.name}, {len(sites)} sites of layers {', '.join(LAYERS.value)}, {len(text)} sequences of "
        f"{text.tokens.shape[1]} tokens: forward {statistics.median(forward):.2f} s, harvest of {size / 1e6:.0f} MB "
        f"{statistics.median(stored):.2f} s: {statistics.median(ratios):.3f} times "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def make_store(folder: Path, width: int) -> sae.ActivationStore:
    """Makes a store of random rows, in segments as a harvest writes them."""
    from sae.store import claims, writing
    from sae.store import manifest as manifests
    from sae.store.places import place

    segment = 1 << 17
    segments = max(1, round(READ_GIB.value * 2**30 / (4 * width * segment)))
    manifest = manifests.Manifest(
        model="random",
        model_fingerprint="",
        tokenizer_sha256="",
        sites={"x": (width,)},
        dtype="float32",
        corpus_sha256="",
        sequences=segments * segment,
        length=2,
        sequences_per_segment=segment,
        seed=0,
        counted=sae.Counted(()),
        documents_sha256=manifests.documents_sha256((("", ""),)),
    )
    where = place(folder)
    manifests.write(where, manifest, (("", ""),))
    x = np.random.default_rng(0).normal(size=(segment, width)).astype(np.float32)
    fields = {name: np.zeros(segment, np.int32) for name in manifests.ROW_FIELDS}
    for index in range(segments):
        writing.write_segment(where, claims.claim(where, index), {"x": x}, fields, manifest)
    return sae.ActivationStore.open(folder)


def reading(store: sae.ActivationStore) -> str:
    # pyrefly: ignore[missing-attribute]  in a folder, not in a bucket
    files = sorted(path for path in store.path.glob("segment_*/x/c/**/*") if path.is_file())
    size = sum(path.stat().st_size for path in files)

    def drop():
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sequential():
        buffer = np.empty(1 << 26, np.uint8)
        for path in files:
            with open(path, "rb", buffering=0) as file:
                # pyrefly: ignore[bad-argument-type]  an array is a buffer
                while file.readinto(buffer):
                    pass

    def whole():
        for path in files:
            np.fromfile(path, np.float32, count=path.stat().st_size // 4)

    batches_read = store.batches_per_pass(BATCH_SIZE.value)

    def batches():
        reader = store.batches(BATCH_SIZE.value, ["x"])
        for _ in range(batches_read):
            next(reader)
        reader.close()

    rate = {}
    for round_ in common.progress(range(READ_ROUNDS.value), total=READ_ROUNDS.value, desc="read"):
        for cold in (True, False):
            runs = {"np.fromfile": whole, "readinto a buffer": sequential, "batches": batches}
            # By turns, beginning with another one in each round.
            names = list(runs)[round_ % 3 :] + list(runs)[: round_ % 3]
            for name in names:
                if cold:
                    drop()
                took = seconds(runs[name])
                read = size if name != "batches" else batches_read * BATCH_SIZE.value * store.width("x") * 4
                rate.setdefault((cold, name), []).append(read / took / 1e9)
    lines = [f"a store of {size / 2**30:.1f} GiB, width {store.width('x')}, batches of {BATCH_SIZE.value}:"]
    for cold in (True, False):
        ours = statistics.median(rate[cold, "batches"])
        parts = []
        for name in ("np.fromfile", "readinto a buffer"):
            ratios = [b / a for a, b in zip(rate[cold, name], rate[cold, "batches"], strict=True)]
            parts.append(
                f"{statistics.median(ratios):.2f} of {name}'s {statistics.median(rate[cold, name]):.2f} GB/s "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        lines.append(f"  {'cold' if cold else 'warm'}: batches {ours:.2f} GB/s: " + ", ".join(parts))
    return "\n".join(lines)


def main():
    model = gemma.load(common.MODEL.value)
    with tempfile.TemporaryDirectory() as folder:
        print(harvesting(model, Path(folder) / "harvest"))
        print(reading(make_store(Path(folder) / "store", model.config.d_model)))
    print(f"largest resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    flags.FLAGS.set_default("model", "gemma3-270m")
    running.run(main)
