"""`sae.evaluate`: how faithful autoencoders are, in the units of the raw activations (arXiv 2408.05147, section 4).

What training left out (BOS, EOS, padding, what the text leaves out, attention sinks) is left out here by the rule that
the autoencoder records: such positions keep their own activation when the reconstruction is spliced in, and count in no
figure.

Of a batch, what lies below the sites is computed once, and what lies above them once for the clean loss, once with zero
and once for every autoencoder; losses are the model's own (`LanguageModel.losses`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer

from sae import showing
from sae.autoencoder import check_values
from sae.capturing import activations_at
from sae.counted import Counted
from sae.evaluation import programs
from sae.evaluation.counting import CountedText, Sites, as_tuple, counted_text, sites_to_capture
from sae.evaluation.matching import check_model
from sae.evaluation.metrics import Metrics as Metrics
from sae.evaluation.suite import About, Batch, Suite, Sums, suites_of
from sae.language_model import LanguageModel, check_tokenizer, require_model, resumption
from sae.progress import Progress, chosen, every
from sae.released import Released
from sae.sharding import rounded_up
from sae.sites import dim, token_site
from sae.text import Sequences, as_sequences

BATCH = 16  # sequences, unless their tokens are too many
TOKENS = 8192  # at most so many in a batch


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What evaluation needs to know of a model, a text and a site, whatever the autoencoder; from `baseline`.

    Attributes:
        site: where; several sites for crosscoders.
        centre: float32 [A] or [L, A], a typical activation; sums of squares around it lose nothing where the mean is
            far larger than the spread.
        sums: over the text tokens, float64: `tokens` and `predictions`, how many; `loss` and `loss_zero`, clean and
            zero-ablated, in nats; `shifted` and `squares`, of the activations around the centre; `documents`, how many
            have any of the tokens.
        counted: which tokens counted.
        text: the sequences in words.
        text_sha256: over them (`Sequences.fingerprint`).
        model: its name.
        model_fingerprint: of its parameters and config.
    """

    site: str | Sites
    centre: np.ndarray
    sums: dict[str, Any]
    counted: Counted
    text: str
    text_sha256: str
    model: str
    model_fingerprint: str

    def check(self, sites: Sites, text: CountedText, model: LanguageModel) -> None:
        """Raises ValueError, naming both, unless it is of these sites, this text, rule and model."""
        recorded, given = (
            f"{model_name} with parameters {sha256[:12]}…"
            for model_name, sha256 in ((self.model, self.model_fingerprint), (model.name, model.fingerprint))
        )
        differing = [
            f"{name}: the baseline's is {theirs}, the one given is {given}"
            for name, theirs, given, same in (
                ("site", "+".join(as_tuple(self.site)), "+".join(sites), as_tuple(self.site) == sites),
                ("text", self.text, text, self.text_sha256 == text.sha256),
                ("rule of which tokens count", self.counted, text.rule, self.counted == text.rule),
                ("model", recorded, given, self.model_fingerprint == model.fingerprint),
            )
            if not same
        ]
        if differing:
            raise ValueError(
                f"this baseline is of another evaluation: {'; '.join(differing)}. Compute one with "
                "`sae.evaluation.fidelity.baseline` for these, or leave `known` out"
            )

    def __repr__(self) -> str:
        loss, zero = (float(self.sums[name] / self.sums["predictions"]) for name in ("loss", "loss_zero"))
        tokens = showing.count(int(self.sums["tokens"]), "token")
        return f"Baseline({showing.joined(self.site)}: loss {loss:.3f}, with zero in its place {zero:.3f}, {tokens})"


