"""SAELens's folders: `cfg.json` and `sae_weights.safetensors` (SAELens 6; older configs are read too).

W_enc [A, Z], W_dec [Z, A'] and W_skip [A', A], which is transposed here. `apply_b_dec_to_input`, true by default,
subtracts b_dec from inputs; it is folded into the encoder's bias, and so is the scaling of TopK's activations by the
norms of decoder rows. Normalisations of each token (`layer_norm`, `constant_norm_rescale`) cannot be folded into
weights: a TopK with `layer_norm` is a NormedTopK, and the others are refused. The constant of a normalisation by a
constant is in `activation_scaler.json`, if anywhere.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.counted import Counted
from sae.formats import configs, llamascopium, names, safetensors_files
from sae.formats.folding import subtracted
from sae.formats.format import Contents, Files, Format, formats
from sae.gated import Gated
from sae.normed_topk import NormedTopK
from sae.released import Released
from sae.relu import ReLU
from sae.topk import TopK

_CONFIG, _SCALER, _VERSION = "cfg.json", "activation_scaler.json", "6.0.0"
_SPECIAL = "exclude_special_tokens"  # the ids that training left out, or whether it left out all special ones
_LAYER_NORM = "layer_norm"
# {architecture: (form, whether it is a transcoder)}
_ARCHITECTURES = {
    "standard": (ReLU, False),
    "topk": (TopK, False),
    "jumprelu": (JumpReLU, False),
    "gated": (Gated, False),
    "transcoder": (ReLU, True),
    "skip_transcoder": (ReLU, True),
    "jumprelu_transcoder": (JumpReLU, True),
    "jumprelu_skip_transcoder": (JumpReLU, True),
}
_OLD = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


@formats.register("saelens")
class SAELens(Format):
    """`cfg.json` and `sae_weights.safetensors`; every form but crosscoders, and skips with ReLU and JumpReLU alone."""

    title = "SAELens's format"
    main = "sae_weights.safetensors"
    beside = (r"cfg\.json", r"activation_scaler\.json", r"sparsity\.safetensors")

    def of_folder(self, folder: Path) -> Path | None:
        """Returns the weights, unless the config beside them is Llamascopium's, whose weights have the same name."""
        file = super().of_folder(folder)
        return None if file is None or llamascopium.is_folder(folder) else file

    def takes(self, file: Path) -> bool:
        """Returns whether a file is the weights, and the config beside them is not Llamascopium's."""
        return super().takes(file) and not llamascopium.is_folder(file.parent)

    def read(self, file: Path) -> Contents:
        """Reads the weights by what the config beside them says.

        Raises:
            ValueError: for an architecture, a normalisation or a version that is not read, by its name.
        """
        config = _config(file)
        form, transcoder, wanted = _form(file.parent / _CONFIG, config)
        values = safetensors_files.read(file, wanted)
        for name in ("scaling_factor", "finetuning_scaling_factor"):
            if name in values and not (values.pop(name) == 1).all():
                raise ValueError(f"{file}: its latents are scaled by {name}, which is not read")
        values = {name: values[name] for name in wanted}
        if form is JumpReLU:  # training moves thresholds below 0, where SAELens takes 0
            values["threshold"] = np.maximum(values["threshold"], 0)
        if "W_skip" in wanted:
            values["W_skip"] = values["W_skip"].T
        _fold(file, config, form, values, transcoder)
        return Contents(form, values, _numbers(file, config, form), _info(config))

    def shapes(self, file: Path) -> Contents:
        """Reads the config and the header."""
        config = _config(file)
        form, _, wanted = _form(file.parent / _CONFIG, config)
        leaves = safetensors_files.headers(file, wanted)
        sizes = safetensors_files.sizes(file, leaves["W_enc"], leaves["W_dec"])
        return Contents.of_sizes(form, sizes, wanted, _numbers(file, config, form), _info(config))

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses several sites, and forms and skips for which SAELens has no architecture."""
        if _entry(autoencoder) not in _ARCHITECTURES.values():
            form = type(autoencoder).__name__
            what = autoencoder.noun if autoencoder.several_sites() else f"{form} as a transcoder"
            return f"a {what}"
        return None

    def files(self, contents: Contents) -> Files:
        """Returns the weights and a config of version 6."""
        skip = "W_skip" in contents.values
        autoencoder = contents.form(**contents.values, **contents.numbers, info=contents.info)
        architecture = next(
            name for name, entry in _ARCHITECTURES.items() if entry == _entry(autoencoder) and ("skip" in name) == skip
        )
        values = dict(contents.values)
        if skip:
            values["W_skip"] = values["W_skip"].T
        config = json.dumps(_written(architecture, autoencoder, contents), indent=2) + "\n"
        # pyrefly: ignore[bad-assignment]  not None here
        return {self.main: safetensors_files.writer(values), _CONFIG: config.encode(), _SCALER: None}


def _entry(autoencoder: Released) -> tuple[type[Released], bool]:
    """Returns the form, and whether an autoencoder is a transcoder, by its sites, a skip, or different dims."""
    form = TopK if isinstance(autoencoder, NormedTopK) else type(autoencoder)  # a TopK with other inputs
    info = autoencoder.info
    skip = getattr(autoencoder, "W_skip", None) is not None
    apart = autoencoder.dims[0] != autoencoder.dims[1] or (info is not None and info.site != info.site_out)
    return form, skip or apart


def _config(file: Path) -> dict[str, Any]:
    """Returns the config beside the weights; an older one gets the names of version 6."""
    if (config := configs.read(file.parent / _CONFIG)) is None:
        raise ValueError(f"{file} has no {_CONFIG} beside it, which says what it holds")
    metadata = config.get("metadata")
    config["metadata"] = metadata if isinstance(metadata, dict) else {}
    version = str(config.get("sae_lens_version") or config["metadata"].get("sae_lens_version") or "0")
    if not re.match(r"[0-9]+(\.|$)", version) or int(version.split(".")[0]) < 6:
        config = {_OLD.get(name, name): value for name, value in config.items()}
        config.setdefault("architecture", "standard")
        if config["architecture"] == "standard" and config.get("activation_fn") == "topk":
            config["architecture"] = "topk"
        kwargs = config.get("activation_fn_kwargs")
        if isinstance(kwargs, dict) and "k" in kwargs:
            config.setdefault("k", kwargs["k"])
        if isinstance(config.get("normalize_activations"), bool):
            config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config


def _form(file: Path, config: Mapping[str, Any]) -> tuple[type[Released], bool, list[str]]:
    """Returns the form, whether it is a transcoder, and the names of the tensors that it needs."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise ValueError(f"{file}: the architecture {architecture!r} is not read; {', '.join(_ARCHITECTURES)} are")
    if (activation := config.get("activation_fn", "relu")) not in ("relu", "topk"):
        raise ValueError(f"{file}: the activation function {activation!r} is not read")
    form, transcoder = _ARCHITECTURES[architecture]
    if form is TopK and config.get("normalize_activations") == _LAYER_NORM:
        form = NormedTopK
    return form, transcoder, [name for name in form.axes if name != "W_skip" or "skip" in architecture]


