"""Runs a model over text and stores activations.

python -m experiments.harvest --sites=layer_3/resid_post,layer_3/mlp_out --store_dir=runs/store
"""

from pathlib import Path

from absl import flags

import gemma
import sae
from experiments import common
from sae.store.manifest import DTYPES
from sae.text import Sequences

SITES = flags.DEFINE_list(
    "sites",
    None,
    "Sites to harvest, or patterns such as layer_*/resid_post; gemma/sites.py lists them. Default: attn_z, mlp_out and "
    "resid_post of the middle layer.",
)
STORE_DIR = flags.DEFINE_string("store_dir", "runs/store", "Folder of the activation store.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Dtype of the stored activations.")
SEQUENCES_PER_SEGMENT = flags.DEFINE_integer(
    "sequences_per_segment", 512, "Sequences of a segment; its rows are shuffled in memory.", lower_bound=1
)
# What --help lists.
flags.adopt_module_key_flags(common)


def sites(config: gemma.Config) -> list[str]:
    """The sites that the flag names, or Gemma Scope's three of the middle layer."""
    middle = config.num_layers // 2
    return gemma.sites.matching(
        config, SITES.value or [f"layer_{middle}/{kind}" for kind in ("attn_z", "mlp_out", "resid_post")]
    )


def harvest(model: gemma.Model, sequences: Sequences, store_dir: Path) -> sae.ActivationStore:
    """The harvest that the flags describe; what is there already is kept."""
    return sae.harvest(
        model,
        sequences,
        sites(model.config),
        store_dir,
        seed=common.SEED.value,
        dtype=DTYPE.value,
        sequences_per_segment=SEQUENCES_PER_SEGMENT.value,
        progress=common.progress,
    )


def main():
    model = gemma.load(common.MODEL.value)
    store = harvest(model, common.texts(model)[0], Path(STORE_DIR.value))
    print(f"{store.rows:,} tokens at {len(store.sites)} sites in {store.path}")


if __name__ == "__main__":
    common.run(main)
