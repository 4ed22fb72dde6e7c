"""Applies the arguments `edits` and `capture` of a model: one place for the forward passes, losses and runs of all."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mishax_lite import Edits, edit
from mishax_lite import capture as capture_at
from mishax_lite.casting import narrowed


def hooked(
    function: Callable[[jax.Array], Any],
    tokens: jax.Array,
    positions: Callable[[], jax.Array],
    capture: str | Sequence[str] = (),
    edits: Any = None,
) -> Any:
    """Returns `function(tokens)` under edits; with `capture`, the pair of that and the captured values by site.

    Args:
        function: a function of the tokens [B, T] that has the sites.
        tokens: integers [B, T].
        positions: a function that returns the positions of the tokens, integers [B, T]; it is called only if an edit
            needs the text.
        capture: names or patterns of sites; none of them by default.
        edits: edits, as `Edits.of` takes them. A result in a wider float than the site's is rounded to the site's.

    Example:
        >>> f = lambda tokens: mishax_lite.tap("doubled", 2.0 * tokens).sum()
        >>> halve = {"doubled": lambda value, site: value / 2}
        >>> out, values = mishax_lite.applying.hooked(f, jnp.ones((1, 3)), lambda: None, "doubled", halve)
        >>> float(out), values["doubled"].shape
        (3.0, (1, 3))
    """
    edits = Edits.of(edits)
    if edits.entries:
        bound = edits.bind(tokens, positions()) if edits.needs_text else edits
        function = edit(function, narrowed(bound))
    if isinstance(capture, str) or len(capture):
        function = capture_at(function, capture)
    return function(tokens)
