"""Says what is in an activation store, and whether it is damaged.

python -m experiments.inspect_store --store_dir=runs/store --verify

--verify reads every file and names the segments that are damaged. --repair harvests those again, and those that are
missing: it takes the flags of the harvest, with the same model and text, and refuses others.
"""

import contextlib

import numpy as np
from absl import flags

import sae
from sae import showing
from sae.store import manifest as manifests
from sae.store import verifying
from sae.store.manifest import segment_name
from sae.store.places import place

from . import common, harvest, running
from .harvest import STORE_DIR

VERIFY = flags.DEFINE_bool("verify", False, "Read all files and compare them with the checksums recorded.")
REPAIR = flags.DEFINE_bool("repair", False, "Harvest damaged and missing segments again.")
REFUSED = harvest.REFUSED
# What --help lists.
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(harvest)


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or have no effect."""
    if not REPAIR.value:
        names = (name for module in (common, harvest) for name in _flags_of(module) if name != "store_dir")
        running.refuse(names, "it is for a harvest, and without --repair nothing is harvested")
    harvest.check_flags()


def _flags_of(module) -> list[str]:
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(module.__name__)]


def contents(store: sae.ActivationStore) -> str:
    """Returns the store in words."""
    m = store.manifest
    extent = f"{len(store.segments)} of {m.segments} segments"
    sources = len({source for _, source in store.documents})
    lines = [
        f"{store.path}: {store.rows:,} tokens in {extent}, {m.dtype}, {m.units} units",
        f"model {m.model} in {m.activation_dtype} ({'fingerprint' if m.former is None else 'parameters'} "
        # pyrefly: ignore[unsupported-operation]  not None here
        f"{(m.model_fingerprint or m.former['model_sha256'])[:12]}), "
        f"tokenizer {m.tokenizer_sha256[:12]}",
        f"text {m.corpus_sha256[:12]}: {m.sequences:,} sequences of {m.length} tokens, "
        f"{showing.count(len(store.documents), 'document')} from {showing.count(sources, 'source')}",
        f"seed {m.seed}; left out: {harvest.omissions(store)}; ids {', '.join(map(str, m.counted.special_ids))}"
        + (f"; {store.sinks:,} attention sinks over {m.counted.sinks.factor:g} medians" if m.counted.sinks else ""),
        "",
        f"{'site':24}{'width':>7}{'rms norm':>11}{'median':>11}{'|mean|':>11}{'largest in |mean|^2':>22}"
        f"{'rounding':>10}{'bytes':>16}",
    ]
    for site in store.sites:
        mean = store.mean(site)
        rms = np.sqrt(store.mean_squared_norm(site))
        share = np.square(mean).max() / max(np.square(mean).sum(), 1e-30)
        index = int(np.argmax(np.abs(mean)))
        row = store.codec.row_bytes(store.width(site))
        lines.append(
            f"{site:24}{store.width(site):7}{rms:11.4g}{store.median_norm(site):11.4g}{np.linalg.norm(mean):11.4g}"
            f"{f'{share:.0%} (number {index})':>22}{_share(store.rounding(site)):>10}{store.rows * row:16,}"
        )
    lines.append("norms and means in raw units; rounding: the share of the variance that the store's dtype has lost")
    return "\n".join(lines)


def _share(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def differing(store: sae.ActivationStore) -> str:
    """Returns in words the segments whose statistics are far from the others'; empty where none is."""
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
    where = place(STORE_DIR.value)
    manifest = manifests.read(where)
    check = VERIFY.value or REPAIR.value
    damage = verifying.damaged(where, common.progress) if check else {}
    documents = verifying.documents(where) if check else None
    # A store may be too damaged to open, or have lost all its segments, which the lines below say.
    problems = damage or documents or (REPAIR.value and not manifests.committed(where))
    with contextlib.suppress(OSError, ValueError) if problems else contextlib.nullcontext():
        store = sae.ActivationStore.open(where, growing=True)
        print(contents(store))
        if text := differing(store):
            print("\nunlike the others:\n" + text)
    missing = sorted(set(range(manifest.segments)) - set(manifests.committed(where)))
    if missing:
        print(f"\nmissing: {', '.join(map(segment_name, missing[:8]))}{', …' if len(missing) > 8 else ''}")
    for index, problems in damage.items():
        print(f"\ndamaged: {segment_name(index)}\n  " + "\n  ".join(problems))
    if documents:
        print(f"\ndamaged: documents.json\n  {documents}")
    if not REPAIR.value:
        if damage or documents:
            raise ValueError(f"{_damaged(damage, documents)}; --repair with the harvest's flags writes it again")
        if VERIFY.value and manifest.format < 3:
            print(
                f"\nthe rows are as they were written; a store of format {manifest.format} has no checksums of its "
                "statistics and documents"
            )
        elif VERIFY.value:
            print("\neverything is as it was written")
        return
    model = common.load_model([manifest.activation_dtype])
    text = common.texts(model)[0]
    harvest.check(model, text, where)  # before anything is deleted
    verifying.discard(where, damage)
    store = harvest.harvest(model, text, where)
    rest = verifying.damaged(store, common.progress)
    print(f"\nharvested again: {len(damage)} damaged and {len(missing)} missing segments; {len(rest)} damaged now")


def _damaged(damage: dict[int, list[str]], documents: str | None) -> str:
    """Returns in words how many segments are damaged, and whether documents.json is."""
    count = f"{len(damage)} segment{'s' if len(damage) > 1 else ''}"
    names = [*([count] if damage else []), *(["documents.json"] if documents else [])]
    return f"{' and '.join(names)} {'is' if len(damage) + bool(documents) == 1 else 'are'} damaged"


if __name__ == "__main__":
    running.run(main, check_flags)
