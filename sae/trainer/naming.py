"""What a run is called: the folder of its autoencoder, and its name in TensorBoard."""

import collections
import dataclasses
from collections.abc import Sequence

from sae.recipes import TrainConfig

CROSSCODER = "crosscoder_"  # begins the names of crosscoders' folders
# What a name begins with says these.
_IN_THE_NAME = ("site", "site_out", "skip", "width", "l0_target")


def run_names(configs: Sequence[TrainConfig], named: Sequence[str] = ()) -> list[str]:
    """Names the runs in the manner of Gemma Scope: by site, width and what they aim at, with what tells them apart.

    Args:
      configs: the runs.
      named: fields of `TrainConfig` that stand in the names in any case.

    Returns:
      A relative path for each run, all different. After the target stand the fields of `named`, and those in which runs
      of one site, width and target differ.

    Example:
      >>> runs = [sae.short_run("layer_3/mlp_out", 64, steps=9, l0_target=8, seed=seed) for seed in (0, 1)]
      >>> run_names(runs)
      ['layer_3/mlp_out/width_64/target_l0_8_seed_0', 'layer_3/mlp_out/width_64/target_l0_8_seed_1']
      >>> run_names(runs[:1])
      ['layer_3/mlp_out/width_64/target_l0_8']
    """
    groups = collections.defaultdict(list)
    for config in configs:
        groups[_name(config)].append(config)
    fields = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _IN_THE_NAME
        and (field.name in named or any(len({getattr(c, field.name) for c in group}) > 1 for group in groups.values()))
    ]
    names = ["_".join([_name(c), *(f"{field}_{_text(getattr(c, field))}" for field in fields)]) for c in configs]
    repeated = {name for name, count in collections.Counter(names).items() if count > 1}
    return [f"{name}_run_{i}" if name in repeated else name for i, name in enumerate(names)]


def _name(config: TrainConfig) -> str:
    place = config.sites[0] if len(config.sites) == 1 else f"{CROSSCODER}{_joined(config.sites)}"
    if config.transcodes:
        place += f"_to_{_joined(config.sites_out)}{'_skip' if config.skip else ''}"
    aim = f"lambda_{config.resolve().coefficient:g}" if config.l0_target is None else f"target_l0_{config.l0_target:g}"
    return f"{place}/width_{config.width}/{aim}"


def _joined(sites: Sequence[str]) -> str:
    return "+".join(site.replace("/", ".") for site in sites)


def _text(value: object) -> str:
    """A field's value as a part of a file's name."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
