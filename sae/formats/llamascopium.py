"""Llamascopium's folders (formerly Language-Model-SAEs): `config.json` with a `sae_type`, and
`sae_weights.safetensors`.

They hold `W_E` [A, Z], `b_E`, `W_D` [Z, A], `b_D`, `activation_function.log_jumprelu_threshold`. A cross-layer
transcoder has `W_E` [L, A, Zl], `b_E` [L, Zl], and `W_D.{t}` [t + 1, Zl, A] and `b_D.{t}` of the output at layer t.

With `norm_activation` dataset-wise, inputs were multiplied by f_in = sqrt(A) over the mean norm that the file records
for their hook, outputs likewise by f_out. With `sparsity_include_decoder_norm`, which is the default, an activation is
multiplied by the norm of its decoder's rows before it is compared with a threshold or with other latents. Both are
folded: latents are x W_E + b_E / f_in, and thresholds theta / (f_in norm). Llamascopium's own folding leaves thresholds
unchanged, except for cross-layer transcoders. The latents of TopK are scaled by those norms, as they depend on one
another.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.cross_layer import CrossLayerTranscoder
from sae.files import current
from sae.formats import configs, names, safetensors_files
from sae.formats.format import Contents, Format, formats
from sae.relu import ReLU
from sae.topk import TopK

_CONFIG = "config.json"
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_FORMS = {"relu": ReLU, "jumprelu": JumpReLU, "topk": TopK}
_LAYERED = ("relu", "jumprelu")  # activations of cross-layer transcoders
_UNKNOWN = "unknown"  # the model where the files name sites and no model


@formats.register("llamascopium")
class Llamascopium(Format):
    """`config.json` and `sae_weights.safetensors`; ReLU, JumpReLU, TopK and cross-layer transcoders; only read."""

    title = "Llamascopium's format"
    main = "sae_weights.safetensors"  # the same name as SAELens's, whose config has another name
    written = False

    def of_folder(self, folder: Path) -> Path | None:
        """Returns the weights, where the config beside them is Llamascopium's."""
        file = super().of_folder(folder)
        return file if file is not None and is_folder(folder) else None

    def takes(self, file: Path) -> bool:
        """Returns whether a file is the weights, and the config beside them is Llamascopium's."""
        return super().takes(file) and is_folder(file.parent)

    def read(self, file: Path) -> Contents:
        """Reads the weights by what the config says.

        Raises:
            ValueError: for a kind, an activation or a normalisation that is not read, by its name.
        """
        shapes, config = self.shapes(file), _config(file)
        needed = [_THRESHOLD] if "threshold" in shapes.values and config["act_fn"] == "jumprelu" else []
        tensors = safetensors_files.read(file, needed)
        if shapes.form is CrossLayerTranscoder:
            return Contents(shapes.form, _cross_layer(file, config, tensors, shapes.values), info=shapes.info)
        f_in, f_out = (_factor(file, config, tensors, config.get(f"hook_point_{way}")) for way in ("in", "out"))
        W_dec = tensors["W_D"]
        values = {"W_enc": tensors["W_E"], "b_enc": tensors["b_E"] / f_in, "W_dec": W_dec * (f_in / f_out)}
        values["b_dec"] = tensors["b_D"] / f_out if "b_D" in tensors else np.zeros(W_dec.shape[-1], np.float32)
        norms = _norms(config, np.linalg.norm(W_dec, axis=1))
        if shapes.form is JumpReLU:
            values["threshold"] = np.exp(tensors[_THRESHOLD]) / (f_in * norms)
        if shapes.form is TopK:
            values |= {"W_enc": values["W_enc"] * norms, "b_enc": values["b_enc"] * norms}
            values["W_dec"] = values["W_dec"] / norms[:, None]
        values = {name: value.astype(np.float32) for name, value in values.items()}
        return Contents(shapes.form, values, shapes.numbers, shapes.info)

    def shapes(self, file: Path) -> Contents:
        """Reads the config and the header."""
        config = _config(file)
        if config["sae_type"] == "clt":
            leaves = safetensors_files.headers(file, ("W_E", "b_E", "W_D.0", "b_D.0"))
            if len(leaves["W_E"].shape) != 3 or len(leaves["W_D.0"].shape) != 3:
                raise ValueError(f"{file}: W_E and W_D.0 must have 3 axes, got {leaves['W_E']}, {leaves['W_D.0']}")
            (L, A, width), out = leaves["W_E"].shape, leaves["W_D.0"].shape[-1]
            sizes = {"L": L, "A": A, "Zl": width, "A'": out}
            hooks = config.get("hook_points_in"), config.get("hook_points_out")
            return Contents.of_sizes(CrossLayerTranscoder, sizes, info=_info(file, config, hooks))
        leaves = safetensors_files.headers(file, ("W_E", "b_E", "W_D"))
        sizes, numbers = safetensors_files.sizes(file, leaves["W_E"], leaves["W_D"]), {}
        if config["act_fn"] == "topk":
            if type(k := config.get("top_k")) is not int or k < 1:
                raise ValueError(f"{file.parent / _CONFIG}: top_k must be a whole number above 0, got {k!r}")
            numbers = {"k": k}
        hooks = config.get("hook_point_in"), config.get("hook_point_out")
        return Contents.of_sizes(_FORMS[config["act_fn"]], sizes, numbers=numbers, info=_info(file, config, hooks))


