"""The sites of a model, and the patches that put a tap at each by rewriting the model's source.

A site is a name and one exact point. `layer_{i}/` stands before the names of sites in layers. `gemma/site_kinds.py` has
the facts about each; the table here is made from it.

Example:
    >>> gemma.sites.names(model.config)[:3]
    ['embed', 'layer_0/resid_pre', 'layer_0/pre_attn_scale']

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

_kinds: list[Kind] = list(KINDS)  # and those that `add` added


def table() -> str:
    """Returns the table of all kinds of sites in Markdown.

    Example:
        >>> print(gemma.sites.table())
        | site | the value | shape |
        | --- | --- | --- |
        | `embed` | embeddings after the sqrt(D) scaling, the input of block 0 | B T D |
        ...
    """
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
        >>> gemma.sites.of(gemma.config("gemma2-2b"))["layer_12/attn_z"].shape
        (8, 256)
    """
    first = next(index for index, kind in enumerate(_kinds) if kind.in_layers)
    before = [kind.site(config, None) for kind in _kinds[:first]]
    blocks = [kind.site(config, i) for i in range(config.num_layers) for kind in _kinds if kind.in_layers]
    after = [kind.site(config, None) for kind in _kinds[first:] if not kind.in_layers]
    every = [*before, *blocks, *after]
    return types.MappingProxyType({site.name: site for site in every if site.per_token or not fused})


def names(config: Config) -> list[str]:
    """Returns the name of every site of a model, in the order of the forward pass.

    Args:
        config: the model's shape.

    Example:
        >>> gemma.sites.names(gemma.config("gemma2-2b"))[:2]
        ['embed', 'layer_0/resid_pre']
    """
    return list(of(config))


def frozen(config: Config, *, fused: bool = False) -> tuple[str, ...]:
    """Returns the names of the sites that a linear circuit holds still, in the order of the forward pass.

    They are the attention patterns and the scales of the norms.

    Args:
        config: the model's shape.
        fused: as for `of`.

    Example:
        >>> gemma.sites.frozen(gemma.config("gemma2-2b"))[:3]
        ('layer_0/pre_attn_scale', 'layer_0/attn_pattern', 'layer_0/post_attn_scale')
    """
    kinds = {kind.name for kind in _kinds if kind.frozen}
    return tuple(name for name, site in of(config, fused=fused).items() if site.kind in kinds)


def check(config: Config, site: str) -> None:
    """Raises ValueError, with the nearest names, unless `site` is a site of the model.

    Args:
        config: the model's shape.
        site: the name to check.

    Raises:
        ValueError: for another name.

    Example:
        >>> gemma.sites.check(gemma.config("gemma2-2b"), "layer_12/mlp_out")
        >>> gemma.sites.check(gemma.config("gemma2-2b"), "layer_26/mlp_out")
        Traceback (most recent call last):
        ValueError: no site 'layer_26/mlp_out': gemma2-2b has 26 layers, 0 to 25
    """
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
    """Returns the function that maps a vector at a site to the residual stream.

    Args:
        site: the site's record.

    Returns:
        A function of the model's parameters, the layer (or None) and vectors [..., A] that returns [..., D].

    Raises:
        ValueError: for a site that does not write to the residual stream.

    Example:
        >>> site = model.sites["layer_3/attn_z"]
        >>> gemma.sites.way(site)(model.params, site.layer, jnp.ones((5, 192))).shape
        (5, 192)
    """
    ways = {kind.name: kind.way for kind in _kinds if kind.way is not None}
    if site.kind not in ways:
        raise ValueError(
            f"{site.name} does not write to the residual stream, so a vector there has no direct effect on logits: "
            f"the sites that do are {', '.join(ways)}"
        )
    return ways[site.kind]


def divisions(site: Site | None) -> tuple[str, ...]:
    """Returns the sites of the scales of the norms that a vector passes on its way to the logits, in that order.

    Args:
        site: the record of the vector's site; None for a vector in the residual stream.

    Example:
        >>> gemma.sites.divisions(gemma.sites.of(gemma.config("gemma2-2b"))["layer_12/attn_z"])
        ('layer_12/post_attn_scale', 'final_scale')
    """
    first = None if site is None else next(kind.division for kind in _kinds if kind.name == site.kind)
    return ("final_scale",) if site is None or first is None else (f"layer_{site.layer}/{first}", "final_scale")


