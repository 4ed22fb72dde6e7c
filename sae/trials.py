"""Other usages of an autoencoder than the one that its file claims: neighbouring sites, a transposed skip, a scale of
the inputs that was not folded in.

Axis letters: N tokens, A dim of the activation, L sites.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from sae.evaluation.counting import Sites, as_tuple
from sae.language_model import LanguageModel
from sae.released import Released
from sae.sites import dim
from sae.usage import Captured, Fit, Usage, can_transpose

ENOUGH = 0.1  # FVU at which nothing else is tried
_FAR = 1.5  # an L0 is far from the file's where it is more than this many times it, or less than one over this
_BETTER = 0.8  # another usage is the right one where its score is at most this part of the best one's
NOTHING = 0.9  # FVU from which on an autoencoder says nothing about its site
_ROUNDS = 3  # mistakes that users make together
_FEW = 512  # tokens for a first look at many scales
_SCALES = tuple(2.0**power for power in range(-12, 13))
_REFINED = 8  # steps of a search between two scales
_AS_GOOD = 1.25  # the scale of a convention wins where its FVU is at most this many times the best scale's
SAME_SCALE = 1.5  # scales nearer to 1 than this factor are no mistake of conventions, but shrinkage


def neighbours(model: LanguageModel, sites: Sites | None, A: int) -> list[Sites]:
    """Returns the sites that an autoencoder's sites may stand for: of every kind, in the same layer and the two beside.

    Args:
        model: the model.
        sites: the autoencoder's site or sites, which the model may lack; None: every site is possible.
        A: the dim of the sites.

    Returns:
        Sites of the same kind first, then the others in the order of the forward pass. The sites themselves are among
        them where the model has them.
    """
    layered = [at for at, site in enumerate(model.sites.values()) if site.layer is not None]
    layers = 1 + max((site.layer for site in model.sites.values() if site.layer is not None), default=-1)

    def depth(at: int, layer: int | None) -> int:
        return layer if layer is not None else -1 if layered and at < layered[0] else layers

    every = {
        name: (site.kind, depth(at, site.layer))
        for at, (name, site) in enumerate(model.sites.items())
        if site.per_token
    }
    usable = {
        place: name
        for name, place in every.items()
        if dim(model.sites[name]) == A and model.sites[name].kind != "logits" and name not in model.frozen
    }
    places = [every.get(site) or _guessed(site) for site in sites] if sites else [None]
    if None in places:
        return [(name,) for name in usable.values()] if len(places) == 1 else []
    order = {name: at for at, name in enumerate(model.sites)}
    groups: list[list[Sites]] = []
    for kind in (None, *dict.fromkeys(kind for kind, _ in usable)):  # None: each its own
        # pyrefly: ignore[not-iterable]  not None here
        named = [[usable.get((kind or each, at + step)) for each, at in places] for step in (-1, 0, 1)]
        # pyrefly: ignore[bad-argument-type]  None is not in names
        groups.append([tuple(names) for names in named if None not in names])
    others = sorted((sites for group in groups[1:] for sites in group), key=lambda sites: order[sites[0]])
    return list(dict.fromkeys([*groups[0], *others]))


def _guessed(site: str) -> tuple[str, int] | None:
    """Returns the kind and layer of a site that the model lacks, by the first number in its name."""
    number = re.search(r"\d+", site)
    return None if number is None else (site, int(number[0]))


def site_pairs(model: LanguageModel, usage: Usage | None, autoencoder: Released) -> dict[Sites, list[Sites]]:
    """Returns the possible output sites for each possible input site.

    An autoencoder's are the same. A transcoder's input comes before its output in the forward pass.
    """
    A_in, A_out = autoencoder.dims
    # pyrefly: ignore[bad-argument-type]  not None here
    sites_in = neighbours(model, usage and as_tuple(usage.site), A_in)
    if usage is None or usage.site == usage.site_out:
        return {sites: [sites] for sites in sites_in}
    sites_out = neighbours(model, as_tuple(usage.site_out), A_out)
    order = {name: at for at, name in enumerate(model.sites)}

    def earlier(one: Sites, other: Sites) -> bool:
        return all(order[a] < order[b] for a, b in zip(one, other, strict=True))

    return {sites: [out for out in sites_out if earlier(sites, out)] for sites in sites_in}


def without_copies(pairs: dict[Sites, list[Sites]], captured: Captured) -> dict[Sites, list[Sites]]:
    """Returns the pairs without sites whose values are those of an earlier site, as a layer's input has the values of
    the output of the layer below."""
    seen: dict[bytes, Sites] = {}
    every = dict.fromkeys([*pairs, *(sites for outs in pairs.values() for sites in outs)])
    kept = {sites for sites in every if seen.setdefault(captured.at(sites)[:16].tobytes(), sites) == sites}
    return {sites: [out for out in outs if out in kept] for sites, outs in pairs.items() if sites in kept}


def differ_by_a_gain(captured: Captured, one: str | Sites, other: str | Sites) -> bool:
    """Returns whether the values at two sites differ by one factor for each dimension alone: a norm's gain."""
    a, b = captured.at(one).astype(np.float64), captured.at(other).astype(np.float64)
    if a.shape != b.shape:
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.nan_to_num((a * b).sum(axis=0) / np.square(a).sum(axis=0))
    return bool(np.square(b - gain * a).sum() < 1e-4 * np.square(b).sum())


