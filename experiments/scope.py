"""The whole way in one command: text, activations, autoencoders, metrics, pages.

    python -m experiments.scope --out_dir=runs/scope

Every stage keeps what exists and makes what is missing, so that the same command goes on after a stop.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from absl import flags

from sae.files import local_path
from sae.sites import dim

from . import common, evaluate, explore, harvest, recorded, run_words, running, train

T = TypeVar("T")

MOST = 2000  # sequences to harvest, unless --max_sequences gives a number
OUT_DIR = flags.DEFINE_string("out_dir", "runs/scope", "Folder for store, checkpoints, autoencoders and pages.")
_PLACES = ("store_dir", "saes_dir", "checkpoint_dir")
_OTHERS = {"worker": "harvest", "silent_seconds": "harvest", "distributed": "train"}
REFUSED = (*_PLACES, *_OTHERS, "crosscoder", "estimate_only", "topology")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)
flags.adopt_module_key_flags(train)


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or that are for the single steps."""
    for name in _PLACES:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} is for the single steps; here everything goes under --out_dir")
    if train.CROSSCODER.value or train.ESTIMATE_ONLY.value:
        raise ValueError("--crosscoder and --estimate_only go with the launch train: they make no metrics and pages")
    for name, launch in _OTHERS.items():
        if flags.FLAGS[name].present and flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise ValueError(f"--{name} is for the launch {launch}: here one process does everything")
    harvest.check_harvest()
    train.check_runs()


def main():
    most = common.MAX_SEQUENCES.value if flags.FLAGS["max_sequences"].present else MOST
    if most:
        print(f"at most {most:,} sequences of the text are harvested, taken at random (--max_sequences=0 for all)")
    common.keep_compiled_programs()
    out = local_path(OUT_DIR.value)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], T]) -> T:
        print(f"{name} …", flush=True)
        began = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - began
        return result

    def load():
        model = common.load_model()
        return model, *common.texts(model, most=most, folder=out / "text", say=lambda line: print(f"  {line}"))

    model, text, held_out = stage("load", load)
    print(f"  {len(text):,} sequences to harvest, {len(held_out):,} held out")
    sites = harvest.sites(model)
    # Before anything is computed, so that a flag out of range is an error now and not after the harvest.
    runs = train.configs({site: dim(model.sites[site]) for site in sites})
    train.folders_of(runs, out / "saes")
    store = stage("harvest", lambda: harvest.harvest(model, text, out / "store"))
    print(f"  {harvest.describe(store)}")
    print(f"  {run_words.about(train.RECIPE.value, runs[0])}")
    folders = stage("train", lambda: train.train(runs, store, out / "saes", out / "checkpoints"))
    table = stage("evaluate", lambda: evaluate.evaluate(model, folders, held_out))
    first = stage("pages", lambda: explore.explore(model, out / "saes", folders, held_out, out / "pages"))

    print("\n" + evaluate.table(list(zip(folders, table, strict=True))))
    print("\n" + evaluate.heading(model, table, recorded.about(folders, model, held_out, True)))
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    print(f"picture: {first.parent / 'tradeoff.png'}")
    print(f"open:    {first}")


if __name__ == "__main__":
    running.run(main, check_flags)
