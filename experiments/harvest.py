"""Runs a model over text and stores its activations.

python -m experiments.harvest --sites=layer_3/resid_post,layer_3/mlp_out --store_dir=runs/store
"""

from pathlib import Path

import jax.numpy as jnp
from absl import flags

import sae
from sae.harvesting import SHUFFLE_BYTES as BYTES
from sae.harvesting import SHUFFLE_ROWS as SHUFFLED
from sae.harvesting import plan
from sae.sites import matching
from sae.store import claims
from sae.store import manifest as manifests
from sae.store.codec import names as codecs
from sae.store.places import Place, place
from sae.text import Sequences

from . import common, helping, running

SITES = flags.DEFINE_list(
    "sites",
    None,
    "Sites to harvest, or patterns such as layer_*/resid_post; `model.sites` lists them. Default: attn_z, mlp_out and "
    "resid_post of the middle layer.",
)
STORE_DIR = flags.DEFINE_string(
    "store_dir", "runs/store", "The activation store: a folder, gs://bucket/folder or s3://bucket/folder."
)
STORE_DTYPE = flags.DEFINE_enum(
    "store_dtype",
    None,
    codecs(),
    "Dtype of the stored activations; int8 has a scale for each row. Default: bfloat16 for a model in bfloat16, which "
    "loses nothing, and else float32.",
)
SHUFFLE_ROWS = flags.DEFINE_integer(
    "shuffle_rows", SHUFFLED, "Rows of a segment, which are shuffled together, as many as memory allows.", lower_bound=1
)
SHUFFLE_BYTES = flags.DEFINE_integer(
    "shuffle_bytes", BYTES, "Bytes of memory for the rows of the segments that are filled and written.", lower_bound=1
)
SINK_FACTOR = flags.DEFINE_float(
    "sink_factor",
    None,
    "Leave out attention sinks: tokens whose norm in the residual stream is above this multiple of the median.",
    lower_bound=1.0,
)
WORKER = flags.DEFINE_string(
    "worker", "0/1", "Index of this process among those that divide the harvest, and their count: 0/4 to 3/4 for four."
)
SILENT_SECONDS = flags.DEFINE_float(
    "silent_seconds",
    claims.SILENT_SECONDS,
    "Seconds without a sign of life after which a process on another machine counts as gone, and its segment is taken "
    "over.",
    lower_bound=0.0,
)
helping.seldom("shuffle_rows", "shuffle_bytes", "worker", "silent_seconds")
REFUSED = ("eval_sequences",)
# What --help lists.
flags.adopt_module_key_flags(common)


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, are out of their range, or have no effect."""
    running.refuse(REFUSED, "a harvest measures nothing")
    check_harvest()


def check_harvest() -> None:
    """Raises ValueError as `check_flags` does, for the flags that describe a harvest alone."""
    common.check_texts()
    if common.ONLY_MODEL_TURNS.value and not common.CORPUS.value:
        raise ValueError("--only_model_turns is for chats, and the shipped text has none: name chats with --corpus")
    _worker()
    if SINK_FACTOR.value is not None and not SINK_FACTOR.value > 1:
        raise ValueError(f"--sink_factor is a multiple of the median norm, more than 1; got {SINK_FACTOR.value:g}")


def _worker() -> tuple[int, int]:
    """Returns (index, count) from `--worker`."""
    index, _, count = WORKER.value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--worker is an index from 0 on and a count, such as 0/4 to 3/4; got {WORKER.value!r}")
    return int(index), int(count)


def sites(model: sae.LanguageModel) -> list[str]:
    """Returns the sites that the flag names, or Gemma Scope's three of the middle layer."""
    middle = (1 + max(site.layer for site in model.sites.values() if site.layer is not None)) // 2
    return matching(model, SITES.value or [f"layer_{middle}/{kind}" for kind in ("attn_z", "mlp_out", "resid_post")])


def harvest(model: sae.LanguageModel, sequences: Sequences, store_dir: str | Path | Place) -> sae.ActivationStore:
    """Runs the harvest that the flags describe, and keeps what a former call has harvested."""
    return sae.harvest(
        model,
        sequences,
        sites(model),
        store_dir,
        worker=_worker(),
        silent_seconds=SILENT_SECONDS.value,
        progress=common.progress,
        **_arguments(model),
    )


def check(model: sae.LanguageModel, sequences: Sequences, store_dir: str | Path | Place) -> None:
    """Raises ValueError for a store that another harvest than that of the flags has made."""
    manifests.check(place(store_dir), plan(model, sequences, sites(model), **_arguments(model)))


def _arguments(model: sae.LanguageModel) -> dict:
    return {
        "seed": common.SEED.value,
        "dtype": STORE_DTYPE.value or ("bfloat16" if model.dtype == jnp.bfloat16 else "float32"),
        "shuffle_rows": SHUFFLE_ROWS.value,
        "shuffle_bytes": SHUFFLE_BYTES.value,
        "counted": counted(model),
    }


def counted(model: sae.LanguageModel) -> sae.Counted | None:
    """Returns the rule with the sinks of the flag; None, which means the harvest's rule, without the flag."""
    if SINK_FACTOR.value is None:
        return None
    return sae.Counted(model.tokenizer.special_ids, sinks=sae.Sinks(SINK_FACTOR.value))


def omissions(store: sae.ActivationStore) -> str:
    """Returns in words which tokens of the text have no row in a store."""
    origin = store.manifest.origin
    return store.manifest.counted.omissions(origin is not None and origin.only_model_turns)


def describe(store: sae.ActivationStore) -> str:
    """Returns a store in words, in a line or two."""
    text = f"{store.rows:,} tokens at {', '.join(store.sites)}"
    if store.manifest.activation_dtype != "float32":
        text += f" of a model in {store.manifest.activation_dtype}"
    text += f"; left out: {omissions(store)}"
    if store.manifest.counted.sinks is not None:
        seen = store.rows + store.sinks
        text += f"; {store.sinks:,} of {seen:,} ({store.sinks / seen:.2%}) left out as attention sinks"
    for site in store.sites:
        if (lost := store.rounding(site)) > 0.01:
            text += (
                f"; WARNING: {store.manifest.dtype} has lost {lost:.1%} of the variance of {site}, where some "
                "dimension is far larger than the others: bfloat16 loses next to nothing"
            )
    if len(store.segments) < store.manifest.segments:
        text += f"; {len(store.segments)} of {store.manifest.segments} segments, the other workers' are missing"
    return text


def main():
    common.keep_compiled_programs()
    model = common.load_model()
    store = harvest(model, common.texts(model)[0], STORE_DIR.value)
    print(f"{store.path}: {describe(store)}")


if __name__ == "__main__":
    running.run(main, check_flags)
