"""dictionary_learning's folders: `ae.pt` and `config.json`, read without torch and without unpickling.

`config.json` names the class: AutoEncoder, AutoEncoderNew, GatedAutoEncoder, AutoEncoderTopK, BatchTopKSAE,
MatryoshkaBatchTopKSAE or JumpReluAutoEncoder. All but AutoEncoderNew and JumpReluAutoEncoder subtract the decoder's
bias from inputs, which is folded here. A BatchTopK with its threshold is a JumpReLU.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.autoencoder import Info, JumpReLU
from sae.formats import configs, names, torch_files
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
        kind, trainer = _trainer(file)
        state = torch_files.state(file, {})
        normalised = state.get("normalize_to_sqrt_d")
        if normalised is True or (isinstance(normalised, np.ndarray) and normalised.any()):
            raise ValueError(f"{file}: inputs normalised to sqrt(d) are not read: no weights can do that")
        try:
            contents = _READERS[kind](_Tensors(file, state), trainer)
        except _MissingTensor as error:
            raise ValueError(f"{file}: {error}") from None
        return Contents(contents.form, contents.values, contents.numbers, _info(trainer))

    def shapes(self, file: Path) -> Contents | None:
        """Reads the config and the pickle, without the numbers."""
        kind, trainer = _trainer(file)
        state = torch_files.headers(file)
        if not isinstance(state, dict):
            return None  # `read` names the problem
        form = _FORMS[kind]
        name, turned = ("encoder.weight", True) if "encoder.weight" in state else ("W_enc", False)
        shape = getattr(state.get(name), "shape", ())
        if len(shape) != 2 or (form is TopK and getattr(state.get("k"), "shape", None) != ()):
            return None
        A, width = shape[::-1] if turned else shape
        numbers = {"k": int(state["k"])} if form is TopK else {}
        return Contents.of_sizes(form, {"A": A, "Z": width}, numbers=numbers, info=_info(trainer))


def _trainer(file: Path) -> tuple[str, Mapping[str, Any]]:
    """Returns the class that the config names, and the config's part on the training."""
    place = file.parent / _CONFIG
    trainer = (configs.read(place) or {}).get("trainer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{file} has no {_CONFIG} beside it with a trainer in it, which says what it holds")
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"{place}: the class {kind!r} is not read; {', '.join(_READERS)} are")
    return kind, trainer


class _MissingTensor(ValueError):
    pass


class _Tensors:
    """A state dict that gives its tensors in float32."""

    def __init__(self, file: Path, state: Mapping[str, Any]):
        self.file, self.state = file, state

    def __getitem__(self, name: str) -> np.ndarray:
        if not isinstance(value := self.state.get(name), np.ndarray):
            raise _MissingTensor(f"it has no tensor {name}; it holds {', '.join(map(str, self.state))}"[:300])
        return value.astype(np.float32)

    def number(self, name: str) -> float:
        """Returns the number in a tensor of one number."""
        if (value := self[name]).size != 1:
            raise _MissingTensor(f"{name} must be one number, got {list(value.shape)}")
        return value.item()


def _linear(tensors: _Tensors, b_dec: str) -> dict[str, np.ndarray]:
    """Returns the arrays of torch's encoder [Z, A] and decoder [A, Z]."""
    return {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors[b_dec]}


def _relu(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "bias")
    return Contents(ReLU, values | {"b_enc": subtracted(tensors["encoder.bias"], values)})


def _relu_new(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    """Reads a ReLU that subtracts no bias; the decoder has a bias of its own."""
    return Contents(ReLU, _linear(tensors, "decoder.bias") | {"b_enc": tensors["encoder.bias"]})


def _gated(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "decoder_bias")
    r_mag, b_gate = tensors["r_mag"], subtracted(tensors["gate_bias"], values)
    b_mag = subtracted(tensors["mag_bias"], values, np.exp(r_mag))
    return Contents(Gated, values | {"b_gate": b_gate, "b_mag": b_mag, "r_mag": r_mag})


def _topk(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = _linear(tensors, "b_dec")
    b_enc = subtracted(tensors["encoder.bias"], values)
    return Contents(TopK, values | {"b_enc": b_enc}, {"k": int(tensors.number("k"))})


def _with_threshold(values: dict[str, np.ndarray], b_enc: np.ndarray, threshold: float) -> Contents:
    """Returns a JumpReLU with one threshold. A threshold that was never set is -1; then all latents above 0 are active,
    as in dictionary_learning itself."""
    shifted = subtracted(b_enc, values)
    thresholds = np.full(len(b_enc), max(0.0, threshold), np.float32)
    return Contents(JumpReLU, values | {"b_enc": shifted, "threshold": thresholds})


def _batch_topk(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    return _with_threshold(_linear(tensors, "b_dec"), tensors["encoder.bias"], tensors.number("threshold"))


def _matryoshka(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = {name: tensors[name] for name in ("W_enc", "W_dec", "b_dec")}
    return _with_threshold(values, tensors["b_enc"], tensors.number("threshold"))


def _jumprelu(tensors: _Tensors, _: Mapping[str, Any]) -> Contents:
    values = {name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    # Training moves thresholds below 0; a ReLU comes after the gate, so that 0 is the same there.
    return Contents(JumpReLU, values | {"threshold": np.maximum(tensors["threshold"], 0)})


_READERS = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


_FORMS = {
    "AutoEncoder": ReLU,
    "AutoEncoderNew": ReLU,
    "GatedAutoEncoder": Gated,
    "AutoEncoderTopK": TopK,
    "BatchTopKSAE": JumpReLU,
    "MatryoshkaBatchTopKSAE": JumpReLU,
    "JumpReluAutoEncoder": JumpReLU,
}


def _info(trainer: Mapping[str, Any]) -> Info | None:
    """Returns the `Info` by the model, and the site of a submodule with a name such as `resid_post_layer_8`."""
    model, layer, submodule = (trainer.get(name) for name in ("lm_name", "layer", "submodule_name"))
    if not isinstance(model, str) or not isinstance(submodule, str) or type(layer) is not int:
        return None
    kind = next((site for name, site in _KINDS.items() if submodule.startswith(name)), None)
    site = f"layer_{layer}/{kind}" if kind else submodule
    facts = json.dumps({"dictionary_learning": dict(trainer)}, sort_keys=True, default=str)
    return Info(names.model_of(model), site, site, training=facts)