def _numbers(file: Path, config: Mapping[str, Any], form: type[Released]) -> dict[str, int]:
    if "k" not in form.numbers:
        return {}
    k = config.get("k")
    if isinstance(k, float) and k.is_integer():
        k = int(k)
    if type(k) is not int or k < 1:
        raise ValueError(f"{file.parent / _CONFIG}: k must be a whole number above 0, got {k!r}")
    return {"k": k}


def _fold(
    file: Path, config: Mapping[str, Any], form: type[Released], values: dict[str, np.ndarray], transcoder: bool
) -> None:
    """Folds normalisations into the arrays, in place, so that they take raw activations."""
    normalisation = config.get("normalize_activations") or "none"
    scaler = file.parent / _SCALER
    scale = np.float32(1)
    if normalisation == "expected_average_only_in" and not transcoder:
        scale = _scale(file, scaler)
    elif normalisation != "none" and form is not NormedTopK:
        what = "a transcoder's inputs" if transcoder else "inputs"
        raise ValueError(f"{file}: {what} normalised by {normalisation!r} are not read: no weights can do that")
    bias = "b_gate" if form is Gated else "b_enc"
    if config.get("apply_b_dec_to_input", not transcoder):
        values[bias] = subtracted(values[bias], values)
        if form is Gated:
            values["b_mag"] = subtracted(values["b_mag"], values, np.exp(values["r_mag"]))
    values["W_enc"] = values["W_enc"] * scale
    values["W_dec"], values["b_dec"] = values["W_dec"] / scale, values["b_dec"] / scale
    if config.get("rescale_acts_by_decoder_norm"):
        norms = np.linalg.norm(values["W_dec"], axis=1).astype(np.float32)
        values["W_enc"], values["b_enc"] = values["W_enc"] * norms, values["b_enc"] * norms
        values["W_dec"] = values["W_dec"] / np.where(norms > 0, norms, 1)[:, None]


