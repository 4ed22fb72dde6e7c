"""Sparse autoencoders for Gemma: harvesting activations, training on them, measuring and looking at what comes out."""

from sae.autoencoder import Info, JumpReLU
from sae.evaluation.fidelity import Metrics, evaluate
from sae.formats.files import load, save
from sae.harvesting import harvest
from sae.recipes import TrainConfig, gemma_scope, short_run
from sae.store.reading import ActivationStore
from sae.store.sharing import share
from sae.streaming import stream
from sae.training import train

__all__ = [
    "ActivationStore",
    "Info",
    "JumpReLU",
    "Metrics",
    "TrainConfig",
    "evaluate",
    "gemma_scope",
    "harvest",
    "load",
    "save",
    "share",
    "short_run",
    "stream",
    "train",
]
