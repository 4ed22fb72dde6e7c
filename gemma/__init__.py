"""Gemma 2 and 3 in Flax. Importing this package puts the hooks of `gemma.sites` into the model's functions."""

from gemma import sites
from gemma.cache import Cache
from gemma.cache import empty as empty_cache
from gemma.checkpoints.loading import load, save
from gemma.configs import Config, config
from gemma.model import Model
from gemma.running import Forward
from gemma.sampling import Generation, generate
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer

__all__ = [
    "Cache",
    "Config",
    "Forward",
    "Generation",
    "Model",
    "Tokenizer",
    "Transformer",
    "config",
    "empty_cache",
    "generate",
    "load",
    "save",
    "sites",
]

sites.install()
