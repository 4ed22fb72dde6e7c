r"""What narrower stores cost an autoencoder: the same run trained from float32, bfloat16 and int8 rows of one harvest.

    python -m experiments.benchmarks.store_dtypes --model=gemma3-270m --out_dir=runs/store_dtypes \
        --sites=layer_9/resid_post --max_sequences=700 --eval_sequences=16 --width=2048 --l0_targets=40 --sink_factor=4

The three stores have the same rows in the same order; the runs have the same seed, and so the same batches.
"""

from pathlib import Path

from absl import flags

import gemma
import sae
from experiments import common, harvest, running, train
from experiments.scope import OUT_DIR
from sae.evaluation.fidelity import baseline
from sae.store.codec import names

# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)
flags.adopt_module_key_flags(train)


def stored_bytes(store: sae.ActivationStore, site: str) -> int:
    """Returns the bytes of one site on the disk, with int8's scales."""
    name = site.replace("/", ".")
    # pyrefly: ignore[missing-attribute]  in a folder, not in a bucket
    folders = [path for path in store.path.glob(f"segment_*/{name}*")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def main():
    out = Path(OUT_DIR.value)
    model = gemma.load(common.MODEL.value)
    text, held_out = common.texts(model)
    (site,) = harvest.sites(model)[-1:]
    print(f"{model.config.name}, {site}\n")
    rows = []
    shared = None
    for dtype in names():
        store = sae.harvest(
            model,
            text,
            [site],
            out / dtype,
            dtype=dtype,
            seed=common.SEED.value,
            counted=harvest.counted(model),
            progress=common.progress,
        )
        runs = train.configs({site: store.width(site)})
        autoencoders, _ = sae.train(runs, store, progress=common.progress)
        for config, autoencoder in zip(runs, autoencoders, strict=True):
            # pyrefly: ignore[missing-attribute]  not None here
            counted = autoencoder.info.counted
            if shared is None or shared.counted != counted:
                shared = baseline(model, held_out, site, counted=counted, progress=common.progress)
            result = sae.evaluate(autoencoder, model, held_out, baseline=shared, progress=common.progress)
            rows.append(
                f"| {dtype} | {stored_bytes(store, site) / store.rows:,.0f} | {config.l0_target:g} | {result.l0:.1f} | "
                f"{result.fvu:.4f} | {result.loss_recovered:.4f} | {result.loss_spliced - result.loss:.4f} |"
            )
    print("| store | bytes a row | target L0 | L0 | FVU | loss recovered | delta loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    # pyrefly: ignore[unbound-name]  set before it is read
    print(f"\n{store.rows:,} tokens, {runs[0].steps} steps of {runs[0].batch_size}, width {runs[0].width}")


if __name__ == "__main__":
    running.run(main)
