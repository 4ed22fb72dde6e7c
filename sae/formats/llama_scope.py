"""Llama Scope's folders (arXiv 2410.20526): `hyperparams.json`, and `checkpoints/final.safetensors`.

`encoder.weight` [Z, A], `encoder.bias`, `decoder.weight` [A, Z], `decoder.bias`, and one `jump_relu_threshold` for all
latents. Inputs were multiplied by f_in = sqrt(A) over the mean norm of the activations, outputs by f_out likewise:
latents here are x W_enc + b_enc / f_in. They are compared with the threshold as it stands in the file, which is how
SAELens's loader reads these files too. No file says in which units it is: `sae.check` tells whether it fits a model.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.formats import configs, names, safetensors_files
from sae.formats.format import Contents, Format, formats

MAIN, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_FOLDER = re.compile(r"Llama3_1-8B-(Base|Instruct)-L\d+[A-Z]+-\d+x")


@formats.register("llama_scope")
class LlamaScope(Format):
    """`hyperparams.json` and `checkpoints/final.safetensors`; a JumpReLU; only read."""

    title = "Llama Scope's format"
    main = MAIN
    written = False

    def read(self, file: Path) -> Contents:
        """Reads the weights by what the hyperparameters say.

        Raises:
            ValueError: for an activation function or a normalisation that is not read, by its name.
        """
        config = _config(file)
        f_in, f_out = (_factor(file, config, way) for way in ("in", "out"))
        tensors = safetensors_files.read(file.parent / WEIGHTS, _needed(config))
        W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
        b_dec = tensors["decoder.bias"] / f_out if "decoder.bias" in _needed(config) else np.zeros(W_dec.shape[1])
        values = {
            "W_enc": W_enc,
            "b_enc": tensors["encoder.bias"] / f_in,
            "W_dec": W_dec if f_in == f_out else W_dec * (f_in / f_out),
            "b_dec": b_dec.astype(np.float32),
            "threshold": np.full(W_enc.shape[1], config["jump_relu_threshold"], np.float32),
        }
        return Contents(JumpReLU, values, info=_info(file, config))

    def shapes(self, file: Path) -> Contents:
        """By the hyperparameters and the header."""
        config = _config(file)
        leaves = safetensors_files.headers(file.parent / WEIGHTS, _needed(config))
        W_enc, W_dec = leaves["encoder.weight"], leaves["decoder.weight"]
        if len(W_enc.shape) != 2 or len(W_dec.shape) != 2:
            raise ValueError(f"{file.parent / WEIGHTS}: the weights must have 2 axes, got {W_enc}, {W_dec}")
        sizes = {"A": W_enc.shape[1], "Z": W_enc.shape[0], "A'": W_dec.shape[0]}
        return Contents.of_sizes(JumpReLU, sizes, info=_info(file, config))


def _config(file: Path) -> dict[str, Any]:
    """The hyperparameters of something that is read here."""
    if (config := configs.read(file)) is None:
        raise ValueError(f"{file} is missing")
    if (kind := config.get("act_fn", "jumprelu")) not in ("relu", "jumprelu"):
        raise ValueError(f"{file}: the act_fn {kind!r} is not read; relu and jumprelu are")
    if config.get("use_glu_encoder"):
        raise ValueError(f"{file}: use_glu_encoder is not read: there is no form for a product of two encoders")
    threshold = config.setdefault("jump_relu_threshold", 0.0 if kind == "relu" else None)
    if type(threshold) not in (int, float) or not 0 <= threshold < math.inf:
        raise ValueError(f"{file}: jump_relu_threshold must be a number, at least 0; got {threshold!r}")
    return config


def _needed(config: Mapping[str, Any]) -> list[str]:
    return [name for name in _TENSORS if name != "decoder.bias" or config.get("use_decoder_bias", True)]


def _factor(file: Path, config: Mapping[str, Any], way: str) -> np.float32:
    """By what activations that go in, or come out, were multiplied; 1 where the weights have it already."""
    kind = config.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return np.float32(1)
    if kind != "dataset-wise":
        raise ValueError(f"{file}: inputs normalised {kind!r} are not read: no weights can do that")
    norms, size = config.get("dataset_average_activation_norm"), config.get("d_model")
    norm = norms.get(way) if isinstance(norms, dict) else None
    if not isinstance(norm, int | float) or type(size) is not int or not (0 < norm < math.inf and size > 0):
        raise ValueError(
            f"{file}: dataset_average_activation_norm.{way} and d_model must be numbers above 0, got {norm!r}, {size!r}"
        )
    return np.float32(math.sqrt(size) / norm)


def _info(file: Path, config: Mapping[str, Any]) -> Info | None:
    """By the hyperparameters; the model by the name of the folder, which they lack."""
    into, out = (config.get(f"hook_point_{way}") for way in ("in", "out"))
    if not isinstance(into, str) or not isinstance(out, str):
        return None
    match = _FOLDER.fullmatch(file.absolute().parent.name)
    model = ("meta-llama/Llama-3.1-8B" + "-Instruct" * (match[1] == "Instruct")) if match else "unknown"
    return Info(
        model,
        names.site_of(into),
        names.site_of(out),
        training=json.dumps({"llama_scope": dict(config)}, sort_keys=True),
    )
