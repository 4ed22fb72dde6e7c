"""Sparsity terms: what a run adds to the error of the reconstruction, each a part with code and state of its own. One
file adds one; see `sae.sparsity.base.SparsityTerm`."""

from sae.sparsity.base import TERMS, Now, SparsityTerm, register
from sae.sparsity.frequency import Frequency
from sae.sparsity.l1 import L1, ControlledL1
from sae.sparsity.linear import Controlled, Linear
from sae.sparsity.quadratic import Quadratic
from sae.sparsity.revival import Revival
from sae.sparsity.tanh import ControlledTanh, Tanh

__all__ = [
    "L1",
    "TERMS",
    "Controlled",
    "ControlledL1",
    "ControlledTanh",
    "Frequency",
    "Linear",
    "Now",
    "Quadratic",
    "Revival",
    "SparsityTerm",
    "Tanh",
    "register",
]
