"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder with the name of the module that it reads.

They hold TopK after a ReLU. Tensors are `encoder.weight` [Z, A], `encoder.bias`, `W_dec` [Z, A], `b_dec`, and `W_skip`
[A, A], which is applied as x @ W_skip.T. An autoencoder subtracts b_dec from its inputs, which is folded into the
encoder's bias; a transcoder does not.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sae.autoencoder import Info
from sae.formats import configs, names, safetensors_files
from sae.formats.folding import subtracted
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released
from sae.topk import TopK

_CONFIG = "cfg.json"
_TENSORS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}


@formats.register("sparsify")
class Sparsify(Format):
    """`cfg.json` and `sae.safetensors`; TopK, with a skip or without."""

    title = "sparsify's format"
    main = "sae.safetensors"
    beside = (r"cfg\.json",)

    def read(self, file: Path) -> Contents:
        """Reads the weights by what the config beside them says.

        Raises:
            ValueError: for another activation than topk, and for other settings that are not read; it names them.
        """
        config = _config(file)
        wanted = _wanted(config)
        tensors = safetensors_files.read(file, list(wanted.values()))
        values = {name: tensors[stored] for name, stored in wanted.items()}
        values["W_enc"] = values["W_enc"].T
        if "W_skip" in wanted:
            values["W_skip"] = values["W_skip"].T
        if not config.get("transcode"):
            values["b_enc"] = subtracted(values["b_enc"], values)
        return Contents(TopK, values, {"k": config["k"]}, _info(file.parent, config))

    def shapes(self, file: Path) -> Contents:
        """Reads the config and the header."""
        config = _config(file)
        wanted = _wanted(config)
        leaves = safetensors_files.headers(file, list(wanted.values()))
        W_enc = leaves["encoder.weight"]
        sizes = safetensors_files.sizes(file, jax.ShapeDtypeStruct(W_enc.shape[::-1], W_enc.dtype), leaves["W_dec"])
        return Contents.of_sizes(TopK, sizes, wanted, {"k": config["k"]}, _info(file.parent, config))

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but TopK with equally long inputs and outputs."""
        if not isinstance(autoencoder, TopK):
            return f"a {type(autoencoder).__name__}, only for a TopK"
        A_in, A_out = autoencoder.dims
        return None if A_in == A_out else f"an output of another length, {A_out} for {A_in}"

    def files(self, contents: Contents) -> Files:
        """Returns the weights and a config."""
        values, info = dict(contents.values), contents.info
        skip = "W_skip" in values
        transcode = skip or (info is not None and info.site != info.site_out)
        if not transcode:  # theirs subtracts b_dec from inputs
            values["b_enc"] = subtracted(values["b_enc"], values, -1.0)
        values["W_enc"] = values["W_enc"].T
        if skip:
            values["W_skip"] = values["W_skip"].T
        width, A = contents.values["W_dec"].shape
        config = {
            "activation": "topk",
            "expansion_factor": max(1, width // A),
            "normalize_decoder": False,
            "num_latents": width,
            "k": contents.numbers["k"],
            "multi_topk": False,
            "skip_connection": skip,
            "transcode": transcode,
            "d_in": A,
        }
        tensors = {stored: values[name] for name, stored in _TENSORS.items() if name in values}
        text = json.dumps(config, indent=2) + "\n"
        # pyrefly: ignore[bad-assignment]  not None here
        return {self.main: safetensors_files.writer(tensors), _CONFIG: text.encode()}


def _wanted(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns {this library's name: the file's name} of the tensors that the config promises."""
    return {name: stored for name, stored in _TENSORS.items() if name != "W_skip" or config.get("skip_connection")}


def _config(file: Path) -> dict[str, Any]:
    """Returns the config beside the weights. Raises ValueError for settings that are not read here."""
    place = file.parent / _CONFIG
    if (config := configs.read(place)) is None:
        raise ValueError(f"{file} has no {_CONFIG} beside it, which says what it holds")
    if (activation := config.get("activation", "topk")) != "topk" or config.get("signed"):
        what = f"the activation {activation!r}" if activation != "topk" else "signed activations"
        raise ValueError(f"{place}: {what} cannot be read; topk can")
    if type(k := config.get("k")) is not int or k < 1:
        raise ValueError(f"{place}: k must be a whole number above 0, got {k!r}")
    return config


def _info(folder: Path, config: dict) -> Info | None:
    """Returns the `Info` by the name of the folder, `layers.3`, and the run's config above it, which names the
    model."""
    hook = folder.absolute().name
    model = (configs.read(folder.absolute().parent / "config.json") or {}).get("model")
    if not isinstance(model, str):
        return None
    if match := re.fullmatch(r"layers\.(\d+)", hook):
        site = f"layer_{int(match[1])}/resid_post"
    else:
        site = "embed" if hook == "embed_tokens" else hook
    return Info(names.model_of(model), site, site, training=json.dumps({"sparsify": config}, sort_keys=True))
