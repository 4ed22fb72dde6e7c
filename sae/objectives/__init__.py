"""Objectives: of which reconstructions the error is minimised. One file adds one; see
`sae.objectives.base.Objective`."""

from sae.objectives.base import OBJECTIVES, Objective, register
from sae.objectives.matryoshka import Matryoshka
from sae.objectives.reconstruction import Reconstruction

__all__ = ["OBJECTIVES", "Matryoshka", "Objective", "Reconstruction", "register"]
