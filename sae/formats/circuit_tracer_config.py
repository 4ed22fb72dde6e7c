"""circuit-tracer's `config.yaml`: the model, the kind of a folder, and the hooks that latents read and write.

It does not name the layers: file i is layer i's, from 0 on.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sae.autoencoder import Info
from sae.formats import configs, names

NAME = "config.yaml"
# circuit-tracer's names of sites; the first name of each is written. A model without a norm after its MLP has
# `mlp.hook_out` for `hook_mlp_out`; `hook_mlp_in` is TransformerLens's name for the input of the norm before the MLP.
_HOOKS = {
    "resid_mid": ("hook_resid_mid", "hook_mlp_in"),
    "mlp_in": ("mlp.hook_in",),
    "mlp_normed": ("ln2.hook_normalized",),
    "mlp_out": ("hook_mlp_out", "mlp.hook_out"),
}
_KINDS = {hook: kind for kind, hooks in _HOOKS.items() for hook in hooks}


def read(folder: Path, kind: str) -> dict[str, str]:
    """Returns the config's lines; {} where the config is missing.

    Args:
        folder: the folder of the config.
        kind: the `model_kind` that the config has to have, or lack.

    Raises:
        ValueError: for another kind, or a damaged file.
    """
    config = configs.lines(folder / NAME) or {}
    if config.get("model_kind", kind) != kind:
        raise ValueError(f"{folder / NAME}: the files are of the kind {kind}, and it says {config['model_kind']!r}")
    return config


def info(config: dict[str, str], layers: int | Sequence[int]) -> Info | None:
    """Returns the `Info` with the model and the sites of the config; None where it does not name them.

    Args:
        config: the config's lines.
        layers: the index of the layer that is read, or the indices of several.
    """
    hooks = config.get("feature_input_hook"), config.get("feature_output_hook")
    if "model_name" not in config or None in hooks:
        return None
    # pyrefly: ignore[no-matching-overload]  a name that is None is not among them
    kinds = [_KINDS.get(hook, hook) for hook in hooks]
    if isinstance(layers, int):
        sites = [f"layer_{layers}/{kind}" for kind in kinds]
    else:
        sites = [tuple(f"layer_{layer}/{kind}" for layer in layers) for kind in kinds]
    facts = json.dumps({"circuit_tracer": config}, sort_keys=True)
    # pyrefly: ignore[bad-argument-type]  two sites
    return Info(names.model_of(config["model_name"]), *sites, training=facts)


def lacks(info: Info | None) -> str | None:
    """Returns the part of an info that the config cannot hold, in words: sites other than those of one kind at the
    layers 0, 1, ...; None where it can hold all."""
    for sites in () if info is None else (info.site, info.site_out):
        sites = (sites,) if isinstance(sites, str) else sites
        matches = [re.fullmatch(r"layer_(\d+)/(.+)", site) for site in sites]
        # pyrefly: ignore[unsupported-operation]  not None here
        if not all(matches) or len({match[2] for match in matches}) > 1:
            return f"sites of several kinds ({', '.join(sites)})"
        # pyrefly: ignore[unsupported-operation]  not None here
        if [int(match[1]) for match in matches] != list(range(len(sites))):
            return f"which layers: its files are of the layers 0 to {len(sites) - 1}, not of {', '.join(sites)}"
    return None


def text(info: Info | None, kind: str) -> bytes:
    """Returns the bytes of the file.

    Args:
        info: an info with sites of one kind.
        kind: `transcoder_set` or `cross_layer_transcoder`.
    """
    config = {"model_kind": kind}
    if info is not None:
        config["model_name"] = names.hub_name(info.model, info.training)
        for way, sites in (("input", info.site), ("output", info.site_out)):
            site = str(sites[0] if isinstance(sites, tuple) else sites).rpartition("/")[2]
            config[f"feature_{way}_hook"] = _HOOKS.get(site, (site,))[0]
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()).encode()