def changes(captured: Captured, autoencoder: Released, usage: Usage, pairs: dict[Sites, list[Sites]]) -> Iterator[Fit]:
    """Yields the fits of usages that differ from `usage` in a single respect: the sites, the skip or the scale."""
    form = (lambda sites: sites) if isinstance(usage.site, tuple) else (lambda sites: sites[0])
    for sites, outs in pairs.items():
        yield from captured.fits(autoencoder, dataclasses.replace(usage, site=form(sites)), [form(out) for out in outs])
    if as_tuple(usage.site) not in pairs:  # the model lacks the site
        return
    if can_transpose(autoencoder):
        yield captured.fit(autoencoder, dataclasses.replace(usage, transposed_skip=not usage.transposed_skip))
    if (scaled := best_scale(captured, autoencoder, usage)) is not None:
        yield scaled


def best_scale(captured: Captured, autoencoder: Released, usage: Usage) -> Fit | None:
    """Returns the fit with the best scale of the inputs; None where that scale is about 1.

    An autoencoder's outputs have the scale of its inputs; a transcoder's outputs have the scale that fits best.
    """
    same = usage.site == usage.site_out
    few = captured.first(_FEW)

    def fit(scale: float, on: Captured = captured, convention: str | None = None) -> Fit:
        scaled = dataclasses.replace(usage, scale=scale, scale_out=scale, convention=convention)
        return on.fits(autoencoder, scaled, [usage.site_out], free_scale_out=not same)[0]

    first = min(_SCALES, key=lambda scale: fit(scale, few).fvu)
    low, high = math.log(first / 2), math.log(first * 2)
    for _ in range(_REFINED):  # a search by thirds
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if fit(math.exp(left), few).fvu < fit(math.exp(right), few).fvu:
            high = right
        else:
            low = left
    best = fit(math.exp((low + high) / 2))
    near = [
        fit(scale, convention=convention)
        for convention, scale in _conventions(captured.at(usage.site)[~captured.special]).items()
        if abs(math.log(scale / best.usage.scale)) < math.log(2)
    ]
    named = min(near, key=lambda one: one.fvu, default=None)
    if named is not None and named.fvu <= _AS_GOOD * best.fvu:
        best = named
    moved = [abs(math.log(scale)) for scale in (best.usage.scale, best.usage.scale_out) if 0 < scale < math.inf]
    return best if len(moved) == 2 and max(moved) > math.log(SAME_SCALE) else None


