"""Functions of a model's sites: the record of one, the sites that match patterns, the sites of the residual stream."""

import difflib
import fnmatch
import math
import re
from collections.abc import Iterable

from sae.language_model import LanguageModel, SiteRecord

NEAR = 3  # the number of names that an error offers


def site_of(model: LanguageModel, name: str) -> SiteRecord:
    """Returns the record of a site.

    Raises:
        ValueError: for a name that is no site of the model; it offers the nearest.
    """
    sites = model.sites
    if name in sites:
        return sites[name]
    # Names that differ in numbers alone: the same kind in another layer.
    alike = [other for other in sites if _without_numbers(other) == _without_numbers(name)]
    near = difflib.get_close_matches(name, sites, n=NEAR, cutoff=0.4) or list(sites)[:NEAR]
    if alike:
        hint = f"it has {alike[0]}" + (f" to {alike[-1]}" if len(alike) > 1 else "")
    else:
        hint = f"did you mean {', '.join(near)}?"
    raise ValueError(f"no site {name!r} in {model.name}: {hint}")


def token_site(model: LanguageModel, name: str) -> SiteRecord:
    """Returns the record of a site that has a vector for each token, on which an autoencoder can be trained.

    Raises:
        ValueError: for a name that is no site of the model, and for a site of pairs of tokens.
    """
    site = site_of(model, name)
    if not site.per_token:
        raise ValueError(
            f"{name} has a value for every pair of tokens, and an autoencoder needs a vector for each token: name "
            "another site"
        )
    return site


def dim(site: SiteRecord) -> int:
    """Returns A, the length of the activation of one token, with its axes joined.

    Example:
        >>> dim(Site("layer_3/attn_z", (8, 256), 3, "attn_z", writes_to_residual=True))
        2048
    """
    return math.prod(site.shape)


def matching(model: LanguageModel, patterns: Iterable[str]) -> list[str]:
    """Returns the names of the sites with a vector for each token that match patterns.

    Args:
        model: the model.
        patterns: names, or patterns of `fnmatch` (`*` crosses `/`).

    Returns:
        Each name once, in the order of the patterns and, within one pattern, of the forward pass.

    Raises:
        ValueError: for a pattern that matches no site with a vector for each token.
    """
    names: dict[str, None] = {}
    for pattern in patterns:
        hits = [name for name in fnmatch.filter(model.sites, pattern) if model.sites[name].per_token]
        if not hits:
            # Raises the error of a missing site, or of a site of pairs of tokens.
            token_site(model, next(iter(fnmatch.filter(model.sites, pattern)), pattern))
        names.update(dict.fromkeys(hits))
    return list(names)


def is_residual(site: SiteRecord) -> bool:
    """Returns whether a site is the residual stream itself, in which attention sinks have their large norms."""
    return site.kind.startswith("resid")


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)
