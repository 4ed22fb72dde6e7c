"""Qwen-Scope's repositories: `config.json`, and `layer{i}.sae.pt` of each layer, torch archives that are read without
torch and without unpickling.

They hold TopK at the output of a layer: `W_enc` [Z, A], `b_enc`, `W_dec` [A, Z], `b_dec`, with no vector subtracted
from inputs. k is in the config, or in the name of the repository, `SAE-Res-Qwen3-8B-Base-W64K-L0_50`. Theirs keeps the
k largest also where those are below 0, which does not happen in trained autoencoders with tens of thousands of latents:
here nothing below 0 is kept.
"""

import json
import re
from pathlib import Path

import numpy as np

from sae.autoencoder import Info
from sae.formats import configs, names, torch_files
from sae.formats.format import Contents, formats
from sae.formats.layer_files import LayerFiles
from sae.topk import TopK

_CONFIG = "config.json"
_TENSORS = {"W_enc": 2, "b_enc": 1, "W_dec": 2, "b_dec": 1}  # with the number of their axes
_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"(?:models--[\w.-]+?--)?SAE-Res-(.+)-W\d+K-L0_(\d+)")


@formats.register("qwen_scope")
class QwenScope(LayerFiles):
    """`layer{i}.sae.pt` and `config.json`; TopK; only read."""

    title = "Qwen-Scope's format"
    pattern = _FILE

    def read(self, file: Path) -> Contents:
        """Reads a layer.

        Raises:
            ValueError: for a missing tensor, a k that nothing says, and a pickle that calls anything but what rebuilds
                tensors.
        """
        state = torch_files.state(file, _TENSORS)
        k, info = _facts(file)
        values = {name: state[name].astype(np.float32) for name in _TENSORS}
        values |= {"W_enc": values["W_enc"].T, "W_dec": values["W_dec"].T}
        return Contents(TopK, values, {"k": k}, info)

    def shapes(self, file: Path) -> Contents:
        """Reads the pickle, without the numbers."""
        state = torch_files.state(file, _TENSORS, shapes_alone=True)
        k, info = _facts(file)
        width, A = state["W_enc"].shape
        return Contents.of_sizes(TopK, {"A": A, "Z": width}, numbers={"k": k}, info=info)


def _facts(file: Path) -> tuple[int, Info | None]:
    """Returns k, and the model and the site, by the config and the repository's name."""
    place = file.parent / _CONFIG
    config = configs.read(place) or {}
    if (kind := config.get("model_type", "topk_sae")) != "topk_sae":
        raise ValueError(f"{place}: the model_type {kind!r} is not read; topk_sae is")
    if (hook := config.get("hook_point", "resid_post")) != "resid_post":
        raise ValueError(f"{place}: the hook_point {hook!r} is not read; resid_post is")
    matches = [match for part in file.absolute().parts if (match := _REPOSITORY.fullmatch(part))]
    k = config.get("k", int(matches[-1][2]) if matches else None)
    if type(k) is not int or k < 1:
        raise ValueError(f"{place}: k must be a whole number above 0, got {k!r}")
    model = config.get("base_model", f"Qwen/{matches[-1][1]}" if matches else None)
    if not isinstance(model, str):
        return k, None
    # pyrefly: ignore[unsupported-operation]  not None here
    site = f"layer_{int(_FILE.fullmatch(file.name)[1])}/resid_post"
    return k, Info(names.model_of(model), site, site, training=json.dumps({"qwen_scope": config}, sort_keys=True))