def _conventions(x: np.ndarray) -> dict[str, float]:
    """Returns the scales by which projects multiply inputs, by the convention in words. Several sites have one scale
    in common."""
    A = x.shape[-1]
    norms = np.linalg.norm(x.astype(np.float64), axis=-1)
    mean, square = float(norms.mean()), float(np.square(norms).mean())
    if not mean > 0:
        return {}
    return {
        "the mean norm is then sqrt(A)": math.sqrt(A) / mean,
        "the mean squared norm is then 1": 1 / math.sqrt(square),
        "the mean squared norm is then A": math.sqrt(A / square),
        "the mean norm is then 1": 1 / mean,
        "sqrt(A), as embeddings are scaled": math.sqrt(A),
        "1/sqrt(A), the scale of embeddings undone": 1 / math.sqrt(A),
    }


def is_far(fit: Fit, l0: float | None) -> bool:
    """Returns whether an L0 is far from the one that the file claims."""
    return l0 is not None and not 1 / _FAR <= max(fit.l0, 1e-3) / l0 <= _FAR


def _score(fit: Fit, l0: float | None) -> float:
    """Returns the FVU times the root of the factor by which the L0 is off. On another text than the publisher's, the L0
    of a right autoencoder is off by tens of percents."""
    ratio = 1.0 if l0 is None else max(fit.l0, 1e-3) / l0
    return fit.fvu * math.sqrt(max(ratio, 1 / ratio))


def search(
    captured: Captured,
    autoencoder: Released,
    usage: Usage | None,
    best: Fit | None,
    pairs: dict[Sites, list[Sites]],
    l0: float | None,
    tried: list[Fit],
) -> Fit:
    """Returns the fit of the right usage: the claimed one, changed in one respect at a time as long as a change fits
    far better.

    Args:
        captured: activations at all sites of `pairs`.
        autoencoder: as it was loaded.
        usage: the claimed usage; None where the file claims none.
        best: the fit of `usage`; None where the model has no such sites.
        pairs: the possible output sites for each possible input site.
        l0: the L0 that the file claims.
        tried: a list that grows by every fit that is measured.
    """
    for _ in range(_ROUNDS):
        start = usage if best is None else best.usage
        if start is None:
            first = next(iter(pairs))[0]
            start = Usage(first, first)
        trials = list(changes(captured, autoencoder, start, pairs))
        tried.extend(trials)
        convincing = [fit for fit in trials if best is None or _convinces(fit, best, l0)]
        if not convincing and can_transpose(autoencoder):  # a transposed skip hides all other mistakes
            transposed = dataclasses.replace(start, transposed_skip=not start.transposed_skip)
            trials = list(changes(captured, autoencoder, transposed, pairs))
            tried.extend(trials)
            # pyrefly: ignore[bad-argument-type]  not None here
            convincing = [fit for fit in trials if _convinces(fit, best, l0)]
        if not (trials := convincing):
            break
        nearest = min(trials, key=lambda fit: _score(fit, l0))
        # Of a transcoder's two sites, one is more often wrong than both.
        one = [fit for fit in trials if fit.usage.site == start.site or fit.usage.site_out == start.site_out]
        single = min(one, key=lambda fit: _score(fit, l0), default=nearest)
        best = single if _score(single, l0) <= 1.1 * _score(nearest, l0) else nearest
        if best.fvu <= ENOUGH and not is_far(best, l0):
            break
    # pyrefly: ignore[bad-return]  not None here
    return best


def _convinces(fit: Fit, best: Fit, l0: float | None) -> bool:
    """Returns whether a fit is so much better than the best one so far that its usage is the right one."""
    if fit.fvu >= min(best.fvu, NOTHING) or _score(fit, l0) > _BETTER * _score(best, l0):
        return False
    # More latents reconstruct more, at any scale: that is no sign that a scale is missing.
    rescaled = (fit.usage.scale, fit.usage.scale_out) != (best.usage.scale, best.usage.scale_out)
    return not rescaled or l0 is not None or best.fvu > NOTHING or fit.l0 <= 1.2 * best.l0
