"""`gemma.load`: from a name or a folder to a model that is ready to run.

A folder holds `config.json` (the fields of `gemma.Config`), `weights/` (orbax, see `kaggle.py`) and, optionally,
`tokenizer.model`; other files in it are ignored.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gemma import configs
from gemma.checkpoints import kaggle
from gemma.model import Model, param_shapes
from gemma.tokenizer import Tokenizer

_SHIPPED = {"gemma2-tiny": Path(__file__).parents[1] / "tiny"}


def load(source: str | Path, *, dtype: jnp.dtype | None = None, mesh: Mesh | None = None) -> Model:
    """Loads a model.

    Args:
      source: the name of a preset that this package ships (`gemma2-tiny`), or a folder as `save` writes it.
      dtype: of parameters and activations; float32 by default, whatever the checkpoint's is.
      mesh: where given, every one of its devices gets the parameters; by default the first device has them.

    Raises:
      ValueError: when there is nothing to load there, or the files do not make a model. Each wrong tensor is named.
    """
    folder = _SHIPPED.get(str(source), Path(source))
    if not folder.is_dir():
        raise ValueError(_nothing_there(str(source)))
    try:
        config = configs.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no config.json, so its model's shape is unknown") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not (folder / "weights").is_dir():
        raise ValueError(f"{folder} has no folder weights/")
    dtype = jnp.dtype(dtype or jnp.float32)
    sharding = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(jax.devices()[0])
    params = kaggle.read(folder / "weights", param_shapes(config, dtype), sharding)
    vocabulary = folder / "tokenizer.model"
    tokenizer = Tokenizer.from_file(vocabulary) if vocabulary.exists() else None
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(f"{vocabulary} has {len(tokenizer)} pieces, but the model only {config.vocab_size} embeddings")
    return Model(params, config, tokenizer, dtype)


def save(model: Model, folder: str | Path) -> None:
    """Writes `config.json` and `weights/` (in the parameters' dtype) as `load` reads them. The tokenizer is a file
    of its own, to be copied beside them.

    Raises:
      ValueError: if the folder holds weights already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kaggle.write(model.params, folder / "weights")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")


def _nothing_there(source: str) -> str:
    shipped = ", ".join(_SHIPPED)
    try:
        configs.config(source)
    except ValueError as error:
        return f"{source!r} is neither a folder nor a model that comes with this package ({shipped}); {error}"
    return f"the weights of {source} do not come with this package (only {shipped} do): give a checkpoint's folder"
