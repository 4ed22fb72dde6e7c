"""What is in an activation store, and whether it is in health.

python -m experiments.inspect_store --store_dir=runs/store --verify

--verify reads every array and names the segments that are damaged. --repair harvests those again, and those that are
missing: it takes the flags of the harvest, with the same model and text, and refuses others.
"""

import numpy as np
from absl import flags

import gemma
import sae
from experiments import common, harvest
from experiments.harvest import STORE_DIR
from sae.store import arrays, verifying
from sae.store.manifest import segment_name

VERIFY = flags.DEFINE_bool("verify", False, "Read all arrays and compare them with the checksums recorded.")
REPAIR = flags.DEFINE_bool("repair", False, "Harvest damaged and missing segments again.")
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)


def contents(store: sae.ActivationStore) -> str:
    """The store in words."""
    m = store.manifest
    there = f"{len(store.segments)} of {m.segments} segments"
    lines = [
        f"{store.path}: {store.rows:,} tokens in {there}, {m.dtype}, {m.units} units",
        f"model {m.model} (parameters {m.model_sha256[:12]}), tokenizer {m.tokenizer_sha256[:12]}",
        f"text {m.corpus_sha256[:12]}: {m.sequences:,} sequences of {m.length} tokens, {len(store.documents):,} "
        f"documents from {len({source for _, source in store.documents}):,} sources",
        f"seed {m.seed}; left out: token ids {', '.join(map(str, m.dropped_tokens))}"
        + (f"; {store.sinks:,} attention sinks over {m.sink_factor:g} medians" if m.sink_factor else ""),
        "",
        f"{'site':24}{'width':>7}{'rms norm':>11}{'median':>11}{'|mean|':>11}{'largest in |mean|^2':>22}"
        f"{'rounding':>10}{'bytes':>16}",
    ]
    for site in store.sites:
        mean = store.mean(site)
        rms = np.sqrt(store.mean_squared_norm(site))
        share = np.square(mean).max() / max(np.square(mean).sum(), 1e-30)
        at = int(np.argmax(np.abs(mean)))
        row = arrays.STORED[m.dtype].itemsize * store.width(site) + (4 if m.dtype == "int8" else 0)
        lines.append(
            f"{site:24}{store.width(site):7}{rms:11.4g}{store.median_norm(site):11.4g}{np.linalg.norm(mean):11.4g}"
            f"{f'{share:.0%} (number {at})':>22}{store.rounding(site):10.1e}{store.rows * row:16,}"
        )
    return "\n".join(lines)


def differing(store: sae.ActivationStore) -> str:
    """Segments whose statistics are far from the others', in words; empty where there are none."""
    lines = []
    for site in store.sites:
        medians = np.asarray([store.facts(i)["sites"][site]["median_norm"] for i, rows in store.segments if rows])
        numbers = [i for i, rows in store.segments if rows]
        usual = np.median(medians)
        off = [(i, m) for i, m in zip(numbers, medians, strict=True) if not 0.8 * usual <= m <= 1.25 * usual]
        lines += [
            f"{site}: {segment_name(i)} has a median norm of {m:.4g}, the others about {usual:.4g}" for i, m in off
        ]
    return "\n".join(lines)


def main():
    store = sae.ActivationStore.open(STORE_DIR.value, growing=True)
    print(contents(store))
    if text := differing(store):
        print("\nunlike the others:\n" + text)
    there = {index for index, _ in store.segments}
    missing = [index for index in range(store.manifest.segments) if index not in there]
    if missing:
        print(f"\nmissing: {', '.join(map(segment_name, missing[:8]))}{', …' if len(missing) > 8 else ''}")
    found = verifying.damaged(store, common.progress) if VERIFY.value or REPAIR.value else {}
    for index, problems in found.items():
        print(f"\ndamaged: {segment_name(index)}\n  " + "\n  ".join(problems))
    if not REPAIR.value:
        if found:
            raise ValueError(f"{len(found)} segments are damaged; --repair with the harvest's flags writes them again")
        if VERIFY.value:
            print("\nall that is there is as it was written")
        return
    model = gemma.load(common.MODEL.value)
    text = common.texts(model)[0]
    harvest.check(model, text, store)  # before anything is taken out
    verifying.discard(store, found)
    store = harvest.harvest(model, text, store.place)
    still = verifying.damaged(store, common.progress)
    print(f"\nharvested again: {len(found)} damaged and {len(missing)} missing segments; {len(still)} damaged now")


if __name__ == "__main__":
    common.run(main)
