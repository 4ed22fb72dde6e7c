"""The model's activations at some of its sites. jit drops all that no captured site depends on, so the model is
computed only up to the deepest site."""

from collections.abc import Callable

import jax

from mishax_lite.compiling import jit_forward
from sae.language_model import LanguageModel, lean


def captured_at(model: LanguageModel, tokens: jax.Array, sites: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns {site: [B, T, A]} for tokens [B, T]; the axes of a token's activation (heads, say) are joined to A."""
    _, captured = lean(model).apply(tokens, capture=sites)
    return {site: captured[site].reshape(*tokens.shape, -1) for site in sites}


activations_at: Callable[..., dict[str, jax.Array]] = jit_forward(
    captured_at, static_argnames="sites"
)  # the same, compiled
