"""circuit-tracer's folders of a cross-layer transcoder: `config.yaml`, and for each layer i `W_enc_{i}.safetensors` and
`W_dec_{i}.safetensors`.

The first has `W_enc_{i}` [Zl, A], `b_enc_{i}`, `b_dec_{i}` and, unless it is a ReLU's, `threshold_{i}`; the second
`W_dec_{i}` [Zl, L - i, A], whose second axis counts the layers from i on. There is no skip in these files.
"""

import json
import re
from pathlib import Path

import numpy as np

from sae.autoencoder import Info
from sae.cross_layer import CrossLayerTranscoder
from sae.files import current
from sae.formats import names, safetensors_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released

_CONFIG, _KIND = "config.yaml", "cross_layer_transcoder"
# What circuit-tracer calls the sites; `mlp.hook_in` and `ln2.hook_normalized` are of transcoder sets.
_HOOKS = {"resid_mid": "hook_resid_mid", "mlp_in": "mlp.hook_in", "mlp_out": "hook_mlp_out"}


@formats.register("circuit_tracer")
class CircuitTracer(Format):
    """`W_enc_0.safetensors`, `W_dec_0.safetensors` and on, `config.yaml`; a cross-layer transcoder without a skip."""

    title = "circuit-tracer's format"
    main = "W_enc_0.safetensors"

    def read(self, file: Path) -> Contents:
        """Reads the files of all layers, one at a time into their place."""
        folder = file.parent
        count = safetensors_files.count_layers(folder, "W_enc_{}.safetensors", "W_dec_{}.safetensors")
        first = safetensors_files.read(folder / "W_enc_0.safetensors", ("W_enc_0",))["W_enc_0"]
        if first.ndim != 2:
            raise ValueError(f"{file}: W_enc_0 must have 2 axes, got {list(first.shape)}")
        width, A = first.shape
        out = safetensors_files.read(folder / "W_dec_0.safetensors", ("W_dec_0",))["W_dec_0"].shape[-1]
        values = {
            "W_enc": np.empty((count, A, width), np.float32),
            "b_enc": np.empty((count, width), np.float32),
            "W_dec": np.zeros((count, width, count, out), np.float32),
            "b_dec": np.empty((count, out), np.float32),
            "threshold": np.zeros((count, width), np.float32),
        }
        for layer in range(count):
            encoder = folder / f"W_enc_{layer}.safetensors"
            tensors = safetensors_files.read(encoder, [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")])
            decoder = folder / f"W_dec_{layer}.safetensors"
            tensors |= safetensors_files.read(decoder, [f"W_dec_{layer}"])
            _put(decoder, values["W_dec"][layer, :, layer:], tensors[f"W_dec_{layer}"], f"W_dec_{layer}")
            _put(encoder, values["W_enc"][layer], tensors[f"W_enc_{layer}"].T, f"W_enc_{layer}, turned,")
            for name in ("b_enc", "b_dec", "threshold"):
                if (own := f"{name}_{layer}") in tensors:  # without a threshold it is a ReLU
                    _put(encoder, values[name][layer], tensors[own], own)
        return Contents(CrossLayerTranscoder, values, info=_info(folder, count))

    def lacks(self, autoencoder: Released) -> str | None:
        """All but cross-layer transcoders without a skip, whose latents write to no earlier layer."""
        if not isinstance(autoencoder, CrossLayerTranscoder):
            return f"a {type(autoencoder).__name__}, only for a CrossLayerTranscoder"
        if autoencoder.W_skip is not None:
            return "an affine skip (W_skip)"
        return None

    def files(self, contents: Contents) -> Files:
        """Two files for each layer, and a config.

        Raises:
            ValueError: for latents that write to an earlier layer.
        """
        values, files = contents.values, {}
        for layer in range(len(values["W_enc"])):
            if values["W_dec"][layer, :, :layer].any():
                raise ValueError(f"{self.title} has no place for latents of layer {layer} that write to an earlier one")
            encoder = {f"W_enc_{layer}": values["W_enc"][layer].T}
            encoder |= {f"{name}_{layer}": values[name][layer] for name in ("b_enc", "b_dec", "threshold")}
            files[f"W_enc_{layer}.safetensors"] = safetensors_files.writer(encoder)
            decoder = {f"W_dec_{layer}": values["W_dec"][layer, :, layer:]}
            files[f"W_dec_{layer}.safetensors"] = safetensors_files.writer(decoder)
        config = {"model_kind": _KIND}
        if (info := contents.info) is not None:
            config["model_name"] = names.hub_name(info.model)
            for way, sites in (("input", info.site), ("output", info.site_out)):
                kind = str(sites[0] if isinstance(sites, tuple) else sites).rpartition("/")[2]
                config[f"feature_{way}_hook"] = _HOOKS.get(kind, kind)
        files[_CONFIG] = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()).encode()
        return files


def _put(file: Path, place: np.ndarray, value: np.ndarray, name: str) -> None:
    if place.shape != value.shape:
        raise ValueError(f"{file}: {name} must be {list(place.shape)}, got {list(value.shape)}")
    place[...] = value


def _info(folder: Path, count: int) -> Info | None:
    """By config.yaml, of which lines `name: text` are enough."""
    file = current(folder, _CONFIG) or folder / _CONFIG
    if not file.exists():
        return None
    lines = re.findall(r"^(\w+):\s*[\"']?([^\"'\n]+?)[\"']?\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
    config = dict(lines)
    if config.get("model_kind", _KIND) != _KIND:
        raise ValueError(f"{file}: the kind {config['model_kind']!r} is not read; {_KIND} is")
    hooks = config.get("feature_input_hook"), config.get("feature_output_hook")
    if "model_name" not in config or None in hooks:
        return None
    kinds = {hook: kind for kind, hook in _HOOKS.items()}
    both = [tuple(f"layer_{layer}/{kinds.get(hook, hook)}" for layer in range(count)) for hook in hooks]
    facts = json.dumps({"circuit_tracer": config}, sort_keys=True)
    return Info(names.model_of(config["model_name"]), *both, training=facts)
