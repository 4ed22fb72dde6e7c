"""The suite "fidelity": how faithful an autoencoder is, in raw units (arXiv 2408.05147, section 4)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sae import showing
from sae.autoencoder import Largest
from sae.evaluation import programs
from sae.evaluation.suite import About, Batch, Suite, Sums, suites


@dataclasses.dataclass(frozen=True)
class Metrics:
    """How faithful an autoencoder is; `sae.evaluate` returns it.

    Attributes:
        site: where the autoencoder was spliced in; for a transcoder, the site of its output; for a crosscoder, all its
            sites, with + between them.
        tokens: how many tokens counted; `l0`, `fvu`, `dead` and `largest` are over them.
        predictions: how many next-token predictions the losses are means of, from tokens that count to tokens that
            count.
        l0: mean number of active latents per token.
        fvu: sum ||x - x^||^2 / sum ||x - mean(x)||^2, with the mean of each dimension over the tokens; for a
            crosscoder, over the dimensions of all its sites.
        loss: next-token loss in nats, clean.
        loss_spliced: the same with x^ in x's place, at all sites.
        loss_zero: the same with zero in x's place.
        delta_loss: loss_spliced - loss, nats.
        loss_recovered: (loss_zero - loss_spliced) / (loss_zero - loss).
        dead: how many latents fired on none of the `tokens`.
        width: how many latents the autoencoder has.
        documents: how many documents have any of the `tokens`.
        rows_are_documents: whether each row of an array counts as a document, since the documents of its tokens are not
            known.
        largest: the largest activation of each latent over the tokens; None for metrics from a file.

    Example:
        >>> metrics = sae.evaluate(autoencoder, model, sequences)
        >>> 0 < metrics.l0 < metrics.width, bool(np.isclose(metrics.delta_loss, metrics.loss_spliced - metrics.loss))
        (True, True)
        >>> sae.Metrics(**metrics.to_dict()) == metrics
        True
    """

    site: str
    tokens: int
    predictions: int
    l0: float
    fvu: float
    loss: float
    loss_spliced: float
    loss_zero: float
    delta_loss: float
    loss_recovered: float
    dead: int
    width: int
    documents: int
    rows_are_documents: bool = False
    largest: Largest | None = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        losses = f"delta loss {self.delta_loss:.3f} nats, loss recovered {self.loss_recovered:.3f}"
        dead = f"{self.dead:,} of {showing.count(self.width, 'latent')} dead"
        documents = showing.documents(self.documents, self.rows_are_documents)
        tokens = f"{showing.count(self.tokens, 'token')} of {documents}"
        return f"Metrics({self.site}: L0 {self.l0:.1f}, FVU {self.fvu:.3f}, {losses}, {dead}, {tokens})"

    def to_dict(self) -> dict[str, str | int | float]:
        """Returns the metrics, ready for JSON; `Metrics(**values)` reads them back."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "largest"}


@suites.register("fidelity")
class Fidelity(Suite):
    """How faithful an autoencoder is (`Metrics`)."""

    baseline = True

    def add(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns the sums of `programs.reconstruct`, and the loss with the reconstruction spliced in."""
        reconstruction = programs.reconstruct(batch.autoencoder, batch.inputs, batch.outputs, batch.text)
        spliced, parts = batch.finish(reconstruction)
        parts = jax.device_get(parts)
        return parts | {"errors": parts["errors"].sum(dtype=np.float64), "loss_spliced": batch.loss(spliced)}

    def merge(self, sums: Sums, new: Mapping[str, Any]) -> Sums:
        """Returns the sums, and the maxima of the largest activations."""
        largest = np.maximum(sums.get("largest", 0.0), new["largest"])
        return super().merge(sums, new) | {"largest": largest}

    def metrics(self, sums: Sums, about: About) -> Metrics:
        """Returns what `summarise` makes of the sums."""
        return summarise(sums, about.site, about.rows_are_documents)


def summarise(sums: dict[str, np.ndarray], site: str, rows_are_documents: bool = False) -> Metrics:
    """Returns the metrics from sums over all tokens.

    Args:
        sums: as in `Baseline`, and as from `programs.reconstruct`.
        site: of the metrics.
        rows_are_documents: of the metrics.
    """
    n, predictions = sums["tokens"], sums["predictions"]
    variation = sums["squares"] - np.square(sums["shifted"]).sum() / n
    clean, spliced, zero = (sums[name] / predictions for name in ("loss", "loss_spliced", "loss_zero"))
    return Metrics(
        site=site,
        tokens=int(n),
        predictions=int(predictions),
        l0=float(sums["active"].sum() / n),
        fvu=float(sums["errors"] / variation),
        loss=float(clean),
        loss_spliced=float(spliced),
        loss_zero=float(zero),
        delta_loss=float(spliced - clean),
        loss_recovered=float((zero - spliced) / (zero - clean)),
        dead=int((sums["active"] == 0).sum()),
        width=len(sums["active"]),
        documents=int(sums["documents"]),
        rows_are_documents=rows_are_documents,
        largest=Largest(sums["largest"], int(n)) if "largest" in sums else None,
    )
