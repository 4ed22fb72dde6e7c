"""CLT-Forge's folders of a cross-layer transcoder: `clt_weights.safetensors` and `clt_cfg.json`.

`W_enc` [L, A, Zl], `b_enc` [L, Zl], `log_threshold` [L, Zl]; `W_dec` [L (L + 1) / 2, Zl, A] and `b_dec` [L (L + 1) / 2,
A] of each layer to itself and all later ones, the first layer's first; without `cross_layer_decoders` [L, Zl, A] and
[L, A]. Inputs were multiplied by `estimated_norm_scaling_factor_in` [L], outputs by `..._out` [L]; that is folded here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info
from sae.cross_layer import CrossLayerTranscoder
from sae.formats import configs, names, safetensors_files
from sae.formats.format import Contents, Format, formats
from sae.transcoder_set import TranscoderSet

_CONFIG = "clt_cfg.json"
_FACTORS = "estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out"
_NEEDED = ("W_enc", "b_enc", "W_dec", "b_dec", "log_threshold", *_FACTORS)
# CLT-Forge reads after the division of the norm before the MLP, before its gain, and writes what the MLP adds to the
# residual stream.
_KINDS = "mlp_normed", "mlp_out"


@formats.register("clt_forge")
class CLTForge(Format):
    """`clt_weights.safetensors` and `clt_cfg.json`; cross-layer transcoders, and sets of transcoders; only read."""

    title = "CLT-Forge's format"
    main = "clt_weights.safetensors"
    written = False

    def read(self, file: Path) -> Contents:
        """Reads the weights.

        Raises:
            ValueError: for an activation that is not read, by its name, and tensors that do not fit.
        """
        shapes = self.shapes(file)
        t = safetensors_files.read(file, _NEEDED)
        L, A, width = shapes.values["W_enc"].shape
        into, out = (t[name].reshape(-1) for name in _FACTORS)
        if len(into) != L or len(out) != L or not (out > 0).all() or not (into > 0).all():
            raise ValueError(f"{file}: {' and '.join(_FACTORS)} must be {L} numbers above 0 each")
        values = {"W_enc": t["W_enc"] * into[:, None, None], "b_enc": t["b_enc"]}
        values["threshold"] = np.exp(t["log_threshold"])
        if shapes.form is TranscoderSet:
            values |= {"W_dec": t["W_dec"] / out[:, None, None], "b_dec": t["b_dec"] / out[:, None]}
        else:
            sources, targets = np.triu_indices(L)
            values |= {"W_dec": np.zeros((L, width, L, A), np.float32), "b_dec": np.zeros((L, A), np.float32)}
            for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
                values["W_dec"][source, :, target] = t["W_dec"][i] / out[target]
                values["b_dec"][target] += t["b_dec"][i] / out[target]
        return Contents(shapes.form, values, info=shapes.info)

    def shapes(self, file: Path) -> Contents:
        """Reads the config and the header."""
        place = file.parent / _CONFIG
        if (config := configs.read(place)) is None:
            raise ValueError(f"{file} has no {_CONFIG} beside it, which says what it holds")
        if (activation := config.get("activation_fn", "jumprelu")) != "jumprelu":
            raise ValueError(f"{place}: the activation {activation!r} is not read; jumprelu is")
        leaves = safetensors_files.headers(file, _NEEDED)
        if len(leaves["W_enc"].shape) != 3:
            raise ValueError(f"{file}: W_enc must have 3 axes, got {list(leaves['W_enc'].shape)}")
        L, A, width = leaves["W_enc"].shape
        form, count = CrossLayerTranscoder, L * (L + 1) // 2
        if not config.get("cross_layer_decoders", True):
            form, count = TranscoderSet, L
        wanted = {"W_dec": (count, width, A), "b_dec": (count, A), "log_threshold": (L, width), "b_enc": (L, width)}
        for name, shape in wanted.items():
            if leaves[name].shape != shape:
                raise ValueError(f"{file}: {name} must be {list(shape)}, got {list(leaves[name].shape)}")
        return Contents.of_sizes(form, {"L": L, "A": A, "Zl": width}, info=_info(config, L))


def _info(config: dict[str, Any], layers: int) -> Info | None:
    if not isinstance(model := config.get("model_name"), str):
        return None
    sites = [tuple(f"layer_{layer}/{kind}" for layer in range(layers)) for kind in _KINDS]
    # pyrefly: ignore[bad-argument-type]  two sites
    return Info(names.model_of(model), *sites, training=json.dumps({"clt_forge": config}, sort_keys=True))
