"""Where the hooks go: the sites of a model, and patches that put a tap at each by rewriting the model's source.

A site is a name and one exact point. `layer_{i}/` stands before the names of sites in layers. What is known about each
stands in `gemma/site_kinds.py`; the table here is made from it.

"""

import difflib
import functools
import itertools
import re
import types
from collections.abc import Iterable, Mapping, Sequence

from flax import linen as nn

from gemma.configs import Config
from gemma.site_kinds import KINDS
from gemma.site_records import Kind, Site, Way
from mishax_lite import Patch, absent

_kinds: list[Kind] = list(KINDS)  # with those added


def table() -> str:
    """Returns the table of all kinds of sites in Markdown."""
    lines = [
        f"| `{kind.name}` | {kind.description}{' (float32 in every model)' if kind.float32 else ''} | {kind.axes} |"
        for kind in _kinds
    ]
    return "\n".join(["| site | the value | shape |", "| --- | --- | --- |", *lines])


__doc__ += table()


@functools.lru_cache(64)
def of(config: Config, *, fused: bool = False) -> Mapping[str, Site]:
    """Returns the record of every site of a model by name, in the order of the forward pass.

    Args:
        config: the model's shape.
        fused: whether attention is fused, which has no sites of pairs of tokens.

    Example:
        >>> of(gemma.config("gemma2-2b"))["layer_12/attn_z"].shape
        (8, 256)
    """
    first = next(index for index, kind in enumerate(_kinds) if kind.in_layers)
    before = [kind.site(config, None) for kind in _kinds[:first]]
    blocks = [kind.site(config, i) for i in range(config.num_layers) for kind in _kinds if kind.in_layers]
    after = [kind.site(config, None) for kind in _kinds[first:] if not kind.in_layers]
    every = [*before, *blocks, *after]
    return types.MappingProxyType({site.name: site for site in every if site.per_token or not fused})


def names(config: Config) -> list[str]:
    """Returns the name of every site of a model, in the order of the forward pass."""
    return list(of(config))


def frozen(config: Config, *, fused: bool = False) -> tuple[str, ...]:
    """Returns the names of the sites that a linear circuit holds still, in the order of the forward pass."""
    kinds = {kind.name for kind in _kinds if kind.frozen}
    return tuple(name for name, site in of(config, fused=fused).items() if site.kind in kinds)


def check(config: Config, site: str) -> None:
    """Raises ValueError, with the nearest names, unless `site` is a site of the model."""
    if site in of(config):
        return
    layer = re.fullmatch(r"layer_(\d+)/(.+)", site)
    if layer and any(kind.name == layer[2] for kind in _kinds if kind.in_layers):
        raise ValueError(
            f"no site {site!r}: {config.name} has {config.num_layers} layers, 0 to {config.num_layers - 1}"
        )
    near = difflib.get_close_matches(site, names(config), n=3, cutoff=0.4)
    others = ", ".join(kind.name for kind in _kinds if not kind.in_layers)
    hint = f"did you mean {', '.join(near)}?" if near else f"sites are layer_0/resid_post, {others}, …"
    raise ValueError(f"no site {site!r} in {config.name}: {hint}")


def way(site: Site) -> Way:
    """Returns how a vector at a site reaches the residual stream.

    Raises:
        ValueError: for a site that does not write to the residual stream.
    """
    ways = {kind.name: kind.way for kind in _kinds if kind.way is not None}
    if site.kind not in ways:
        raise ValueError(
            f"{site.name} does not write to the residual stream, so a vector there has no direct effect on logits: "
            f"sites that do are {', '.join(ways)}"
        )
    return ways[site.kind]


def divisions(site: Site | None) -> tuple[str, ...]:
    """Returns the sites with what norms multiply by on the way of a vector at a site to the logits, in that order.

    Args:
        site: None for a vector in the residual stream.

    Example:
        >>> divisions(of(gemma.config("gemma2-2b"))["layer_12/attn_z"])
        ('layer_12/post_attn_scale', 'final_scale')
    """
    first = None if site is None else next(kind.division for kind in _kinds if kind.name == site.kind)
    return ("final_scale",) if site is None or first is None else (f"layer_{site.layer}/{first}", "final_scale")


