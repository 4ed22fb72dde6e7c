"""The model's activations at some of its sites, computed only as deep as the deepest.

The layers are unrolled, and jit drops all that no captured site depends on.
"""

import functools
from collections.abc import Callable

import jax

import gemma
import mishax_lite
from gemma.compiling import jit_forward


def forward(model: gemma.Model) -> Callable[..., jax.Array]:
    """`model.apply` as harvesting and evaluation use it: fused attention is faster, and lacks only sites that belong to
    pairs of tokens."""
    return functools.partial(model.apply, attention="fused")


def captured_at(model: gemma.Model, tokens: jax.Array, sites: tuple[str, ...]) -> dict[str, jax.Array]:
    """{site: [B, T, A]} of tokens [B, T]; the axes of a token's activation (heads, say) are joined to A."""
    _, captured = mishax_lite.capture(forward(model), list(sites))(tokens)
    return {site: captured[site].reshape(*tokens.shape, -1) for site in sites}


activations_at = jit_forward(captured_at, static_argnames="sites")  # the same, compiled
