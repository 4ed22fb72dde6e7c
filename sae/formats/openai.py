"""OpenAI's files of GPT-2 small, `{layer}.pt`: torch archives of one autoencoder each, read without torch and without
unpickling (https://github.com/openai/sparse_autoencoder).

They hold tensors `pre_bias` [A], `latent_bias` [Z], `encoder.weight` [Z, A], `decoder.weight` [A, Z], statistics, and
the entries `activation` and `activation_state_dict`. `pre_bias` is subtracted from inputs and added to outputs. TopK
normalises tokens, which no weights can do: it is a form of its own. The path names the layer and the site.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info
from sae.formats import torch_files
from sae.formats.folding import subtracted
from sae.formats.format import Contents, formats
from sae.formats.layer_files import LayerFiles
from sae.normed_topk import NormedTopK
from sae.relu import ReLU

_TENSORS = {"pre_bias": 1, "latent_bias": 1, "encoder.weight": 2, "decoder.weight": 2}  # with the number of their axes
_SITES = {
    "mlp_post_act": "mlp_hidden",
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
}
_FILE = re.compile(r"(\d+)\.pt")


@formats.register("openai")
class OpenAI(LayerFiles):
    """`{layer}.pt`; ReLU, and TopK of normalised tokens; only read."""

    title = "OpenAI's format"
    pattern = _FILE

    def read(self, file: Path) -> Contents:
        """Reads a file.

        Raises:
            ValueError: for an activation that is not read, by its name, a missing tensor, and a pickle that calls
                anything but what rebuilds tensors.
        """
        state = torch_files.state(file, _TENSORS)
        form, numbers = _form(file, state)
        t = {name: state[name].astype(np.float32) for name in _TENSORS}
        values = {"W_enc": t["encoder.weight"].T, "W_dec": t["decoder.weight"].T, "b_dec": t["pre_bias"]}
        values["b_enc"] = subtracted(t["latent_bias"], values)
        return Contents(form, values, numbers, _info(file))

    def shapes(self, file: Path) -> Contents:
        """Reads the pickle, without the numbers."""
        state = torch_files.state(file, _TENSORS, shapes_alone=True)
        form, numbers = _form(file, state)
        width, A = state["encoder.weight"].shape
        return Contents.of_sizes(form, {"A": A, "Z": width}, numbers=numbers, info=_info(file))


def _form(file: Path, state: dict[str, Any]) -> tuple[type, dict[str, int]]:
    """Returns the form and its numbers by the name of the activation's class; ReLU for none, as in OpenAI's reader."""
    activation, facts = state.get("activation", "ReLU"), state.get("activation_state_dict") or {}
    if isinstance(activation, str) and activation == "ReLU":
        return ReLU, {}
    if not isinstance(activation, str) or activation != "TopK" or not isinstance(facts, dict):
        raise ValueError(f"{file}: the activation {_shown(activation)} is not read; ReLU and TopK are")
    after = facts.get("postact_fn", "ReLU")
    if not isinstance(after, str) or after != "ReLU":
        raise ValueError(f"{file}: {_shown(after)} after TopK is not read; ReLU is")
    k = facts.get("k")
    k = k.item() if isinstance(k, np.ndarray) and k.size == 1 else k
    if type(k) is not int or k < 1:
        raise ValueError(f"{file}: k must be a whole number above 0, got {_shown(k)}")
    return NormedTopK, {"k": k}


def _shown(value: Any) -> str:
    """Returns a value of a file for a message; only its type where it may be nested to any depth."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _info(file: Path) -> Info | None:
    """Returns the `Info` by a path such as `gpt2-small/{place}_v5_32k/autoencoders/{layer}.pt`."""
    parts = file.absolute().parts
    place = re.fullmatch(r"(\w+?)(_v\d+(_\w+)?)?", parts[-3]) if len(parts) > 3 else None
    layer = _FILE.fullmatch(file.name)
    if place is None or place[1] not in _SITES or layer is None:
        return None
    site = f"layer_{int(layer[1])}/{_SITES[place[1]]}"
    model = parts[-4] if parts[-4].startswith("gpt2") else "gpt2-small"  # the model of all public files
    return Info(model, site, site, training=json.dumps({"openai": {"file": "/".join(parts[-3:])}}))
