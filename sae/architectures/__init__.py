"""Architectures: how latents are computed and kept in training, and what is released. One file adds one; see
`sae.architectures.base.Architecture`."""

from sae.architectures.base import ARCHITECTURES, Architecture, Encoded, register
from sae.architectures.jumprelu import JumpReLU

__all__ = ["ARCHITECTURES", "Architecture", "Encoded", "JumpReLU", "register"]