def evaluate(
    autoencoder: Released | Sequence[Released],
    model: LanguageModel,
    tokens: Integer[np.ndarray, "S T"] | Sequences,
    site: str | Sites | None = None,
    *,
    suites: str | Sequence[str] = ("fidelity",),
    known: Baseline | None = None,
    counted: Counted | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Measures one autoencoder or several on token sequences.

    Several at one site are measured in one pass over the text, in which they share all but their own spliced passes. A
    crosscoder is spliced in at all its sites at once: what it makes of the clean activations of all.

    Args:
        autoencoder: on raw activations, or a list of them. A transcoder's output takes the place of its output site,
            and the FVU is of that.
        model: with its tokenizer, which says which tokens are special. Where its parameters are spread over a mesh,
            batches are too.
        tokens: `sae.text.Sequences`, or the tokens [S, T] int32 of some that leave nothing out, each sequence begun by
            BOS, padded at the end; of these, each row counts as a document.
        site: where it belongs; by default what its `info` says, which is the only place for a transcoder. Several for a
            crosscoder, in its order.
        suites: which metrics, by the names of registered suites (`sae.evaluation.suite`); "fidelity" gives `Metrics`.
        known: what `baseline` returned for the same model, tokens, rule and site, where autoencoders are measured one
            by one.
        counted: which tokens count, in place of what each autoencoder records.
        progress: by default a bar on standard error, where that is a terminal or this is a notebook; True, False, or a
            function that is called with the batches to come, and `total` and `desc`, as tqdm is.

    Returns:
        The metrics of the suite; of several suites a dict, {suite: its metrics}. Of a list of autoencoders, a list of
        these in its order.

    Raises:
        ValueError: before any forward pass, for an autoencoder of another model or width, or with values that are not
            finite or thresholds below 0, an unknown site, tokens without text or that are not this model's
            (`sae.text.as_sequences`), a text that leaves tokens out where training's did not (or the other way round),
            a baseline of something else, or an unknown suite.

    Warns:
        RecordWarning: where an autoencoder does not record which tokens its training counted, or the text is known to
            be another one than it was trained on.
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
        if known is not None:
            known.check(sites_out, text, model)
    metrics: dict[int, Any] = {}
    for place in dict.fromkeys(places):
        members = [i for i, other in enumerate(places) if other == place]
        of = [group[i] for i in members]
        # pyrefly: ignore[bad-argument-count]  as many as are unpacked
        _, sums = _measure(of, model, texts[members[0]], *place[:2], known, progress, measured)
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
    """The clean loss and the loss with zero at a site, over the tokens that count.

    Args:
        model: with its tokenizer.
        tokens: as for `evaluate`.
        site: or a crosscoder's sites.
        counted: which tokens count (`autoencoder.info.counted`); by default all but the tokenizer's special ids and
            what the text leaves out.
        progress: as for `evaluate`.

    Raises:
        ValueError: for a site that the model lacks, or tokens without text.
    """
    for name in as_tuple(site):
        token_site(model, name)
    check_tokenizer(model)
    counted = Counted.or_default(counted, model.tokenizer.special_ids)
    text = counted_text(None, model, as_sequences(tokens, model), counted)
    measured, _ = _measure([], model, text, (), as_tuple(site), None, chosen(progress), {})
    # The fingerprint takes its time, and serves to compare.
    # pyrefly: ignore[bad-return,bad-specialization]  not None here
    return dataclasses.replace(measured, site=site, model_fingerprint=model.fingerprint)


def _batches(
    model: LanguageModel, counted: CountedText, sites: Sites, progress: Progress, desc: str
) -> Iterator[tuple[int, jax.Array, np.ndarray, dict[str, jax.Array]]]:
    """The number of the first sequence, tokens [B, T], which of them count, and the activations at some sites; of
    batches in which any counts."""
    layout = programs.Layout.of(model)
    size = rounded_up(max(1, min(BATCH, TOKENS // counted.tokens.shape[1])), layout.mesh)
    starts = range(0, len(counted.tokens), size)
    for start in every(progress(starts, total=len(starts), desc=desc), starts):
        placed = layout.tokens(counted.batch(start, size))
        captured = layout.finish(activations_at(model, placed, sites))
        text = counted.mask(start, size, captured)
        if text.any():
            yield start, placed, text, captured


def _measure(
    group: Sequence[Released],
    model: LanguageModel,
    counted: CountedText,
    sites_in: Sites,
    sites_out: Sites,
    known: Baseline | None,
    progress: Progress,
    suites: Mapping[str, Suite],
) -> tuple[Baseline | None, list[dict[str, Sums]]]:
    """The baseline, and for each autoencoder the sums of each suite, with the baseline's where the suite needs them;
    one pass over the text. No baseline where nobody needs it."""
    layout = programs.Layout.of(model)
    group = [layout.autoencoder(one) for one in group]
    shared: dict[str, Any] = {}
    each: list[dict[str, Sums]] = [{name: {} for name in suites} for _ in group]
    wanted = not group or any(suite.baseline for suite in suites.values())
    centre = None if known is None else known.centre
    captures = sites_to_capture(model, sites_in, sites_out, counted.rule)
    desc = f"evaluate {'+'.join(sites_out)}" + ("" if group else ", baseline")
    documents: set[int] = set()
    for start, batch, text, captured in _batches(model, counted, captures, progress, desc):
        xs, ys = (tuple(captured[site] for site in sites) for sites in (sites_in, sites_out))
        resumed = {site: captured[site] for site in resumption(model, sites_out)}
        predicted = text[:, :-1] & text[:, 1:]

        def loss(values, batch=batch, resumed=resumed, predicted=predicted) -> np.float64:
            put = resumed | dict(zip(sites_out, values, strict=True))
            losses = layout.finish(programs.losses_with(model, batch, put))
            return np.asarray(losses, np.float64)[predicted].sum()

        if known is None and wanted:
            documents.update(counted.documents(start, text).tolist())
            if centre is None:
                centre = np.asarray(programs.joined(ys))[text].mean(axis=0)
            parts = jax.device_get(layout.finish(programs.moments(ys, text, centre)))
            _add(
                shared,
                tokens=text.sum(),
                predictions=predicted.sum(),
                loss=loss(ys),
                loss_zero=loss(layout.finish(programs.zeroed(ys, text))),
                shifted=np.asarray(parts["shifted"], np.float64).sum(axis=0),
                squares=np.asarray(parts["squares"], np.float64).sum(),
            )
        for one, sums in zip(group, each, strict=True):
            seen = Batch(model, one, batch, text, xs, ys, loss, layout.finish)
            for name, suite in suites.items():
                sums[name] = suite.merge(sums[name], suite.add(seen))
    if not wanted:
        if not all(all(sums.values()) for sums in each):
            raise ValueError("evaluation needs text tokens that count, and these sequences have none")
        return None, each
    if known is None:
        shared["documents"] = np.float64(len(documents))
        about = counted.rule, str(counted), counted.sha256, model.name, ""
        # pyrefly: ignore[bad-argument-type]  not None here
        known = Baseline(sites_out, centre, shared, *about)
    if not known.sums.get("predictions"):
        raise ValueError("evaluation needs text tokens that follow text tokens, and these sequences have none")
    return known, [
        {name: known.sums | of if suites[name].baseline else of for name, of in sums.items()} for sums in each
    ]


def _add(sums: dict[str, Any], **parts: Any) -> None:
    for name, part in parts.items():
        sums[name] = sums.get(name, 0) + np.asarray(part, np.float64)


def check_fits(autoencoder: Released, model: LanguageModel, site: str | Sites | None = None) -> tuple[Sites, Sites]:
    """Checks that an autoencoder belongs to a model and its sites, by its `info` and its shapes alone.

    Args:
        autoencoder: its arrays may be `jax.ShapeDtypeStruct`s (`sae.formats.files.outline`).
        model: with its tokenizer.
        site: in place of what its `info` says.

    Returns:
        The sites that go in, and those that are replaced by what comes out: one each, or a crosscoder's several.

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
    several = autoencoder.site_count
    if len(sites_in) != several:
        raise ValueError(
            f"a {type(autoencoder).__name__} of {several} site{'s' * (several > 1)} cannot be evaluated at "
            f"{', '.join(sites_in)}: name {several}"
        )
    A_in, A_out = autoencoder.dims
    for sites, got in ((sites_in, A_in), (sites_out, A_out)):
        for name in sites:
            width = dim(token_site(model, name))
            if got != width:
                raise ValueError(
                    f"{name} of {model.name} is {width} wide, the autoencoder takes {A_in} and gives {A_out}"
                )
    return sites_in, sites_out
