"""Runs a model over text and stores activations.

python -m experiments.harvest --sites=layer_3/resid_post,layer_3/mlp_out --store_dir=runs/store
"""

from pathlib import Path

from absl import flags

import gemma
import sae
from experiments import common
from sae.harvesting import SHUFFLE_BYTES as BYTES
from sae.harvesting import SHUFFLE_ROWS as SHUFFLED
from sae.harvesting import plan
from sae.store import manifest as manifests
from sae.store.manifest import DTYPES
from sae.store.places import Place
from sae.text import Sequences

SITES = flags.DEFINE_list(
    "sites",
    None,
    "Sites to harvest, or patterns such as layer_*/resid_post; gemma/sites.py lists them. Default: attn_z, mlp_out and "
    "resid_post of the middle layer.",
)
STORE_DIR = flags.DEFINE_string(
    "store_dir", "runs/store", "The activation store: a folder, gs://bucket/folder or s3://bucket/folder."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Dtype of the stored activations; int8 has a scale for each row.")
SHUFFLE_ROWS = flags.DEFINE_integer(
    "shuffle_rows", SHUFFLED, "Rows of a segment, which are shuffled together, as far as memory allows.", lower_bound=1
)
SHUFFLE_BYTES = flags.DEFINE_integer(
    "shuffle_bytes", BYTES, "Memory for the rows of the segments that are filled and written.", lower_bound=1
)
SINK_FACTOR = flags.DEFINE_float(
    "sink_factor",
    None,
    "Leave out attention sinks: tokens whose norm in the residual stream is over this multiple of the median.",
    lower_bound=1.0,
)
SHARE = flags.DEFINE_string(
    "share", "0/1", "Which share of the segments this process writes, of how many: 0/4 to 3/4 for four processes."
)
# What --help lists.
flags.adopt_module_key_flags(common)


def sites(config: gemma.Config) -> list[str]:
    """The sites that the flag names, or Gemma Scope's three of the middle layer."""
    middle = config.num_layers // 2
    return gemma.sites.matching(
        config, SITES.value or [f"layer_{middle}/{kind}" for kind in ("attn_z", "mlp_out", "resid_post")]
    )


def harvest(model: gemma.Model, sequences: Sequences, store_dir: str | Path | Place) -> sae.ActivationStore:
    """The harvest that the flags describe; what is there already is kept."""
    which, _, of = SHARE.value.partition("/")
    if not (which.isdigit() and of.isdigit()):
        raise ValueError(f"--share is which of how many, such as 0/4; got {SHARE.value!r}")
    return sae.harvest(
        model,
        sequences,
        sites(model.config),
        store_dir,
        share=(int(which), int(of)),
        progress=common.progress,
        **_arguments(),
    )


def check(model: gemma.Model, sequences: Sequences, store: sae.ActivationStore) -> None:
    """Raises ValueError unless the flags describe the harvest that a store is of."""
    manifests.check(store.place, plan(model, sequences, sites(model.config), **_arguments()))


def _arguments() -> dict:
    return {
        "seed": common.SEED.value,
        "dtype": DTYPE.value,
        "shuffle_rows": SHUFFLE_ROWS.value,
        "shuffle_bytes": SHUFFLE_BYTES.value,
        "sink_factor": SINK_FACTOR.value,
    }


def describe(store: sae.ActivationStore) -> str:
    """What there is, in a line or two."""
    text = f"{store.rows:,} tokens at {', '.join(store.sites)}"
    if store.manifest.sink_factor is not None:
        seen = store.rows + store.sinks
        text += f"; {store.sinks:,} of {seen:,} ({store.sinks / seen:.2%}) left out as attention sinks"
    for site in store.sites:
        if (lost := store.rounding(site)) > 0.01:
            text += (
                f"; WARNING: {store.manifest.dtype} has lost {lost:.1%} of the variance of {site}, where some "
                "dimension is far larger than the others: bfloat16 loses nothing to speak of"
            )
    if len(store.segments) < store.manifest.segments:
        text += f"; {len(store.segments)} of {store.manifest.segments} segments, the others' shares are missing"
    return text


def main():
    model = gemma.load(common.MODEL.value)
    store = harvest(model, common.texts(model)[0], STORE_DIR.value)
    print(f"{describe(store)}, in {store.path}")


if __name__ == "__main__":
    common.run(main)
