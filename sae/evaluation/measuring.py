"""One pass over a text for the autoencoders of one site: the baseline of the site, and each suite's sums.

Of a batch, what lies below the sites is computed once, and what lies above them once for the clean loss, once with zero
and once for every autoencoder; losses are the model's own (`LanguageModel.losses`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sae import showing
from sae.capturing import activations_at
from sae.counted import Counted
from sae.evaluation import programs
from sae.evaluation.counting import CountedText, Sites, as_tuple, sites_to_capture
from sae.evaluation.suite import Batch, Suite, Sums
from sae.language_model import LanguageModel, resumption
from sae.progress import Progress, every
from sae.released import Released
from sae.sharding import rounded_up

BATCH = 16  # sequences, unless their tokens are too many
TOKENS = 8192  # the most tokens of a batch


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What evaluation needs to know of a model, a text and a site, whatever the autoencoder; from `fidelity.baseline`.

    Attributes:
        site: one site, or several for crosscoders.
        centre: float32 [A] or [L, A], a typical activation. Sums of squares around it lose nothing where the mean is
            far larger than the spread.
        sums: float64, over the tokens that count: `tokens` and `predictions`, how many; `loss` and `loss_zero`, clean
            and zero-ablated, in nats; `shifted` and `squares`, of the activations around the centre; `documents`, how
            many have any of the tokens.
        counted: the rule of which tokens count.
        text: the sequences in words.
        text_sha256: of the sequences (`Sequences.fingerprint`).
        model: the name of the model.
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
        """Raises ValueError, naming both sides, for other sites, or another text, rule or model, than the baseline's.

        Args:
            sites: where outputs are replaced.
            text: the sequences with their rule.
            model: the language model.
        """
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
                "`sae.evaluation.fidelity.baseline` for these, or leave `baseline` out"
            )

    def __repr__(self) -> str:
        loss, zero = (float(self.sums[name] / self.sums["predictions"]) for name in ("loss", "loss_zero"))
        tokens = showing.count(int(self.sums["tokens"]), "token")
        return f"Baseline({showing.joined(self.site)}: loss {loss:.3f}, with zero in its place {zero:.3f}, {tokens})"


def measure(
    group: Sequence[Released],
    model: LanguageModel,
    counted: CountedText,
    sites_in: Sites,
    sites_out: Sites,
    baseline: Baseline | None,
    progress: Progress,
    suites: Mapping[str, Suite],
) -> tuple[Baseline | None, list[dict[str, Sums]]]:
    """Makes one pass over the text.

    Args:
        group: autoencoders of the same sites and rule; none for the baseline alone.
        model: the language model.
        counted: the text with the rule.
        sites_in: what the autoencoders read.
        sites_out: what their outputs replace.
        baseline: of the same text and sites, where one exists.
        progress: called with the batches to come.
        suites: the metrics, by name.

    Returns:
        The baseline, None where no suite needs it; and for each autoencoder the sums of each suite, with the baseline's
        where the suite needs them.
    """
    layout = programs.Layout.of(model)
    group = [layout.autoencoder(one) for one in group]
    shared: dict[str, Any] = {}
    each: list[dict[str, Sums]] = [{name: {} for name in suites} for _ in group]
    needs_baseline = not group or any(suite.baseline for suite in suites.values())
    centre = None if baseline is None else baseline.centre
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

        if baseline is None and needs_baseline:
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
            part = Batch(model, one, batch, text, xs, ys, loss, layout.finish)
            for name, suite in suites.items():
                sums[name] = suite.merge(sums[name], suite.add(part))
    if not needs_baseline:
        if not all(all(sums.values()) for sums in each):
            raise ValueError("evaluation needs text tokens that count, and these sequences have none")
        return None, each
    if baseline is None:
        shared["documents"] = np.float64(len(documents))
        about = counted.rule, str(counted), counted.sha256, model.name, ""
        # pyrefly: ignore[bad-argument-type]  there were tokens
        baseline = Baseline(sites_out, centre, shared, *about)
    if not baseline.sums.get("predictions"):
        raise ValueError("evaluation needs text tokens that follow text tokens, and these sequences have none")
    return baseline, [
        {name: baseline.sums | of if suites[name].baseline else of for name, of in sums.items()} for sums in each
    ]


def _batches(
    model: LanguageModel, counted: CountedText, sites: Sites, progress: Progress, desc: str
) -> Iterator[tuple[int, jax.Array, np.ndarray, dict[str, jax.Array]]]:
    """Yields, for each batch in which a token counts, the number of its first sequence, tokens [B, T], which of them
    count, and the activations at some sites."""
    layout = programs.Layout.of(model)
    size = rounded_up(max(1, min(BATCH, TOKENS // counted.tokens.shape[1])), layout.mesh)
    starts = range(0, len(counted.tokens), size)
    for start in every(progress(starts, total=len(starts), desc=desc), starts):
        placed = layout.tokens(counted.batch(start, size))
        captured = layout.finish(activations_at(model, placed, sites))
        text = counted.mask(start, size, captured)
        if text.any():
            yield start, placed, text, captured


def _add(sums: dict[str, Any], **parts: Any) -> None:
    for name, part in parts.items():
        sums[name] = sums.get(name, 0) + np.asarray(part, np.float64)
