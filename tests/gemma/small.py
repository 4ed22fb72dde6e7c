"""Random models that are small enough to write to files and run in every test, and what their tests share."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gemma

SIZES = {
    "vocab_size": 96,
    "num_layers": 3,
    "d_model": 32,
    "d_ff": 48,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "query_scale": 0.25,
    "window": 5,
}
GEMMA_3 = {
    "layer_pattern": ("local",) * 2 + ("global",),
    "attn_softcap": None,
    "final_softcap": None,
    "rope_base": 1e6,
    "qk_norm": True,
}


def model(seed: int = 0, **changes) -> gemma.Model:
    """A Gemma 2; a Gemma 3 with `**GEMMA_3`."""
    config = gemma.Config(**{"name": "mine", **SIZES, **changes})
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32))  # noqa: E731
    return gemma.Model(jax.tree.map(draw, gemma.model.param_shapes(config)), config)


def tokens(count: int = 12, seed: int = 1) -> np.ndarray:
    """[1, count]."""
    return np.random.default_rng(seed).integers(4, 96, (1, count)).astype(np.int32)


def final(source) -> float:
    """The first number of the final norm's scale, by which a test tells two sets of weights apart."""
    return float(gemma.load(source).params["final_norm"]["scale"][0])


def edit(folder: Path, name: str = "config.json", *, without=(), **changes) -> Path:
    """Changes words of a JSON file."""
    file = folder / name
    values = {word: value for word, value in json.loads(file.read_text()).items() if word not in without}
    file.write_text(json.dumps(values | changes))
    return folder
