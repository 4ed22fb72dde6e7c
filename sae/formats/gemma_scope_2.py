"""Gemma Scope 2's folders: `params.safetensors` and `config.json` of a single-layer autoencoder or transcoder.

They hold JumpReLUs with `w_enc` [A, Z], `w_dec` [Z, A'], `b_enc`, `b_dec`, `threshold`, and `affine_skip_connection`
[A, A'], which is applied as x @ skip. `config.json` names the modules that are read and written; where it is missing,
the folder names the layer and the kind: `transcoder/layer_9_width_16k_l0_small_affine`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.autoencoder import Info, JumpReLU
from sae.formats import configs, names, safetensors_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released

_CONFIG = "config.json"
_TENSORS = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"
_FOLDER = re.compile(r"layer_(\d+)_width_\w+?_l0_(?:small|medium|big)(_affine)?")
# By the name of the folder above. Their `attn_out` reads the input of the output projection.
SITES = {
    "resid_post": ("resid_post", "resid_post"),
    "mlp_out": ("mlp_out", "mlp_out"),
    "attn_out": ("attn_z", "attn_z"),
    "transcoder": ("mlp_in", "mlp_out"),
}
_REPOSITORY = re.compile(r"(?:models--[\w.-]+?--)?gemma-scope-2-(270m|1b|4b|12b|27b)-(?:pt|it)")


@formats.register("gemma_scope_2")
class GemmaScope2(Format):
    """`params.safetensors` and `config.json`; a JumpReLU, with a skip or without."""

    title = "Gemma Scope 2's format"
    main = "params.safetensors"
    beside = (r"config\.json",)

    def read(self, file: Path) -> Contents:
        """Reads a file."""
        config = _config(file.parent)
        tensors = safetensors_files.read(file, _needed(config))
        values = {name: tensors[stored] for name, stored in _TENSORS.items()}
        if _SKIP in tensors:
            values["W_skip"] = tensors[_SKIP]
        return Contents(JumpReLU, values, info=_info(file.parent, config))

    def shapes(self, file: Path) -> Contents:
        """Reads the header."""
        config = _config(file.parent)
        leaves = safetensors_files.headers(file, _needed(config))
        sizes = safetensors_files.sizes(file, leaves["w_enc"], leaves["w_dec"])
        skip = ("W_skip",) if _SKIP in leaves else ()
        return Contents.of_sizes(JumpReLU, sizes, skip, info=_info(file.parent, config))

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but a JumpReLU."""
        if isinstance(autoencoder, JumpReLU):
            return None
        exact = " (its method jumprelu() makes one of it)" if hasattr(autoencoder, "jumprelu") else ""
        what = autoencoder.noun if autoencoder.several_sites() else type(autoencoder).__name__
        return f"a {what}, only for a JumpReLU{exact}"

    def files(self, contents: Contents) -> Files:
        """Returns the weights and a config."""
        values, info = contents.values, contents.info
        tensors = {stored: values[name] for name, stored in _TENSORS.items()}
        if "W_skip" in values:
            tensors[_SKIP] = values["W_skip"]
        config: dict[str, Any] = {
            "width": int(values["W_enc"].shape[1]),
            "architecture": "jump_relu",
            "affine_connection": "W_skip" in values,
            "type": "sae",
        }
        if info is not None:
            sites = str(info.site), str(info.site_out)
            config["model_name"] = names.hub_name(info.model, info.training)
            config["hf_hook_point_in"], config["hf_hook_point_out"] = map(names.hugging_face_path, sites)
            config["type"] = "sae" if sites[0] == sites[1] else "transcoder"
        text = json.dumps(config, indent=2) + "\n"
        # pyrefly: ignore[bad-assignment]  not None here
        return {self.main: safetensors_files.writer(tensors), _CONFIG: text.encode()}


def _config(folder: Path) -> dict[str, Any]:
    """Returns the config; {} where it is missing. Raises ValueError for a kind that is not read here."""
    place = folder / _CONFIG
    config = configs.read(place) or {}
    if (architecture := config.get("architecture", "jump_relu")) != "jump_relu":
        raise ValueError(f"{place}: the architecture {architecture!r} is not read; jump_relu is")
    if (kind := config.get("type", "sae")) not in ("sae", "transcoder"):
        raise ValueError(f"{place}: a {kind} is not read; single-layer autoencoders and transcoders are")
    return config


def _needed(config: Mapping[str, Any]) -> list[str]:
    return [*_TENSORS.values(), *([_SKIP] if config.get("affine_connection") else [])]


def _info(folder: Path, config: Mapping[str, Any]) -> Info | None:
    """Returns the `Info` by the config, and by the folder's place in the repository where the config says less."""
    parts = folder.absolute().parts
    model, hooks = config.get("model_name"), [config.get(f"hf_hook_point_{way}") for way in ("in", "out")]
    repository = next((match for part in reversed(parts) if (match := _REPOSITORY.fullmatch(part))), None)
    if not isinstance(model, str):
        model = f"gemma3-{repository[1]}" if repository else None
    if all(isinstance(hook, str) for hook in hooks):
        # pyrefly: ignore[bad-argument-type]  not None here
        sites = tuple(names.site_of(hook) for hook in hooks)
    else:
        layer, kind = (
            _FOLDER.fullmatch(parts[-1]),
            SITES.get(parts[-2].removesuffix("_all")) if len(parts) > 1 else None,
        )
        sites = tuple(f"layer_{int(layer[1])}/{name}" for name in kind) if layer and kind else None
    if model is None or sites is None:
        return None
    facts = {"config": dict(config)}
    if repository is not None:
        facts |= {"repository": repository[0], "folder": "/".join(parts[parts.index(repository[0]) + 1 :])}
    return Info(names.model_of(model), *sites, training=json.dumps({"gemma_scope_2": facts}, sort_keys=True))
