"""circuit-tracer's half of `make test-peers-circuit-tracer`; see `circuit_tracer_ours.py`. Imports nothing of this
project's packages.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import comparing
import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import (
    CrossLayerTranscoder,
    load_clt,
    load_gemma_scope_2_clt,
)
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder_set,
)

READER = f"circuit-tracer {version('circuit-tracer')}"
L, A, Z, BATCH = 3, 12, 32, 40
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
FLOAT = {"dtype": torch.float32, "device": torch.device("cpu")}


def load(folder: Path) -> torch.nn.Module:
    """What circuit-tracer makes of a folder, by its config; its own reader of configs fetches from the hub.

    Raises:
      ValueError: for a folder whose config names other hooks.
    """
    if (file := folder / "params.npz").exists():
        return load_gemma_scope_transcoder(str(file), 0, **FLOAT)
    if (file := folder / "params.safetensors").exists():
        return load_gemma_scope_2_transcoder(str(file), 0, **FLOAT)
    if (folder / "params_layer_0.safetensors").exists():
        # Of the layers that it is given, 0.5 leaves out the last.
        paths = {layer: str(folder / f"params_layer_{layer}.safetensors") for layer in range(L + 1)}
        return load_gemma_scope_2_clt(paths, **HOOKS, **FLOAT)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if {name: config[name] for name in HOOKS} != HOOKS:
        raise ValueError(f"{folder}: its config names {config}, and not {HOOKS}")
    if config["model_kind"] == "cross_layer_transcoder":
        return load_clt(str(folder), **HOOKS, lazy_decoder=False, **FLOAT)
    paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(L)}
    return load_transcoder_set(paths, "scan", **HOOKS, lazy_encoder=False, lazy_decoder=False, **FLOAT)


def compute(transcoder: torch.nn.Module, x: torch.Tensor) -> tuple:
    """The latents [B, L * Z] and the output [B, L, A] of x [B, L, A], as numpy's: circuit-tracer has layers first;
    [B, Z] and [B, A] of x [B, A] for one layer's transcoder."""
    if isinstance(transcoder, SingleLayerTranscoder):
        return transcoder.encode(x).detach().numpy(), transcoder(x).detach().numpy()
    layers = x.transpose(0, 1)
    latents = transcoder.encode(layers)
    if isinstance(transcoder, TranscoderSet):
        out = torch.stack([one(layers[index]) for index, one in enumerate(transcoder)])
    else:
        out = transcoder(layers)
    latents = latents.transpose(0, 1).reshape(len(x), -1)
    return latents.detach().numpy(), out.detach().transpose(0, 1).numpy()


def fill(module: torch.nn.Module) -> None:
    """Random parameters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=1 if "b_enc" in name else A**-0.5)


def keep(folder: Path, transcoder: TranscoderSet | CrossLayerTranscoder, kind: str) -> None:
    """Saves as circuit-tracer does, with the config that it reads, and keeps what it computes."""
    transcoder.to_safetensors(str(folder))
    config = {"model_name": "google/gemma-2-2b", "model_kind": kind, **HOOKS}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    x = torch.randn(BATCH, L, A)
    comparing.keep(folder, x.numpy(), *compute(load(folder), x))


def make_set(activation: Callable, skip: bool) -> TranscoderSet:
    """A set of random transcoders."""
    layers = {
        layer: SingleLayerTranscoder(A, Z, activation(), layer, skip_connection=skip, **FLOAT) for layer in range(L)
    }
    return TranscoderSet(layers, **HOOKS)


def main(folder: Path) -> None:
    """Reads ours, then saves all that is to be read."""
    torch.manual_seed(0)
    for place in sorted((folder / "ours").iterdir()):
        comparing.compare(place, READER, *compute(load(place), torch.from_numpy(comparing.inputs(place))))
    thresholds = lambda: JumpReLU(torch.rand(Z), 0.1)  # noqa: E731
    for name, activation, skip in (
        ("set-relu", lambda: torch.nn.functional.relu, False),
        ("set-jumprelu", thresholds, False),
        ("set-jumprelu-skip", thresholds, True),
    ):
        transcoders = make_set(activation, skip)
        for one in transcoders:
            for parameter in ("W_enc", "W_dec", "b_enc", "b_dec", *(["W_skip"] if skip else [])):
                torch.nn.init.normal_(getattr(one, parameter), std=0.4)
        keep(folder / "theirs" / name, transcoders, "transcoder_set")
    for name in ("relu", "jump_relu"):
        clt = CrossLayerTranscoder(L, Z, A, activation_function=name, lazy_decoder=False, **HOOKS, **FLOAT)
        fill(clt)
        if name == "jump_relu":
            clt.activation_function.threshold.data = torch.rand(L, 1, Z)
        keep(folder / "theirs" / f"clt-{name.replace('_', '')}", clt, "cross_layer_transcoder")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
