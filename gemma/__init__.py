"""Gemma 2 in Flax. Importing this package puts the hooks of `gemma.sites` into the model's functions."""

from gemma import sites
from gemma.checkpoints.loading import load, save
from gemma.configs import Config, config
from gemma.model import Model
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer

__all__ = ["Config", "Model", "Tokenizer", "Transformer", "config", "load", "save", "sites"]

sites.install()
