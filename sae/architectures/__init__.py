"""Architectures: how latents are computed in training, and which autoencoder is released. One file adds one; see
`sae.architectures.base.Architecture`."""

from sae.architectures.base import ARCHITECTURES, Architecture, Encoded, register
from sae.architectures.batchtopk import BatchTopK
from sae.architectures.gated import Gated
from sae.architectures.jumprelu import JumpReLU
from sae.architectures.relu import ReLU
from sae.architectures.topk import TopK

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BatchTopK",
    "Encoded",
    "Gated",
    "JumpReLU",
    "ReLU",
    "TopK",
    "register",
]
