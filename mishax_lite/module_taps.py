"""`modules`: names from module paths for Flax linen, nnx and Equinox models, without a tap in anybody's code.

This file knows no framework. `_linen.py` and `_views.py` do; they get the framework from `sys.modules`, since whoever
has a model of a framework has imported it.
"""

from __future__ import annotations

import difflib
import fnmatch
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

from mishax_lite.primitive import tap

T = TypeVar("T")


def modules(model: T, pattern: str = "*") -> T:
    """Returns a model like `model` that taps the output of each of its modules under the module's path.

    A path joins the names of attributes, with indices and keys of containers: `layers/0/mlp`; in linen it joins the
    names in the variables: `layers_0/mlp/Dense_0`. The model itself is named by its class: `Transformer`. The site is
    the output of `__call__`: its JAX arrays, in any pytree. An output without arrays is no site.

    - **Flax linen**: the result has the same variables; `init`, `apply` with any method, `bind` and lifted
      transformations work as before. Calls of a submodule that is taken out of a bound model are not tapped.
    - **Flax nnx**: the result is a view, as of `nnx.view`. Its Variables are those of `model`, so each sees the other's
      updates; modules and their other attributes are copies. A module at several paths has the first path.
    - **Equinox**: the result is a pytree with the same leaves, in the same order. A module at several paths has all of
      them.

    The modules' classes are subclasses of those in `model`, so `isinstance` holds. `model` itself does not change.

    Args:
        model: a Flax linen, nnx or Equinox module.
        pattern: the paths to tap, a pattern for `fnmatch.fnmatchcase` (`*` crosses `/`). Calling `modules` on the
            result with another pattern taps the paths that match it too.

    Returns:
        The model that taps.

    Raises:
        ValueError: for a model of another kind, and for a pattern that matches no path. In linen, paths exist only
            while the model runs, so `init` or `apply` raises the latter.

    Example:
        >>> import flax.linen as nn
        >>> layers = mishax_lite.modules(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), "layers_*")
        >>> params = layers.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> out, values = jax.jit(mishax_lite.capture(layers.apply, "*"))(params, jnp.ones((1, 4)))
        >>> {name: value.shape for name, value in values.items()}
        {'layers_0': (1, 8), 'layers_2': (1, 2)}
    """
    from mishax_lite import _linen, _views  # they import this file

    if not isinstance(pattern, str):
        raise ValueError(f"modules: the pattern must be a string; got {type(pattern).__name__}: {pattern!r:.80}")
    for framework, kind in (("flax.linen", _linen.tapped), ("flax.nnx", _views.nnx), ("equinox", _views.equinox)):
        library = sys.modules.get(framework)
        if library is not None and isinstance(model, library.Module):
            return kind(library, model, pattern)
    raise ValueError(
        f"modules: expected a module of Flax linen, Flax nnx or Equinox; got {type(model).__name__}. "
        "For other code use `tap`, or `Patch` to put taps into it"
    )


def matches(name: str, pattern: str) -> bool:
    """Returns whether a pattern matches a module's path."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def no_match(pattern: str, names: Iterable[str]) -> ValueError:
    """Returns the error for a pattern that matches none of these names."""
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
    return ValueError(
        f"modules: no module's path matches {pattern!r}; "
        + (f"near paths: {', '.join(near)}; " if near else "")
        + (f"the model has {len(names)} modules" if len(names) != 1 else "the model has 1 module")
        + " that can be called"
        + (f", the first are: {', '.join(names[:8])}" if names and not near else "")
    )


def tap_output(name: str, out: Any) -> Any:
    """Taps the JAX arrays in a module's output; everything else in it stays the same object."""
    nnx = sys.modules.get("flax.nnx")
    kept = (nnx.Pytree, nnx.Variable) if nnx is not None else ()  # pytrees whose identity matters
    leaves, tree = jax.tree.flatten(out, is_leaf=lambda leaf: isinstance(leaf, kept))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    if not places:
        return out
    # Python scalars are not tapped: a trace would make arrays of them.
    arrays = jax.tree.unflatten(tree, [leaf if k in places else None for k, leaf in enumerate(leaves)])
    tapped = iter(jax.tree.leaves(tap(name, arrays)))
    return jax.tree.unflatten(tree, [next(tapped) if k in places else leaf for k, leaf in enumerate(leaves)])