def is_folder(folder: Path) -> bool:
    """Returns whether a folder's config is Llamascopium's; a folder with `cfg.json` is SAELens's."""
    saelens = current(folder, "cfg.json")
    if saelens is not None and saelens.exists():
        return False
    return "sae_type" in (configs.read(folder / _CONFIG) or {})


def _config(file: Path) -> dict[str, Any]:
    """Returns the config. Raises ValueError for settings that are not read here."""
    place = file.parent / _CONFIG
    config = configs.read(place) or {}
    if (kind := config.get("sae_type")) not in ("sae", "clt"):
        raise ValueError(f"{place}: the sae_type {kind!r} is not read; sae and clt are")
    config["act_fn"] = str(config.get("act_fn", "relu")).lower()
    able = _LAYERED if kind == "clt" else tuple(_FORMS)
    if config["act_fn"] not in able:
        raise ValueError(f"{place}: the act_fn {config['act_fn']!r} of a {kind} is not read; {', '.join(able)} are")
    if config.get("use_glu_encoder"):
        raise ValueError(f"{place}: use_glu_encoder is not read, as no released form has a product of two encoders")
    if (way := config.setdefault("norm_activation", "dataset-wise")) not in ("dataset-wise", "inference"):
        raise ValueError(f"{place}: inputs normalised {way!r} are not read: no weights can do that")
    return config


def _factor(file: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], hook: Any) -> np.float32:
    """Returns the factor by which activations at a hook were multiplied; 1 where it is in the weights already."""
    if config["norm_activation"] == "inference":
        return np.float32(1)
    norm = tensors.get(name := f"dataset_average_activation_norm.{hook}")
    if norm is None or norm.size != 1 or not 0 < norm.item() < np.inf:
        got = "nothing" if norm is None else norm.ravel()[:2].tolist()
        raise ValueError(f"{file}: {name}, by which inputs are normalised, must be one number above 0, got {got}")
    A = tensors["W_E"].shape[-2]
    return np.float32(math.sqrt(A) / norm.item())


def _norms(config: Mapping[str, Any], norms: np.ndarray) -> np.ndarray:
    """Returns the factors of activations before comparisons; a decoder row of zeros counts as one of norm 1."""
    if not config.get("sparsity_include_decoder_norm", True):
        return np.ones_like(norms)
    return np.where(norms > 0, norms, 1).astype(np.float32)


def _cross_layer(
    file: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the arrays of a cross-layer transcoder, one target layer after the other."""
    L, width, _, out = shapes["W_dec"].shape
    hooks = [config.get(f"hook_points_{way}") for way in ("in", "out")]
    if not all(isinstance(of, list) and len(of) == L for of in hooks):
        raise ValueError(f"{file.parent / _CONFIG}: hook_points_in and hook_points_out must be {L} each")
    # pyrefly: ignore[not-iterable]  not None here
    f_in, f_out = ([_factor(file, config, tensors, hook) for hook in of] for of in hooks)
    W_dec, b_dec = np.zeros((L, width, L, out), np.float32), np.zeros((L, out), np.float32)
    squares = np.zeros((L, width), np.float32)
    for target in range(L):
        rows = tensors.get(f"W_D.{target}")
        if rows is None or rows.shape != (target + 1, width, out):
            got = "nothing" if rows is None else list(rows.shape)
            raise ValueError(f"{file}: W_D.{target} must be {[target + 1, width, out]}, got {got}")
        squares[: target + 1] += np.square(rows).sum(axis=-1)
        for source in range(target + 1):
            W_dec[source, :, target] = rows[source] * (f_in[source] / f_out[target])
        if (bias := tensors.get(f"b_D.{target}")) is not None:
            b_dec[target] = bias / f_out[target]
    scale = np.array(f_in, np.float32)[:, None]
    threshold = np.zeros((L, width), np.float32)
    if _THRESHOLD in tensors:
        threshold = np.exp(tensors[_THRESHOLD]) / (scale * _norms(config, np.sqrt(squares)))
    b_enc = tensors["b_E"] / scale
    return {"W_enc": tensors["W_E"], "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}


def _info(file: Path, config: Mapping[str, Any], hooks: tuple[Any, Any]) -> Info | None:
    """Returns the `Info` by the config, with the model of an `lm_config.json` beside it."""
    model = config.get("model_name") or (configs.read(file.parent / "lm_config.json") or {}).get("model_name")
    sites = []
    for hook in hooks:
        several = isinstance(hook, list) and hook and all(isinstance(one, str) for one in hook)
        if not several and not isinstance(hook, str):
            return None
        # pyrefly: ignore[bad-argument-type]  a list of names where there are several
        sites.append(tuple(names.site_of(one) for one in hook) if several else names.site_of(hook))
    model = names.model_of(model) if isinstance(model, str) else _UNKNOWN
    # pyrefly: ignore[bad-argument-type]  two sites
    return Info(model, *sites, training=json.dumps({"llamascopium": dict(config)}, sort_keys=True))
