"""Explainers put a latent into a few words. One file adds one; see `sae.explainers.base.Explainer`."""

from sae.explainers.base import EXPLAINERS, Explainer, explainer_of, register

__all__ = ["EXPLAINERS", "Explainer", "explainer_of", "register"]
