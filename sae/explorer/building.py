"""`sae.explore`: the pages of autoencoders, the first page with links to them, and the picture of their trade-off.
Pages of the same autoencoder and text that exist already stay."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import jax
import numpy as np
from jaxtyping import Integer

from mishax_lite.hashing import fingerprint
from sae import showing
from sae.autoencoder import bare
from sae.evaluation import fidelity, kept, nearest_latents
from sae.evaluation.fidelity import Metrics
from sae.evaluation.latents import latent_statistics, top_tokens
from sae.evaluation.matching import counted_of
from sae.explainers.base import Explainer, explainer_of
from sae.explorer import pages, tradeoff
from sae.explorer.pages import About
from sae.files import replace_file
from sae.language_model import LanguageModel, titled
from sae.looking import NEIGHBOURS, Latents
from sae.progress import Progress, chosen
from sae.released import Released
from sae.text import Sequences, as_sequences

VERSION = 2  # of what pages say; pages of an earlier version are written again


@dataclasses.dataclass(frozen=True)
class Entry:
    """An autoencoder whose pages are to be written.

    Attributes:
        place: where they go, below the folder of the first page.
        metrics: of the autoencoder.
        target: the L0 that it aimed at, in words.
        about: what its pages say of the text.
        key: what they depend on; with another one they are written again.
        load: returns it; called where its pages are to be written.
    """

    place: PurePath
    metrics: Metrics
    target: str
    about: About
    key: str
    load: Callable[[], Released]


def explore(
    autoencoders: Released | Sequence[Released] | Mapping[str, Released],
    model: LanguageModel,
    sequences: Sequences | Integer[np.ndarray, "S T"],
    folder: str | Path,
    *,
    text: str = "text that the caller gave",
    explainer: Explainer | str | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Measures autoencoders and writes their feature pages: static files for a browser.

    Args:
        autoencoders: one, several, or several by name. A name is the path of its folder, such as
            "layer_3/resid_post/width_1536"; by default it has the site and the width.
        model: with its tokenizer.
        sequences: the text of the metrics and examples; the same tokens count as for `sae.evaluate`.
        folder: where the pages go. Pages of the same autoencoder, model and text stay as they are.
        text: the pages' name for the text, after "tokens of".
        explainer: what puts each latent into words (`sae.explainers`), or its name; None for no words.
        progress: as for `sae.evaluate`.

    Returns:
        The path of the first page.

    Raises:
        ValueError: as for `sae.evaluate`; and for crosscoders, no autoencoder, or an unknown explainer.

    Example:
        >>> sae.explore(autoencoder, model, sequences, "runs/pages").name
        'index.html'
    """
    progress, explainer = chosen(progress), explainer_of(explainer)
    named = _named(autoencoders)
    sequences = as_sequences(sequences, model)
    metrics = fidelity.evaluate(list(named.values()), model, sequences, progress=progress)
    of = kept.subject(model, sequences)
    entries, omissions = [], {}
    for (name, autoencoder), one in zip(named.items(), metrics, strict=True):
        info = autoencoder.info
        about = About(text, counted_of(info, model).omissions())
        omissions[about.omissions] = None
        target = kept.target(info, name.rpartition("/")[2])
        key = f"{kept.COUNTING}:{of}{_hash(autoencoder)}"
        entries.append(Entry(PurePath(name), one, target, about, key, lambda autoencoder=autoencoder: autoencoder))
    about = About(text, ", or of others: ".join(omissions))
    return build(entries, model, sequences, Path(folder), about, explainer=explainer, progress=progress)


