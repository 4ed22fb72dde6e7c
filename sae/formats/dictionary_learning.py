"""dictionary_learning's folders: `ae.pt` and `config.json`, read without torch and without unpickling.

`config.json` names the class: AutoEncoder, AutoEncoderNew, GatedAutoEncoder, AutoEncoderTopK, BatchTopKSAE,
MatryoshkaBatchTopKSAE or JumpReluAutoEncoder. All but AutoEncoderNew and JumpReluAutoEncoder subtract the decoder's
bias from what goes in, which is folded here. A BatchTopK with its threshold is a JumpReLU.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.files import read_json
from sae.formats import names, torch_files
from sae.formats.folding import subtracted
from sae.formats.format import Contents, Format, formats
from sae.gated import Gated
from sae.relu import ReLU
from sae.topk import TopK

_CONFIG = "config.json"
_KINDS = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}


@formats.register("dictionary_learning")
class DictionaryLearning(Format):
    """`ae.pt` and `config.json`; only read."""

    title = "dictionary_learning's format"
    main = "ae.pt"
    written = False

    def read(self, file: Path) -> Contents:
        """Reads a file by the class that the config names.

        Raises:
            ValueError: for a class that is not read, by its name, a missing tensor, and a pickle that calls anything
                but what rebuilds tensors.
        """
        place = file.parent / _CONFIG
        config = read_json(place) if place.exists() else None
        trainer = config.get("trainer") if isinstance(config, dict) else None
        if not isinstance(trainer, dict):
            raise ValueError(f"{file} has no {_CONFIG} beside it with a trainer in it, which says what it holds")
        kind = trainer.get("dict_class")
        if kind not in _READERS:
            raise ValueError(f"{place}: the class {kind!r} is not read; {', '.join(_READERS)} are")
        state = torch_files.read(file)
        if not isinstance(state, dict):
            raise ValueError(f"{file} holds no state dict")
        if _true(state.get("normalize_to_sqrt_d")):
            raise ValueError(f"{file}: inputs normalised to sqrt(d) are not read: no weights can do that")
        try:
            contents = _READERS[kind](_Tensors(file, state), trainer)
        except _MissingTensor as error:
            raise ValueError(f"{file}: {error}") from None
        return Contents(contents.form, contents.values, contents.numbers, _info(trainer))


class _MissingTensor(ValueError):
    pass


class _Tensors:
    """A state dict, whose tensors come in float32."""

    def __init__(self, file: Path, state: Mapping[str, Any]):
        self.file, self.state = file, state

    def __getitem__(self, name: str) -> np.ndarray:
        if not isinstance(value := self.state.get(name), np.ndarray):
            raise _MissingTensor(f"it has no tensor {name}; it holds {', '.join(map(str, self.state))}"[:300])
        return value.astype(np.float32)


def _true(value: Any) -> bool:
    return bool(np.asarray(value).any()) if value is not None else False


def _linear(tensors: _Tensors, b_dec: str) -> dict[str, np.ndarray]:
    """The arrays of torch's encoder [Z, A] and decoder [A, Z]."""
    return {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors[b_dec]}


def _relu(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "bias")
    return Contents(ReLU, values | {"b_enc": subtracted(tensors["encoder.bias"], values)})


def _relu_new(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    """Subtracts no bias; the decoder has its own."""
    return Contents(ReLU, _linear(tensors, "decoder.bias") | {"b_enc": tensors["encoder.bias"]})


def _gated(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "decoder_bias")
    r_mag, b_gate = tensors["r_mag"], subtracted(tensors["gate_bias"], values)
    b_mag = subtracted(tensors["mag_bias"], values, np.exp(r_mag))
    return Contents(Gated, values | {"b_gate": b_gate, "b_mag": b_mag, "r_mag": r_mag})


def _topk(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "b_dec")
    b_enc = subtracted(tensors["encoder.bias"], values)
    return Contents(TopK, values | {"b_enc": b_enc}, {"k": int(tensors["k"])})


def _with_threshold(values: dict[str, np.ndarray], b_enc: np.ndarray, threshold: np.ndarray) -> Contents:
    """A threshold that was never set is -1, and all above 0 are active then, as in dictionary_learning itself."""
    shifted = subtracted(b_enc, values)
    thresholds = np.full(len(b_enc), max(0.0, float(threshold)), np.float32)
    return Contents(JumpReLU, values | {"b_enc": shifted, "threshold": thresholds})


def _batch_topk(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    return _with_threshold(_linear(tensors, "b_dec"), tensors["encoder.bias"], tensors["threshold"])


def _matryoshka(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = {name: tensors[name] for name in ("W_enc", "W_dec", "b_dec")}
    return _with_threshold(values, tensors["b_enc"], tensors["threshold"])


def _jumprelu(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    return Contents(JumpReLU, {name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})


_READERS = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


def _info(trainer: Mapping[str, Any]) -> Info | None:
    """The model, and the site of a submodule that is called as `resid_post_layer_8`."""
    model, layer, submodule = (trainer.get(name) for name in ("lm_name", "layer", "submodule_name"))
    if not isinstance(model, str) or not isinstance(submodule, str) or type(layer) is not int:
        return None
    kind = next((site for name, site in _KINDS.items() if submodule.startswith(name)), None)
    site = f"layer_{layer}/{kind}" if kind else submodule
    facts = json.dumps({"dictionary_learning": dict(trainer)}, sort_keys=True, default=str)
    return Info(names.model_of(model), site, site, training=facts)