def resumption(sites: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the sites whose values, put back beside others at `sites`, let a forward pass begin at the first layer
    of these.

    With the residual stream that enters the layer replaced as a whole, jit drops the layers below. There are none where
    one of `sites` is that stream itself, or `embed`, or where no layer has one.

    Args:
        sites: one, or several, in any order.

    Example:
        >>> resumption(["layer_12/mlp_out", "layer_9/attn_z", "final_norm"])
        ('layer_9/resid_pre',)
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    numbers = [int(site.partition("/")[0].removeprefix("layer_")) for site in sites if "/" in site]
    if not numbers or "embed" in sites:
        return ()
    start = f"layer_{min(numbers)}/resid_pre"
    return () if start in sites else (start,)


def _in_block(module: nn.Module, kind: str) -> str:
    """The name of a site in a block, for a module of that block: `layer_3/q`; `q` for a module that stands alone.

    Not by `mishax_lite.scope`: that would make JAX trace anew, in every layer, each function that it has jitted itself.
    """
    layers_above = [name for name in module.path if name.startswith("layer_")]
    return f"{layers_above[-1]}/{kind}" if layers_above else kind


def _fused_lacks(kind: str) -> str:
    return f"fused attention never holds {kind}; it exists with attention='plain'"


_LOSSES_LACK_LOGITS = (
    "model.losses computes logits in blocks of the vocabulary and never holds them all; model.apply has them"
)
_NAMES = {"at": _in_block, "absent": absent, "fused_lacks": _fused_lacks, "losses_lack_logits": _LOSSES_LACK_LOGITS}


def _patches_of(kinds: Iterable[Kind]) -> list[Patch]:
    """The rewrites of some kinds, a patch for each module."""
    members: dict[types.ModuleType, dict[str, list]] = {}
    for edit in (edit for kind in kinds for edit in kind.edits):
        members.setdefault(edit.module, {}).setdefault(edit.member, []).append(edit.rewrite)
    return [Patch(module, edits, names=_NAMES) for module, edits in members.items()]


_patches = {"": _patches_of(KINDS)}  # by the name of the kind added


def install() -> None:
    """Puts the taps into the model's functions. Importing `gemma` does it: a tap that nobody asks for costs nothing."""
    for patch in itertools.chain.from_iterable(_patches.values()):
        patch.install()


def uninstall() -> None:
    """Gives back the bare model."""
    for patch in reversed(list(itertools.chain.from_iterable(_patches.values()))):
        patch.uninstall()


def add(kind: Kind, *, before: str) -> None:
    """Adds a kind of site to all models, and puts its taps in: `model.sites` has it from then on.

    Args:
        kind: the record. Its rewrites are of the source as it is with all taps in.
        before: the kind of the site that the forward pass reaches next.

    Raises:
        ValueError: for a name that exists, an unknown `before`, and rewrites that do not fit the source.
    """
    kinds = [other.name for other in _kinds]
    if kind.name in kinds:
        raise ValueError(f"there is a kind of site {kind.name} already")
    if before not in kinds:
        raise ValueError(f"before is the kind of a site, such as mlp_hidden; got {before!r}")
    patches = _patches_of([kind])
    for patch in patches:
        patch.install()
    _patches[kind.name] = patches
    _kinds.insert(kinds.index(before), kind)
    of.cache_clear()


def remove(name: str) -> None:
    """Takes away a kind of site that `add` added.

    Raises:
        ValueError: for another name.
    """
    if name not in _patches or not name:
        raise ValueError(f"no kind of site {name} was added")
    for patch in reversed(_patches.pop(name)):
        patch.uninstall()
    _kinds[:] = [kind for kind in _kinds if kind.name != name]
    of.cache_clear()
