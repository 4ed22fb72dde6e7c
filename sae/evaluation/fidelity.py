"""`sae.evaluate`: how faithful autoencoders are, in the units of the raw activations (arXiv 2408.05147, section 4).

Tokens that training left out (BOS, EOS, padding, what the text leaves out, attention sinks) are left out here too, by
the rule that the autoencoder records: such positions keep their own activation when the reconstruction is spliced in,
and count in no metric.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from sae import showing
from sae.autoencoder import check_values
from sae.counted import Counted
from sae.evaluation.counting import Sites, as_tuple, counted_text
from sae.evaluation.matching import check_model
from sae.evaluation.measuring import Baseline, measure
from sae.evaluation.metrics import Metrics as Metrics
from sae.evaluation.suite import About, suites_of
from sae.language_model import LanguageModel, check_tokenizer, require_model
from sae.progress import Progress, chosen
from sae.released import Released
from sae.sites import dim, token_site
from sae.text import Sequences, as_sequences


def evaluate(
    autoencoder: Released | Sequence[Released],
    model: LanguageModel,
    tokens: Integer[np.ndarray, "S T"] | Sequences,
    site: str | Sites | None = None,
    *,
    suites: str | Sequence[str] = ("fidelity",),
    baseline: Baseline | None = None,
    counted: Counted | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Measures one autoencoder or several on token sequences.

    Several at one site are measured in one pass over the text, in which they share everything but their spliced forward
    passes. A crosscoder is spliced in at all its sites at once: it reads the clean activations of all.

    Args:
        autoencoder: on raw activations, or a list of them. A transcoder's output takes the place of its output site,
            and the FVU is of that.
        model: with its tokenizer, which says which tokens are special. Where its parameters are spread over a mesh,
            batches are too.
        tokens: `sae.text.Sequences`; or int32 [S, T], the tokens of sequences that leave nothing out, each begun by BOS
            and padded at the end, of which each row counts as a document.
        site: where the autoencoder belongs; several sites for a crosscoder, in its order. By default what its `info`
            says, which is the only place for a transcoder.
        suites: which metrics, by the names of registered suites (`sae.evaluation.suite`); "fidelity" gives `Metrics`.
        baseline: what `sae.evaluation.fidelity.baseline` returned for the same model, tokens, rule and site, where
            autoencoders are measured one by one.
        counted: which tokens count, in place of what each autoencoder records.
        progress: by default a bar on standard error, where that is a terminal or this is a notebook; True, False, or a
            function that is called with the batches to come, and `total` and `desc`, as tqdm is.

    Returns:
        The metrics of the suite; for several suites a dict, {suite: its metrics}. For a list of autoencoders, a list of
        these in its order.

    Raises:
        ValueError: before any forward pass, for an autoencoder of another model or width, or with values that are not
            finite or thresholds below 0, an unknown site, tokens without text or that are not this model's
            (`sae.text.as_sequences`), a text that leaves tokens out where training's did not (or the other way round),
            a baseline of another evaluation, or an unknown suite.

    Warns:
        RecordWarning: for an autoencoder that does not record which tokens its training counted, or a text that is
            known to be another one than training's.

    Example:
        >>> metrics = sae.evaluate(autoencoder, model, sequences)
        >>> metrics.site, metrics.width
        ('layer_1/resid_post', 64)
        >>> print(sae.evaluation.tables.table([metrics]))
        site                width    L0    FVU  delta loss (nats)  loss recovered  dead in ... tokens
        layer_1/resid_post     64 ...
    """
    progress = chosen(progress)
    alone = isinstance(autoencoder, Released)
    group = [autoencoder] if alone or not isinstance(autoencoder, Iterable) else list(autoencoder)
    if wrong := [one for one in group if not isinstance(one, Released)]:
        raise ValueError(
            "sae.evaluate takes an autoencoder, such as sae.load(folder) returns, or several; got "
            + showing.kind(wrong[0] if type(autoencoder) in (list, tuple) else autoencoder)
        )
    require_model(model)
    # pyrefly: ignore[bad-argument-type]  a list or a tuple
    measured = suites_of(suites)
    sites, texts, sequences = [], [], None
    for one in group:  # a comprehension would be a frame of its own, and warnings name the caller's line
        sites.append(check_fits(one, model, site))
        check_values(one)
        sequences = as_sequences(tokens, model) if sequences is None else sequences
        texts.append(counted_text(one.info, model, sequences, counted))
    places = [(*between, text.rule) for between, text in zip(sites, texts, strict=True)]
    for (_, sites_out), text in zip(sites, texts, strict=True):
        if baseline is not None:
            baseline.check(sites_out, text, model)
    metrics: dict[int, Any] = {}
    for place in dict.fromkeys(places):
        members = [i for i, other in enumerate(places) if other == place]
        of = [group[i] for i in members]
        # pyrefly: ignore[bad-argument-count]  as many as are unpacked
        _, sums = measure(of, model, texts[members[0]], *place[:2], baseline, progress, measured)
        about = About("+".join(place[1]), texts[members[0]].sequences.rows_are_documents)
        for i, each in zip(members, sums, strict=True):
            metrics[i] = {name: suite.metrics(each[name], about) for name, suite in measured.items()}
            if len(measured) == 1:
                (metrics[i],) = metrics[i].values()
    ordered = [metrics[i] for i in range(len(group))]
    return ordered[0] if alone else ordered