def build(
    entries: Sequence[Entry],
    model: LanguageModel,
    sequences: Sequences,
    folder: Path,
    about: About,
    *,
    explainer: Explainer | None = None,
    progress: Progress,
) -> Path:
    """Writes the pages of autoencoders, except those that exist already, and returns the path of the first page.

    Args:
        entries: the autoencoders.
        model: the autoencoders' model.
        sequences: the text of the metrics.
        folder: of the first page.
        about: what the first page says of the text.
        explainer: what puts each latent into words; None for no words.
        progress: called with the items to come, as tqdm is.
    """
    rows = []
    for entry in entries:
        _write(entry, model, sequences, folder, explainer, progress)
        rows.append({
            "href": pages.link(entry.place / "index.html"),
            "site": entry.metrics.site,
            "width": entry.metrics.width,
            "target": entry.target,
            "metrics": entry.metrics,
        })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    name = titled(model)
    metrics = [entry.metrics for entry in entries]
    tradeoff.draw(metrics, folder / "tradeoff.png", f"JumpReLU autoencoders on {name}")
    return pages.write_index(folder, name, rows, metrics[0].tokens, about)


def _write(
    entry: Entry,
    model: LanguageModel,
    sequences: Sequences,
    folder: Path,
    explainer: Explainer | None,
    progress: Progress,
) -> None:
    out, site = folder / entry.place, entry.metrics.site
    contents = (VERSION, entry.about) + (() if explainer is None else (explainer, explainer.version))
    key = entry.key + hashlib.sha256(repr(contents).encode()).hexdigest()[:16]
    identity_file = out / "identity.txt"
    if identity_file.exists() and identity_file.read_text(encoding="utf-8") == key:
        return
    # Pages of an earlier text or autoencoder must not be taken for pages of this one.
    identity_file.unlink(missing_ok=True)
    for old in out.glob("*.html"):
        old.unlink()
    autoencoder = entry.load()
    # pyrefly: ignore[missing-attribute]  not None here
    statistics = latent_statistics(autoencoder, model, sequences, autoencoder.info.site, progress=progress)
    effects = top_tokens(autoencoder, model, site) if model.sites[site].writes_to_residual else None
    explained = None
    if explainer is not None:  # the words that `sae.latents` gives
        near = nearest_latents.neighbours(autoencoder, NEIGHBOURS)
        latents = Latents(site, statistics, effects, *near, sequences, model.tokenizer, explainer)
        # pyrefly: ignore[bad-argument-type]  not None here
        explained = pages.Explanations(explainer.about, lambda latent: latents[latent].explanation)
    pages.write_latents(
        out,
        "../" * len(entry.place.parts),
        f"{site}, {autoencoder.width} latents, target L0 {entry.target}",
        autoencoder,
        statistics,
        effects,
        sequences,
        model.tokenizer,
        entry.about,
        explanations=explained,
        progress=progress,
    )
    replace_file(identity_file, key)


def _named(autoencoders: Released | Sequence[Released] | Mapping[str, Released]) -> dict[str, Released]:
    """Returns autoencoders by the paths of their folders."""
    if isinstance(autoencoders, Released):
        autoencoders = [autoencoders]
    if not isinstance(autoencoders, Mapping):
        listed, autoencoders = list(autoencoders), {}
        for one in listed:
            # pyrefly: ignore[missing-attribute]  not None here
            site = "autoencoder" if getattr(one, "info", None) is None else one.info.site_out
            name = stem = f"{site}/width_{getattr(one, 'width', '')}"
            number = 1
            while name in autoencoders:
                number += 1
                name = f"{stem}_{number}"
            autoencoders[name] = one
    for name, one in autoencoders.items():
        if not isinstance(one, Released) or one.several_sites() or one.info is None:
            raise ValueError(
                f"sae.explore takes autoencoders of one site, which their `info` says; got {showing.kind(one)}"
                + (", which does not say its site" if isinstance(one, Released) and one.info is None else "")
            )
        path = PurePath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise ValueError(f"the name of an autoencoder is a path below the folder of the pages, got {name!r}")
    if not autoencoders:
        raise ValueError("sae.explore needs an autoencoder, got none")
    return dict(autoencoders)


def _hash(autoencoder: Released) -> str:
    """Returns a hash of the arrays and of the record."""
    arrays = jax.device_get(bare(autoencoder))
    # pyrefly: ignore[bad-argument-type]  not None here
    return fingerprint(arrays, repr(dataclasses.astuple(autoencoder.info)))[:32]
