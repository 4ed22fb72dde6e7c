"""The whole way in one command: text, activations, autoencoders, figures, pages.

    python -m experiments.scope --out_dir=runs/scope

Every stage keeps what is there and does what is missing, so that the same command goes on after a stop.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from absl import flags

import gemma
from experiments import common, evaluate, explore, harvest, train

T = TypeVar("T")

OUT_DIR = flags.DEFINE_string("out_dir", "runs/scope", "Folder for store, checkpoints, autoencoders and pages.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)
flags.adopt_module_key_flags(train)


def main():
    for name in ("store_dir", "saes_dir", "checkpoint_dir", "pages_dir"):
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} is for the single steps; here everything goes under --out_dir")
    if train.CROSSCODER.value or train.PLAN_ONLY.value:
        raise ValueError("--crosscoder and --plan_only are for experiments.train: they end without figures and pages")
    out = Path(OUT_DIR.value)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], T]) -> T:
        print(f"{name} …", flush=True)
        began = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - began
        return result

    def load():
        model = gemma.load(common.MODEL.value)
        return model, *common.texts(model)

    model, text, held_out = stage("load", load)
    print(f"  {len(text):,} sequences to harvest (at most --max_sequences), {len(held_out):,} held out")
    sites = harvest.sites(model.config)
    # Before anything is computed, so that a flag out of range is found now and not after the harvest.
    runs = train.configs({site: math.prod(gemma.sites.token_shape(model.config, site)) for site in sites})
    store = stage("harvest", lambda: harvest.harvest(model, text, out / "store"))
    print(f"  {harvest.describe(store)}")
    print(f"  {train.describe(runs[0])}")
    folders = stage("train", lambda: train.train(runs, store, out / "saes", out / "checkpoints"))
    found = stage("evaluate", lambda: evaluate.evaluate(model, folders, held_out))
    first = stage("pages", lambda: explore.explore(model, out / "saes", folders, held_out, out / "pages"))

    print("\n" + evaluate.table(list(zip(folders, found, strict=True))))
    print(f"\non {found[0].tokens:,} tokens of held-out text, without BOS, EOS, padding and what training left out")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    print(f"picture: {first.parent / 'tradeoff.png'}")
    print(f"open:    {first}")


if __name__ == "__main__":
    common.run(main)
