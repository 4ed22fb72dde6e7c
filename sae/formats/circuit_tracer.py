"""circuit-tracer's folders of a cross-layer transcoder: `config.yaml`, and for each layer i `W_enc_{i}.safetensors` and
`W_dec_{i}.safetensors`.

The first has `W_enc_{i}` [Zl, A], `b_enc_{i}`, `b_dec_{i}` and, unless it is a ReLU's, `threshold_{i}`; the second
`W_dec_{i}` [Zl, L - i, A], whose second axis counts the layers from i on. Files of circuit-tracer after 0.5 may have
`W_skip_{i}` [A, A], applied as x @ W_skip. They are read, and not written, since circuit-tracer 0.5 leaves them out.
"""

import re
from pathlib import Path

import numpy as np

from sae.cross_layer import CrossLayerTranscoder
from sae.formats import circuit_tracer_config as config_file
from sae.formats import safetensors_files
from sae.formats.circuit_tracer_set import threshold
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released

_KIND = "cross_layer_transcoder"
_NEEDED = ("W_enc", "b_enc", "b_dec")


@formats.register("circuit_tracer")
class CircuitTracer(Format):
    """`W_enc_0.safetensors`, `W_dec_0.safetensors` and on, `config.yaml`; a cross-layer transcoder."""

    title = "circuit-tracer's format"
    main = "W_enc_0.safetensors"
    beside = (r"W_(enc|dec)_\d+\.safetensors", re.escape(config_file.NAME))

    def read(self, file: Path) -> Contents:
        """Reads the files of all layers, one at a time."""
        folder, shapes = file.parent, self.shapes(file)
        values = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.values.items()}
        for layer in range(len(values["W_enc"])):
            encoder = folder / f"W_enc_{layer}.safetensors"
            tensors = safetensors_files.read(encoder, [f"{name}_{layer}" for name in _NEEDED])
            decoder = folder / f"W_dec_{layer}.safetensors"
            tensors |= safetensors_files.read(decoder, [f"W_dec_{layer}"])
            _put(decoder, values["W_dec"][layer, :, layer:], tensors[f"W_dec_{layer}"], f"W_dec_{layer}")
            _put(encoder, values["W_enc"][layer], tensors[f"W_enc_{layer}"].T, f"W_enc_{layer}, turned,")
            for name in ("b_enc", "b_dec"):
                _put(encoder, values[name][layer], tensors[f"{name}_{layer}"], f"{name}_{layer}")
            if (f"W_skip_{layer}" in tensors) != ("W_skip" in values):
                raise ValueError(f"{encoder}: it and {file.name} differ in whether they have a W_skip")
            if "W_skip" in values:
                _put(encoder, values["W_skip"][layer], tensors[f"W_skip_{layer}"], f"W_skip_{layer}")
            if (key := f"threshold_{layer}") in tensors:  # without a threshold it is a ReLU
                values["threshold"][layer] = threshold(encoder, tensors[key], values["threshold"][layer].shape)
        return Contents(shapes.form, values, info=shapes.info)

    def shapes(self, file: Path) -> Contents:
        """Reads the headers of layer 0's two files, and counts the files."""
        folder = file.parent
        count = safetensors_files.count_layers(folder, "W_enc_{}.safetensors", "W_dec_{}.safetensors")
        leaves = safetensors_files.headers(file, ("W_enc_0",))
        W_enc, optional = leaves["W_enc_0"].shape, {"W_skip"} if "W_skip_0" in leaves else ()
        W_dec = safetensors_files.headers(folder / "W_dec_0.safetensors", ("W_dec_0",))["W_dec_0"].shape
        for name, shape, rank in (("W_enc_0", W_enc, 2), ("W_dec_0", W_dec, 3)):
            if len(shape) != rank:
                raise ValueError(f"{file}: {name} must have {rank} axes, got {list(shape)}")
        info = config_file.info(config_file.read(folder, _KIND), range(count))
        sizes = {"L": count, "A": W_enc[1], "Zl": W_enc[0], "A'": W_dec[-1]}
        return Contents.of_sizes(CrossLayerTranscoder, sizes, optional, info=info)

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but cross-layer transcoders without a skip at layers from 0 on."""
        if not isinstance(autoencoder, CrossLayerTranscoder):
            return f"a {type(autoencoder).__name__}, only for a CrossLayerTranscoder"
        if autoencoder.W_skip is not None:
            return "an affine skip (W_skip)"
        return config_file.lacks(autoencoder.info)

    def files(self, contents: Contents) -> Files:
        """Returns two files for each layer, and a config.

        Raises:
            ValueError: for latents that write to an earlier layer.
        """
        values = contents.values
        files: Files = {config_file.NAME: config_file.text(contents.info, _KIND)}
        for layer in range(len(values["W_enc"])):
            if values["W_dec"][layer, :, :layer].any():
                raise ValueError(f"{self.title} has no place for latents of layer {layer} that write to an earlier one")
            encoder = {f"W_enc_{layer}": values["W_enc"][layer].T}
            encoder |= {f"{name}_{layer}": values[name][layer] for name in ("b_enc", "b_dec", "threshold")}
            files[f"W_enc_{layer}.safetensors"] = safetensors_files.writer(encoder)
            decoder = {f"W_dec_{layer}": values["W_dec"][layer, :, layer:]}
            files[f"W_dec_{layer}.safetensors"] = safetensors_files.writer(decoder)
        return files


def _put(file: Path, place: np.ndarray, value: np.ndarray, name: str) -> None:
    if place.shape != value.shape:
        raise ValueError(f"{file}: {name} must be {list(place.shape)}, got {list(value.shape)}")
    place[...] = value