def baseline(
    model: LanguageModel,
    tokens: np.ndarray | Sequences,
    site: str | Sites,
    *,
    counted: Counted | None = None,
    progress: Progress | bool | None = None,
) -> Baseline:
    """Measures the clean loss, and the loss with zero at a site, over the tokens that count.

    Args:
        model: with its tokenizer.
        tokens: as for `evaluate`.
        site: one site, or a crosscoder's sites.
        counted: which tokens count (`autoencoder.info.counted`); by default all but the tokenizer's special ids and
            what the text leaves out.
        progress: as for `evaluate`.

    Returns:
        The baseline, for `evaluate(..., baseline=...)`.

    Raises:
        ValueError: for a site that the model lacks, or tokens without text.

    Example:
        >>> shared = baseline(model, sequences, autoencoder.info.site, counted=autoencoder.info.counted)
        >>> metrics = sae.evaluate(autoencoder, model, sequences, baseline=shared)
    """
    for name in as_tuple(site):
        token_site(model, name)
    check_tokenizer(model)
    counted = Counted.or_default(counted, model.tokenizer.special_ids)
    text = counted_text(None, model, as_sequences(tokens, model), counted)
    measured, _ = measure([], model, text, (), as_tuple(site), None, chosen(progress), {})
    # The fingerprint takes its time, and serves comparisons alone.
    # pyrefly: ignore[bad-return,bad-specialization]  not None here
    return dataclasses.replace(measured, site=site, model_fingerprint=model.fingerprint)


def check_fits(autoencoder: Released, model: LanguageModel, site: str | Sites | None = None) -> tuple[Sites, Sites]:
    """Checks that an autoencoder belongs to a model and its sites, by its `info` and its shapes alone.

    Args:
        autoencoder: its arrays may be `jax.ShapeDtypeStruct`s (`sae.formats.files.outline`).
        model: with its tokenizer.
        site: in place of what its `info` says.

    Returns:
        The sites that go in, and the sites that its output replaces: one each, or a crosscoder's several.

    Raises:
        ValueError: as `evaluate` does.
    """
    info = autoencoder.info
    if site is None and info is None:
        raise ValueError("this autoencoder does not say where it belongs: name the site")
    check_model(info, model)
    if info is not None and info.site != info.site_out and site is not None:
        raise ValueError(f"a transcoder belongs where it was trained, from {info.site} to {info.site_out}; got {site}")
    sites_in, sites_out = (as_tuple(site),) * 2 if site is not None else (as_tuple(info.site), as_tuple(info.site_out))
    count = autoencoder.site_count
    if len(sites_in) != count:
        raise ValueError(
            f"a {type(autoencoder).__name__} of {showing.count(count, 'site')} cannot be evaluated at "
            f"{', '.join(sites_in)}: name {count}"
        )
    A_in, A_out = autoencoder.dims
    for sites, got in ((sites_in, A_in), (sites_out, A_out)):
        for name in sites:
            length = dim(token_site(model, name))
            if got != length:
                raise ValueError(
                    f"activations at {name} of {model.name} have the dim {length}, the autoencoder takes {A_in} and "
                    f"gives {A_out}"
                )
    return sites_in, sites_out
