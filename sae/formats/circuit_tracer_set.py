"""circuit-tracer's folders of a transcoder for each layer: `config.yaml`, and `layer_{i}.safetensors` for layer i.

A file has `W_enc` [Zl, A], `W_dec` [Zl, A'], `b_enc`, `b_dec`, `activation_function.threshold` unless it is a ReLU's or
a TopK's, and `W_skip` [A', A], which is applied as x @ W_skip.T. The folder is read as one set. A file that the user
names is read alone, so layers can be loaded one at a time.
"""

import re
from pathlib import Path

import numpy as np

from sae.autoencoder import JumpReLU
from sae.formats import circuit_tracer_config as config_file
from sae.formats import safetensors_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released
from sae.relu import ReLU
from sae.topk import TopK
from sae.transcoder_set import TranscoderSet

_KIND = "transcoder_set"
_NAME = "layer_{}.safetensors"
_ALL = "layer_*.safetensors"  # stands for the set of a folder, in the place of a file's name
_NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec")
_THRESHOLD = "activation_function.threshold"


@formats.register("circuit_tracer_set")
class CircuitTracerSet(Format):
    """`layer_0.safetensors` and on, `config.yaml`; a set of transcoders, with a skip or without, or one of them."""

    title = "circuit-tracer's format of a transcoder for each layer"
    main = "layer_0.safetensors"
    beside = (r"layer_\d+\.safetensors", re.escape(config_file.NAME))

    def of_folder(self, folder: Path) -> Path | None:
        """Returns the set of a folder with a file of layer 0."""
        return None if super().of_folder(folder) is None else folder / _ALL

    def takes(self, file: Path) -> bool:
        """Returns whether a file is a layer's, or the set."""
        return file.name == _ALL or re.fullmatch(r"layer_\d+\.safetensors", file.name) is not None

    def check_exists(self, file: Path) -> None:
        """Raises ValueError for a missing file; the first layer's for a set."""
        # pyrefly: ignore[bad-argument-type]  not None here
        super().check_exists(file.with_name(self.main) if file.name == _ALL else file)

    def read(self, file: Path) -> Contents:
        """Reads a layer, or all layers, one at a time.

        Raises:
            ValueError: for a set of TopK, whose layers have to be read one at a time.
        """
        if file.name != _ALL:
            return _layer(file, safetensors_files.read(file, _NEEDED))
        shapes = self.shapes(file)
        values = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.values.items()}
        for layer in range(len(values["W_enc"])):
            part = file.with_name(_NAME.format(layer))
            one = self.read(part).values
            for name in values.keys() & one.keys():  # a ReLU has no threshold, which is 0 then
                if one[name].shape != values[name].shape[1:]:
                    raise ValueError(f"{part}: {name} {list(one[name].shape)} is not {list(values[name].shape[1:])}")
                values[name][layer] = one[name]
            if ("W_skip" in values) != ("W_skip" in one):
                raise ValueError(f"{part}: one of it and {self.main} has a W_skip, and the other has none")
        return Contents(shapes.form, values, info=shapes.info)

    def shapes(self, file: Path) -> Contents:
        """Reads the header of the file, or of layer 0's."""
        # pyrefly: ignore[bad-argument-type]  not None here
        first = file.with_name(self.main) if file.name == _ALL else file
        one = _layer(first, safetensors_files.headers(first, _NEEDED))
        if file.name != _ALL:
            return one
        if one.form is TopK:
            raise ValueError(
                f"{file.parent} has a TopK for each layer, and no released form holds a set of TopK: name one of its "
                f"files, such as {first}"
            )
        layers = range(safetensors_files.count_layers(file.parent, _NAME))
        A, width = one.values["W_enc"].shape
        sizes = {"L": len(layers), "A": A, "Zl": width, "A'": one.values["b_dec"].shape[-1]}
        info = config_file.info(config_file.read(file.parent, _KIND), layers)
        return Contents.of_sizes(TranscoderSet, sizes, {"W_skip"} & one.values.keys(), info=info)

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but sets of transcoders at layers from 0 on."""
        if not isinstance(autoencoder, TranscoderSet):
            return f"a {type(autoencoder).__name__}, only for a TranscoderSet"
        return config_file.lacks(autoencoder.info)

    def files(self, contents: Contents) -> Files:
        """Returns a file for each layer, and a config."""
        files: Files = {config_file.NAME: config_file.text(contents.info, _KIND)}
        for layer in range(len(contents.values["W_enc"])):
            one = {name: value[layer] for name, value in contents.values.items()}
            tensors = {"W_enc": one["W_enc"].T, "W_dec": one["W_dec"], "b_enc": one["b_enc"], "b_dec": one["b_dec"]}
            tensors[_THRESHOLD] = one["threshold"]
            if "W_skip" in one:
                tensors["W_skip"] = one["W_skip"].T
            files[_NAME.format(layer)] = safetensors_files.writer(tensors)
        return files


def _layer(file: Path, tensors: dict) -> Contents:
    """Returns the contents of one layer's transcoder, by its tensors or by their shapes."""
    config = config_file.read(file.parent, _KIND)
    shapes_alone = not isinstance(tensors["W_enc"], np.ndarray)
    if bad := [name for name in ("W_enc", "W_dec") if len(tensors[name].shape) != 2]:
        raise ValueError(f"{file}: {bad[0]} must have 2 axes, got {list(tensors[bad[0]].shape)}")
    (width, A), out = tensors["W_enc"].shape, tensors["W_dec"].shape[-1]
    form, numbers = (ReLU, {}) if config.get("activation") == "relu" or _THRESHOLD not in tensors else (JumpReLU, {})
    if config.get("activation") == "topk":
        form, numbers = TopK, {"k": _k(file, config)}
    info = config_file.info(config, int(re.findall(r"\d+", file.name)[0]))
    if shapes_alone:
        sizes = {"A": A, "Z": width, "A'": out}
        return Contents.of_sizes(form, sizes, {"W_skip"} & tensors.keys(), numbers, info)
    values = {name: tensors[name] for name in _NEEDED} | {"W_enc": tensors["W_enc"].T}
    if form is JumpReLU:
        values["threshold"] = threshold(file, tensors[_THRESHOLD], (width,))
    if "W_skip" in tensors:
        values["W_skip"] = tensors["W_skip"].T
    return Contents(form, values, numbers, info)


def threshold(file: Path, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a threshold for each latent. A file may have one for all latents, or an axis of length 1 before."""
    if value.size not in (1, shape[-1]):
        raise ValueError(f"{file}: the threshold must be {list(shape)}, got {list(value.shape)}")
    return np.broadcast_to(value.reshape(-1), shape).copy()


def _k(file: Path, config: dict[str, str]) -> int:
    """Returns k by the config, as circuit-tracer reads it."""
    text = config.get("k", "")
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{file.parent / config_file.NAME}: a set of TopK needs k, a whole number, got {text!r}")
    return int(text)
