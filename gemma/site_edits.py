"""Makes the rewrites that put the taps of `gemma/site_kinds.py` into the model's source, one function for each place.

The rewrites may use `tap(name, value)`, `at(module, kind)` (the name of a site in the block of a module) and the other
names that `gemma/sites.py` gives them.
"""

from gemma import layers
from gemma import transformer as transformers
from gemma.site_records import Edit, Kind
from mishax_lite import Rewrite


def attention(before: str, after: str) -> Edit:
    """Returns a rewrite of the attention of a block."""
    return Edit(layers, "Attention.__call__", Rewrite(before, after))


def feed_forward(before: str, after: str) -> Edit:
    """Returns a rewrite of the feed-forward layer of a block."""
    return Edit(layers, "FeedForward.__call__", Rewrite(before, after))


def block(before: str, after: str) -> Edit:
    """Returns a rewrite of a block."""
    return Edit(transformers, "Block.__call__", Rewrite(before, after))


def transformer(before: str, after: str) -> Edit:
    """Returns a rewrite of the whole forward pass."""
    return Edit(transformers, "Transformer.__call__", Rewrite(before, after))


def absent_if_fused(kind: str) -> Edit:
    """Returns a rewrite that says why fused attention lacks a kind of site."""
    return attention(
        "z = fused(q, k, v, allowed, c.attn_softcap)",
        f"absent(at(self, {kind!r}), fused_lacks({kind!r}))\nz = fused(q, k, v, allowed, c.attn_softcap)",
    )


def norm(name: str, tap: str, variable: str, line: str) -> Edit:
    """Returns a rewrite that taps a variable of the norms of one name.

    Args:
        name: the name of the norms in the model; those of queries and keys have other names.
        tap: source for the name of the site.
        variable: the variable to tap.
        line: the line of source that the tap comes before.
    """
    rewrite = Rewrite(line, f"if self.name == {name!r}:\n    {variable} = tap({tap}, {variable})\n{line}")
    return Edit(layers, "RMSNorm.__call__", rewrite)


def scale(kind: str, name: str, *, in_layers: bool = True) -> Kind:
    """Returns the kind of site of a norm's scale, the factor that it multiplies by before its gain.

    Args:
        kind: the name of the kind.
        name: the name of the norm in the model.
        in_layers: whether each layer has the norm.
    """
    tap = f"at(self, {kind!r})" if in_layers else repr(kind)
    words = name.removesuffix("_norm").replace("ffw", "feed_forward").replace("_", "-")
    return Kind(
        kind,
        "B T 1",
        f"1/rms, the factor of the {words} norm",
        (norm(name, tap, "inverse", "normed = x32 * inverse"),),
        in_layers=in_layers,
        frozen=True,
        float32=True,
    )