def _scale(file: Path, scaler: Path) -> np.float32:
    """Returns the constant by which inputs were multiplied."""
    scale = (configs.read(scaler) or {}).get("scaling_factor")
    # pyrefly: ignore[unsupported-operation]  not None here
    if type(scale) not in (int, float) or not 0 < scale < np.inf:
        raise ValueError(
            f"{file}: its inputs were scaled by a constant (expected_average_only_in), and no {_SCALER} beside it has "
            f"the constant: write it there, or set normalize_activations to none in {_CONFIG} if it is folded in"
        )
    return np.float32(scale)


def _info(config: Mapping[str, Any]) -> Info | None:
    both = dict(config) | {name: value for name, value in config["metadata"].items() if value is not None}
    hook, model = both.get("hook_name"), both.get("model_name")
    if not isinstance(hook, str) or not isinstance(model, str):
        return None
    out = both.get("hook_name_out") if isinstance(both.get("hook_name_out"), str) else hook
    facts = {"config": {name: value for name, value in config.items() if name != "device"}}
    sites = names.site_of(hook), names.site_of(out)
    training = json.dumps({"saelens": facts}, sort_keys=True)
    return Info(names.model_of(model), *sites, training=training, counted=_counted(both.get(_SPECIAL)))


def _counted(excluded: Any) -> Counted | None:
    """Returns the rule of a list of ids; None for True and False. True means all special ids of an unknown tokenizer,
    which is the default without a rule; False says nothing of padding, and stays in the facts."""
    whole = isinstance(excluded, list) and all(type(token) is int and token >= 0 for token in excluded)
    return Counted(tuple(excluded)) if whole else None


def _written(architecture: str, autoencoder: Released, contents: Contents) -> dict[str, Any]:
    """Returns the config of an autoencoder that takes raw activations."""
    A_in, A_out = autoencoder.dims
    config = {
        "architecture": architecture,
        "d_in": A_in,
        "d_sae": autoencoder.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": _LAYER_NORM if contents.form is NormedTopK else "none",
        "reshape_activations": "none",
    }
    if "transcoder" in architecture:
        config["d_out"] = A_out
    # pyrefly: ignore[unsupported-operation]  numbers join texts
    config |= contents.numbers
    if architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = False
    metadata: dict[str, Any] = {"sae_lens_version": _VERSION}
    if (info := contents.info) is not None:
        hook = names.transformer_lens_hook(str(info.site))
        metadata |= {"model_name": names.hub_name(info.model, info.training), "hook_name": hook, "prepend_bos": True}
        if info.counted is not None:
            metadata[_SPECIAL] = list(info.counted.special_ids)
        if info.site_out != info.site:
            metadata["hook_name_out"] = names.transformer_lens_hook(str(info.site_out))
        if "hook_z" in hook:
            config["reshape_activations"] = "hook_z"
    return config | {"metadata": metadata}
