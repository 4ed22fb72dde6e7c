"""Where autoencoders lie in a release: the folder trees of Gemma Scope 1 and 2.

Gemma Scope 1, a repository for each kind of site:  layer_20/width_16k/average_l0_71
Gemma Scope 2, a folder for each kind of site:      resid_post/layer_9_width_16k_l0_medium

A kind that Gemma Scope lacks has the name of its sites. The path of an autoencoder without metrics has its target L0,
or "unknown".
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

from sae.cross_layer import CrossLayerTranscoder
from sae.discovery import import_all
from sae.formats import gemma_scope_2, gemma_scope_paths
from sae.formats.format import formats
from sae.formats.widths import label
from sae.releasing.contents import Entry

# {layout: the formats of its files, in the order of preference}
FORMATS = {"gemma_scope": ("gemma_scope",), "gemma_scope_2": ("gemma_scope_2", "gemma_scope_2_layers")}
TITLES = {"gemma_scope": "Gemma Scope 1", "gemma_scope_2": "Gemma Scope 2"}
_KINDS = {"gemma_scope": gemma_scope_paths.SITES, "gemma_scope_2": gemma_scope_2.SITES}
_WORDS = {2: ("small", "big"), 3: ("small", "medium", "big")}
# The L0s in the configs of Gemma Scope 2's folders for the 270M, by word; for an autoencoder alone at its place.
_USUAL = {"small": 20, "medium": 60, "big": 130}


@dataclasses.dataclass(frozen=True)
class Placed:
    """An autoencoder with its place in a release.

    Attributes:
        entry: the autoencoder.
        kind: the kind of its site, in the layout's words.
        path: the path of its folder in the release.
        format: the registered name of its files' format.
    """

    entry: Entry
    kind: str
    path: str
    format: str


def place(entries: Sequence[Entry], layout: str, format: str | None = None) -> list[Placed]:
    """Returns the autoencoders with their places, in the order of the entries.

    Args:
        entries: the autoencoders.
        layout: "gemma_scope" or "gemma_scope_2".
        format: the format of the files; by default the layout's own.

    Raises:
        ValueError: for an unknown layout, an autoencoder that the layout or the format cannot hold, and two
            autoencoders with the same place.
    """
    if layout not in FORMATS:
        raise ValueError(f"got the layout {layout!r}: choose one of {', '.join(FORMATS)}")
    kinds = [_kind(entry, layout) for entry in entries]
    paths = _first(entries, kinds) if layout == "gemma_scope" else _second(entries, kinds)
    chosen = [_format(entry, FORMATS[layout] if format is None else (format,)) for entry in entries]
    taken: dict[str, Entry] = {}
    for path, entry in zip(paths, entries, strict=True):
        if (other := taken.setdefault(path, entry)) is not entry:
            raise ValueError(
                f"{other.name} and {entry.name} would both be {path} in a release: choose the one that is to be "
                "released with `only` (--only)"
            )
    return [Placed(*one) for one in zip(entries, kinds, paths, chosen, strict=True)]


def _format(entry: Entry, names: Sequence[str]) -> str:
    import_all("sae.formats")
    lacks = {name: formats[name]().lacks(entry.outline) for name in names}
    for name, what in lacks.items():
        if what is None:
            return name
    able = [name for name, other in formats.items() if other().lacks(entry.outline) is None]
    raise ValueError(
        f"{entry.name}: {formats[names[0]].title} has no place for {lacks[names[0]]}. Name a format that has: "
        f"{', '.join(able)}"
    )


def _first(entries: Sequence[Entry], kinds: Sequence[str]) -> list[str]:
    """Returns the paths of Gemma Scope 1."""
    if several := [entry for entry in entries if not isinstance(entry.info.site, str)]:
        raise ValueError(
            f"{several[0].name} reads several sites, and Gemma Scope 1 has no folder for such: take the layout "
            "gemma_scope_2"
        )
    counts = collections.Counter(kinds)
    if len(counts) > 1:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
        raise ValueError(
            f"Gemma Scope 1 has a repository for each kind of site, and these autoencoders are of several: {listed}. "
            "Choose those of one with `only` (--only='*resid_post*'), or take the layout gemma_scope_2, which has a "
            "folder for each kind"
        )
    return [f"{_place(str(entry.info.site))[0]}/width_{label(entry.outline.width)}/{_l0(entry)}" for entry in entries]


def _l0(entry: Entry) -> str:
    if entry.measured is not None:
        return f"average_l0_{round(entry.measured.metrics.l0)}"
    return "l0_unknown" if entry.aim is None else f"target_l0_{entry.aim:g}"


def _second(entries: Sequence[Entry], kinds: Sequence[str]) -> list[str]:
    """Returns the paths of Gemma Scope 2. Two or three of one site and width have their words by the order of L0s."""
    affine = ["_affine" if getattr(entry.outline, "W_skip", None) is not None else "" for entry in entries]
    names = [(_without_l0(entry, kind), end) for entry, kind, end in zip(entries, kinds, affine, strict=True)]
    words: dict[int, str] = {}
    for name in dict.fromkeys(names):
        group = [index for index, other in enumerate(names) if other == name]
        numbers = {index: _number(entries[index]) for index in group}
        l0s = {index: l0 for index, l0 in numbers.items() if l0 is not None}
        if len(l0s) < len(group):
            words |= {index: "unknown" if l0 is None else f"{l0:g}" for index, l0 in numbers.items()}
        elif len(group) == 1:
            nearest = min(_USUAL, key=lambda word: abs(math.log(max(l0s[group[0]], 1e-3) / _USUAL[word])))
            words[group[0]] = nearest
        elif len(group) in _WORDS and len(set(l0s.values())) == len(group):
            words |= dict(zip(sorted(group, key=l0s.__getitem__), _WORDS[len(group)], strict=True))
        else:
            words |= {index: f"{l0:g}" for index, l0 in l0s.items()}
    return [f"{name}_l0_{words[index]}{end}" for index, (name, end) in enumerate(names)]


def _without_l0(entry: Entry, kind: str) -> str:
    width = f"width_{label(entry.outline.width)}"
    if isinstance(entry.info.site, str):
        return f"{kind}/{_place(entry.info.site)[0].replace('/', '_')}_{width}"
    places = [_place(site)[0] for site in entry.info.site]
    numbers = [match[1] for where in places if (match := re.fullmatch(r"layer_(\d+)", where))]
    if kind == "clt" and numbers == [str(layer) for layer in range(len(places))]:  # all layers, which go without saying
        return f"{kind}/{width}"
    where = f"layer_{'_'.join(numbers)}" if len(numbers) == len(places) else "+".join(places).replace("/", "_")
    return f"{kind}/{where}_{width}"


def _number(entry: Entry) -> float | None:
    """Returns the L0 that tells autoencoders apart: the measured one, or else the target."""
    return round(entry.measured.metrics.l0) if entry.measured is not None else entry.aim


def _kind(entry: Entry, layout: str) -> str:
    site, site_out = entry.info.site, entry.info.site_out
    if not isinstance(site, str):
        if site == site_out:
            return "crosscoder"
        return "clt" if isinstance(entry.outline, CrossLayerTranscoder) else "transcoder_set"
    (where, into), (where_out, out) = _place(site), _place(str(site_out))
    if layout == "gemma_scope" and site == site_out == "embed":
        return "res"  # whose repositories have a folder for it
    names = {pair: name for name, pair in _KINDS[layout].items()}
    if where == where_out and (into, out) in names:
        return names[into, out]
    if site == site_out:
        return into
    return f"{into}_to_{out}" if where == where_out else f"{into}_to_{where_out}_{out}".replace("/", "_")


def _place(site: str) -> tuple[str, str]:
    """Returns a site's layer and its kind, such as ("layer_3", "mlp_out"); a site without a layer twice."""
    where, _, kind = site.rpartition("/")
    return where or kind, kind
