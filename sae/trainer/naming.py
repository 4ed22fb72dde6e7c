"""The names of runs: the folders of their autoencoders, and their names in TensorBoard."""

import collections
from collections.abc import Sequence
from fractions import Fraction

from sae.runs import Run

CROSSCODER = "crosscoder_"  # begins the names of crosscoders' folders
# The fields that stand at the beginning of a name.
_IN_THE_NAME = ("site", "site_out", "skip", "width", "l0_target")


def run_names(runs: Sequence[Run], named: Sequence[str] = ()) -> list[str]:
    """Names the runs in the manner of Gemma Scope: by site, width and what they aim at, with what tells them apart.

    Args:
      runs: the runs.
      named: the names of fields (`Run.fields`) that stand in the names in any case.

    Returns:
      A relative path for each run, all different. After the target stand the fields of `named`, and the fields in which
      runs of one site, width and target differ.

    Example:
      >>> runs = [sae.short_run("layer_3/mlp_out", 64, steps=9, l0_target=8, seed=seed) for seed in (0, 1)]
      >>> run_names(runs)
      ['layer_3/mlp_out/width_64/target_l0_8_seed_0', 'layer_3/mlp_out/width_64/target_l0_8_seed_1']
      >>> run_names(runs[:1])
      ['layer_3/mlp_out/width_64/target_l0_8']
    """
    groups = collections.defaultdict(list)
    values = [run.fields() for run in runs]
    for run, fields in zip(runs, values, strict=True):
        groups[_name(run)].append(fields)
    shown = [
        name
        for name in dict.fromkeys(name for fields in values for name in fields)
        if name not in _IN_THE_NAME
        and (name in named or any(len({each.get(name) for each in group}) > 1 for group in groups.values()))
    ]
    names = [
        "_".join([_name(run), *(f"{name}_{_text(fields[name])}" for name in shown if name in fields)])
        for run, fields in zip(runs, values, strict=True)
    ]
    repeated = {name for name, count in collections.Counter(names).items() if count > 1}
    return [f"{name}_run_{i}" if name in repeated else name for i, name in enumerate(names)]


def _name(run: Run) -> str:
    fields = run.fields()
    place = run.sites[0] if len(run.sites) == 1 else f"{CROSSCODER}{_joined(run.sites)}"
    if run.transcodes:
        place += f"_to_{_joined(run.sites_out)}{'_skip' if fields.get('skip') else ''}"
    aim = f"lambda_{fields['coefficient']:g}" if "coefficient" in fields else run.autoencoder.kind
    aim = aim if run.l0_target is None else f"target_l0_{run.l0_target:g}"
    return f"{place}/width_{run.width}/{aim}"


def _joined(sites: Sequence[str]) -> str:
    return "+".join(site.replace("/", ".") for site in sites)


def _text(value: object) -> str:
    """Returns a field's value as a part of a file's name."""
    if isinstance(value, Fraction):
        return f"{value.numerator}of{value.denominator}"
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