def resumption(sites: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the sites whose recorded values let a forward pass with given values at `sites` begin at a layer.

    It is the first layer of `sites`: if an edit replaces the residual stream that enters it, jit drops the layers
    below. The result is empty if `sites` has that stream itself, or `embed`, or no site in a layer.

    Args:
        sites: the name of one site, or of several in any order.

    Example:
        >>> gemma.sites.resumption(["layer_12/mlp_out", "layer_9/attn_z", "final_norm"])
        ('layer_9/resid_pre',)
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    numbers = [int(site.partition("/")[0].removeprefix("layer_")) for site in sites if "/" in site]
    if not numbers or "embed" in sites:
        return ()
    start = f"layer_{min(numbers)}/resid_pre"
    return () if start in sites else (start,)


def _in_block(module: nn.Module, kind: str) -> str:
    """Returns the name of a site in a block, for a module of that block: `layer_3/q`; `q` for a module that is alone.

    It does not use `mishax_lite.scope`: JAX would trace its own jitted functions anew in every layer.
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
    """Returns the rewrites of some kinds, as a patch for each module."""
    members: dict[types.ModuleType, dict[str, list]] = {}
    for edit in (edit for kind in kinds for edit in kind.edits):
        members.setdefault(edit.module, {}).setdefault(edit.member, []).append(edit.rewrite)
    return [Patch(module, edits, names=_NAMES) for module, edits in members.items()]


_patches = {"": _patches_of(KINDS)}  # by the name of the added kind


def install() -> None:
    """Puts the taps into the model's functions; importing `gemma` does it, since an idle tap costs nothing.

    Example:
        >>> gemma.sites.install()
        >>> len(mishax_lite.sites(model.apply, [[2, 392]])) == len(model.sites)
        True
    """
    for patch in itertools.chain.from_iterable(_patches.values()):
        patch.install()


def uninstall() -> None:
    """Takes the taps out of the model's functions, which leaves the bare model.

    Example:
        >>> gemma.sites.uninstall()
        >>> mishax_lite.sites(model.apply, [[2, 392]])
        {}
        >>> gemma.sites.install()
    """
    for patch in reversed(list(itertools.chain.from_iterable(_patches.values()))):
        patch.uninstall()


def add(kind: Kind, *, before: str) -> None:
    """Adds a kind of site to all models, and puts its taps in: `model.sites` has it from then on.

    Args:
        kind: the record. Its rewrites must fit the source with all present taps.
        before: the kind of the site that the forward pass reaches next.

    Raises:
        ValueError: for a name that exists, an unknown `before`, and rewrites that do not fit the source.

    Example:
        >>> from gemma.site_records import Edit, Kind
        >>> gelu = "nn.gelu(gate, approximate=True)"
        >>> rewrite = mishax_lite.Rewrite(f"{gelu} * up", f"tap(at(self, 'mlp_act'), {gelu}) * up")
        >>> edit = Edit(gemma.layers, "FeedForward.__call__", rewrite)
        >>> gemma.sites.add(Kind("mlp_act", "B T F", "the gate after its nonlinearity", (edit,)), before="mlp_hidden")
        >>> model.sites["layer_1/mlp_act"].shape
        (512,)
        >>> gemma.sites.remove("mlp_act")
    """
    kinds = [other.name for other in _kinds]
    if kind.name in kinds:
        raise ValueError(f"the kind of site {kind.name} exists already")
    if before not in kinds:
        raise ValueError(f"before is the kind of a site, such as mlp_hidden; got {before!r}")
    patches = _patches_of([kind])
    for patch in patches:
        patch.install()
    _patches[kind.name] = patches
    _kinds.insert(kinds.index(before), kind)
    of.cache_clear()


def remove(name: str) -> None:
    """Removes a kind of site that `add` added, with its taps.

    Args:
        name: the name of the kind.

    Raises:
        ValueError: for another name.

    Example:
        >>> gemma.sites.remove("mlp_out")
        Traceback (most recent call last):
        ValueError: no kind of site mlp_out was added: only kinds that gemma.sites.add added can be removed
    """
    if name not in _patches or not name:
        raise ValueError(f"no kind of site {name} was added: only kinds that gemma.sites.add added can be removed")
    for patch in reversed(_patches.pop(name)):
        patch.uninstall()
    _kinds[:] = [kind for kind in _kinds if kind.name != name]
    of.cache_clear()
