"""The dtype of a model's parameters."""

import jax

from sae.language_model import LanguageModel


def parameters_dtype(model: LanguageModel) -> str:
    """Returns the dtype of the parameters, on which their hash depends; all of them, in order, where they differ."""
    return ", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model.params)}))
