"""`modules`: names from module paths for Flax linen, nnx and Equinox models, without a tap in anybody's code.

This file knows no framework. What each needs is in `_linen.py` and `_views.py`, which get the framework from
`sys.modules`: whoever has a model of it has imported it.
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
    names in the variables: `layers_0/mlp/Dense_0`. The model itself is named by its class: `Transformer`. What is
    tapped is the output of `__call__`: the JAX arrays in it, of any pytree. An output without arrays is no site.

    - **Flax linen**: has the same variables; `init`, `apply` with any method, `bind` and lifted transformations work
      as before. Calls of a submodule that is taken out of a bound model are not tapped.
    - **Flax nnx**: a view, as of `nnx.view`. Its Variables are those of `model`, so each sees the other's updates;
      modules and their other attributes are copies. A module at several paths has the first.
    - **Equinox**: a pytree with the same leaves, in the same order. A module at several paths has all of them.

    The modules' classes are subclasses of those in `model`, so `isinstance` holds. `model` itself does not change.

    Args:
        model: a Flax linen, nnx or Equinox module.
        pattern: which paths are tapped, as of `fnmatch.fnmatchcase` (`*` crosses `/`). Calling `modules` on the result
            with another pattern taps those too.

    Raises:
        ValueError: for a model of another kind; for a pattern that matches no path. In linen, paths exist only while
            the model runs, so `init` or `apply` raises the latter.

    Example:
        >>> model = mishax_lite.modules(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), "layers_*")
        >>> out, values = jax.jit(mishax_lite.capture(model.apply, "layers_0"))(params, x)
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
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def no_match(pattern: str, names: Iterable[str]) -> ValueError:
    """The error for a pattern that matches none of these names."""
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
    return ValueError(
        f"modules: no module's path matches {pattern!r}; "
        + (f"near paths: {', '.join(near)}; " if near else "")
        + f"the model has {len(names)} modules that can be called"
        + (f", the first are: {', '.join(names[:8])}" if names and not near else "")
    )


def tap_output(name: str, out: Any) -> Any:
    """Taps the JAX arrays in a module's output; all else in it stays the object that it is."""
    nnx = sys.modules.get("flax.nnx")
    kept = (nnx.Pytree, nnx.Variable) if nnx is not None else ()  # pytrees whose identity matters
    leaves, tree = jax.tree.flatten(out, is_leaf=lambda leaf: isinstance(leaf, kept))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    if not places:
        return out
    # Python scalars are no part of the tap: a trace would make arrays of them.
    arrays = jax.tree.unflatten(tree, [leaf if k in places else None for k, leaf in enumerate(leaves)])
    tapped = iter(jax.tree.leaves(tap(name, arrays)))
    return jax.tree.unflatten(tree, [next(tapped) if k in places else leaf for k, leaf in enumerate(leaves)])
