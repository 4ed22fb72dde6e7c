"""What a model makes of `edits` and `capture`: one place, for the forward passes, losses and runs of all models."""

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
    """Returns `function(tokens)` under edits; with `capture`, the pair of that and the values captured, by site.

    Args:
        function: of the tokens [B, T], whose sites are meant.
        tokens: [B, T], what the edits act on.
        positions: gives [B, T], the positions of the tokens; not called where no edit acts.
        capture: names or patterns of sites; none of them by default.
        edits: what `Edits.of` takes. A result in a wider float than the site's is rounded to it.
    """
    edits = Edits.of(edits)
    if edits.entries:
        bound = edits.bind(tokens, positions()) if edits.needs_text else edits
        function = edit(function, narrowed(bound))
    if isinstance(capture, str) or len(capture):
        function = capture_at(function, capture)
    return function(tokens)
