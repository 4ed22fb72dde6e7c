"""Gemma Scope 2's folders of several layers: `params_layer_0.safetensors` and on, and `config.json`.

They hold cross-layer transcoders, and crosscoders whose latents read one layer each.

File i has `w_enc` [A, Zl], `b_enc` [Zl], `threshold` [Zl] and `w_dec` [Zl, L, A] of the latents that read layer i, and
`b_dec` [A] and `affine_skip_connection` [A, A] of the output at layer i. The axis L of `w_dec` is the absolute layer.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info
from sae.cross_layer import CrossLayerTranscoder
from sae.formats import configs, names, safetensors_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released

_CONFIG = "config.json"
_TENSORS = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"
_OWN = _TENSORS | {"W_skip": _SKIP}
_NAME = "params_layer_{}.safetensors"


@formats.register("gemma_scope_2_layers")
class GemmaScope2Layers(Format):
    """`params_layer_0.safetensors` and on; a cross-layer transcoder, or a crosscoder whose latents read one layer."""

    title = "Gemma Scope 2's format of several layers"
    main = "params_layer_0.safetensors"
    beside = (r"params_layer_\d+\.safetensors", r"config\.json")

    def read(self, file: Path) -> Contents:
        """Reads the files of all layers, one at a time."""
        shapes = self.shapes(file)
        values = {name: np.empty(leaf.shape, np.float32) for name, leaf in shapes.values.items()}
        for layer in range(len(values["W_enc"])):
            part = file.parent / _NAME.format(layer)
            tensors = safetensors_files.read(part, [_OWN[name] for name in values])
            if _SKIP in tensors and "W_skip" not in values:
                raise ValueError(f"{part}: it has {_SKIP}, and {self.main} has none")
            for name, value in values.items():
                if tensors[_OWN[name]].shape != value.shape[1:]:
                    got = f"{_OWN[name]} {list(tensors[_OWN[name]].shape)}"
                    raise ValueError(f"{part}: {got} is not {list(value.shape[1:])}, as {self.main} needs")
                value[layer] = tensors[_OWN[name]]
        return Contents(shapes.form, values, info=shapes.info)

    def shapes(self, file: Path) -> Contents:
        """Reads the header of layer 0's file, and counts the files."""
        count = safetensors_files.count_layers(file.parent, _NAME)
        leaves = safetensors_files.headers(file, list(_TENSORS.values()))
        if len(leaves["w_enc"].shape) != 2 or len(leaves["b_dec"].shape) != 1:
            raise ValueError(f"{file}: w_enc must have 2 axes and b_dec 1, got {leaves['w_enc']}, {leaves['b_dec']}")
        A, width = leaves["w_enc"].shape
        sizes = {"L": count, "A": A, "Zl": width, "A'": leaves["b_dec"].shape[0]}
        info = _info(configs.read(file.parent / _CONFIG) or {}, count)
        return Contents.of_sizes(CrossLayerTranscoder, sizes, ("W_skip",) if _SKIP in leaves else (), info=info)

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but cross-layer transcoders."""
        if isinstance(autoencoder, CrossLayerTranscoder):
            return None
        return f"a {type(autoencoder).__name__}, only for a CrossLayerTranscoder"

    def files(self, contents: Contents) -> Files:
        """Returns a file for each layer, and a config."""
        files: Files = {}
        wanted = {name: key for name, key in _OWN.items() if name in contents.values}
        count, _, width = contents.values["W_enc"].shape
        for layer in range(count):
            tensors = {key: contents.values[name][layer] for name, key in wanted.items()}
            files[_NAME.format(layer)] = safetensors_files.writer(tensors)
        config: dict[str, Any] = {
            "width": count * width,
            "architecture": "jump_relu",
            "affine_connection": "W_skip" in contents.values,
            "type": "clt",
        }
        if (info := contents.info) is not None:
            config["model_name"] = names.hub_name(info.model, info.training)
            config["hf_hook_point_in"], config["hf_hook_point_out"] = _hook(info.site), _hook(info.site_out)
            config["type"] = "crosscoder" if info.site == info.site_out else "clt"
        files[_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
        return files


def _hook(sites: str | tuple[str, ...]) -> str:
    """Returns the paths of several layers as one, `model.layers.{5,9}.output`; joined by commas where they differ in
    more than the layer."""
    paths = [names.hugging_face_path(site) for site in ((sites,) if isinstance(sites, str) else sites)]
    parts = [re.fullmatch(r"(model\.layers\.)(\d+)(\..+)", path) for path in paths]
    # pyrefly: ignore[unsupported-operation]  not None here
    if not all(parts) or len({(part[1], part[3]) for part in parts}) > 1:
        return ",".join(paths)
    # pyrefly: ignore[unsupported-operation]  not None here
    return f"{parts[0][1]}{{{','.join(part[2] for part in parts)}}}{parts[0][3]}"


def _sites(hook: str, count: int) -> tuple[str, ...] | None:
    match = re.fullmatch(r"(.*)\{([\d,\s]+|all)\}(.*)", hook)
    if not match:
        return None
    layers = range(count) if match[2] == "all" else [int(layer) for layer in match[2].split(",")]
    return tuple(names.site_of(f"{match[1]}{layer}{match[3]}") for layer in layers)


def _info(config: Mapping[str, Any], count: int) -> Info | None:
    if not isinstance(model := config.get("model_name"), str):
        return None
    both = [_sites(str(config.get(f"hf_hook_point_{way}")), count) for way in ("in", "out")]
    if not all(sites is not None and len(sites) == count for sites in both):
        return None
    facts = json.dumps({"gemma_scope_2": {"config": dict(config)}}, sort_keys=True)
    # pyrefly: ignore[bad-argument-type]  not None here
    return Info(names.model_of(model), *both, training=facts)
